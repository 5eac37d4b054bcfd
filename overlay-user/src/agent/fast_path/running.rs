//! The fast path while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::flags::{Attach, FastPathMode, NodeFlags, Xdp};
use crate::datapath::Error;
use crate::datapath::maps::{self, Maps};
use crate::datapath::object;
use crate::datapath::pins::Pins;
use crate::datapath::probe::Probes;
use crate::datapath::programs::{Mechanism, Programs};
use crate::datapath::tables::{self};
use crate::kernel::nic::Nic;
use crate::kernel::pods::PodLink;
use crate::kernel::xfrm::Traffic;
use crate::mac::MacAddr;
use ipnet::IpNet;
use overlay_common::schema::{CONFIG_ACTIVE, CONFIG_PEERS_COMPLETE, Config};
use overlay_common::snapshot::Snapshot;
use overlay_common::{Hook, V4, Verdict};
use tokio::sync::Notify;

use super::follower::Follower;
use super::live::Live;
use super::{Backing, View, flows, refusals};
use contents::ipsec;
use hooks::{Site, sites};
use wanted::{local_pods, table_input};

mod contents;
mod hooks;
mod wanted;

/// Interval of the comparisons of the remembered flows with connection tracking.
const FLOWS_RESYNC: Duration = Duration::from_secs(20);

/// A loaded fast path.
pub struct Running {
    programs: Programs,
    /// Reads the programs' events about refused packets, if wanted.
    _refusals: Option<refusals::Reader>,
    /// Whether packets are short-cut, or only checked.
    carries: bool,
    /// Whether programs and maps were in place when the last round ended.
    judges: bool,
    /// Pods that no program judges, by the host end's name.
    unjudged: BTreeSet<String>,
    /// The source of the programs, where they are not this build's own.
    pub foreign_programs: Option<String>,
    live: Live,
    follower: Follower,
    pins: Pins,
    /// The kernel's ids of the maps.
    map_ids: Vec<u32>,
    /// The configuration that was written last.
    config: Option<Config<V4>>,
    /// The hooks that need programs, as of the last round.
    sites: Vec<Site>,
    /// Pods to which programs could not be attached, with the causes; the kernel path serves these
    /// pods.
    pub left_out: BTreeMap<String, String>,
    /// Entries for which the tables have no room or no form, as text for people.
    pub omissions: Option<String>,
    /// The NIC on which hostile VXLAN is refused early, or the reason for none.
    pub early: Result<Nic, String>,
    /// Peers to which the routes lead by another device than the underlay's; the kernel path serves
    /// these peers.
    pub elsewhere: BTreeSet<IpAddr>,
    /// Why IPsec keeps all peers on the kernel path, which applies IPsec's policies; `None` where
    /// it does not.
    pub ipsec: Option<String>,
    /// The traffic for which IPsec policies were read.
    traffic: Option<Traffic>,
    flows_checked: Instant,
    /// The contents that the maps should have, as of the last round.
    written: Snapshot<V4>,
    /// Whether another VXLAN device has the same UDP port.
    shares_port: bool,
    /// See [`Running::has_unlisted_traffic`].
    unlisted_packets: u64,
    /// How long the list of leases is valid without an agent; `None` for ever.
    leases_outlive_us: Option<Duration>,
}

impl Running {
    /// Probes this kernel, loads the programs and adopts the pinned objects.
    pub fn start(pins: &Pins, flags: &NodeFlags) -> Result<Self, String> {
        let attachment = match (flags.attach, Probes::run().verdict()?) {
            (Attach::Tcx, Mechanism::Clsact) => {
                return Err("this kernel has no tcx (Linux 6.6 has): leave --attach out".to_owned());
            }
            (Attach::Clsact, _) => Mechanism::Clsact,
            (Attach::Tcx | Attach::Auto, best) => best,
        };
        let object = object::read(flags.programs.as_deref()).map_err(|error| error.to_string())?;
        let (mut programs, misfits) =
            Programs::load(&object.bytes, pins, attachment).map_err(|error| error.to_string())?;
        for misfit in misfits {
            tracing::warn!("{misfit}");
        }
        // Each program must see a packet only once.
        let others = match attachment {
            Mechanism::Tcx => Programs::detach_filters(),
            Mechanism::Clsact => Programs::detach_links(pins, |hook| hook != Hook::NetXdp),
        };
        others.map_err(|error| error.to_string())?;
        let strangers = Programs::detach_other_versions(pins).map_err(|error| error.to_string())?;
        if strangers > 0 {
            tracing::info!(
                programs = strangers,
                "took off what an agent of another version has left"
            );
        }
        let mut maps = Maps::open(pins).map_err(|error| error.to_string())?;
        maps.look_for_flows().map_err(|error| error.to_string())?;
        let live = Live::new(maps);
        let map_ids = maps::ids(pins).map_err(|error| error.to_string())?;
        programs.offer().map_err(|error| error.to_string())?;
        tracing::info!(?attachment, pins = %pins.root().display(), "fast path loaded");
        if let Some(note) = &object.note {
            tracing::warn!("the programs are not this build's own: {note}");
        }
        let refusals = flags.log_refused.then(|| refusals::Reader::start(pins));
        let refusals = refusals.transpose().map_err(|error| error.to_string())?;
        Ok(Self {
            programs,
            _refusals: refusals,
            carries: flags.fast_path != FastPathMode::Off,
            judges: false,
            unjudged: BTreeSet::new(),
            foreign_programs: object.note,
            follower: Follower::start(live.clone()),
            live,
            pins: pins.clone(),
            map_ids,
            config: None,
            sites: Vec::new(),
            left_out: BTreeMap::new(),
            omissions: None,
            early: Err("not decided yet".to_owned()),
            elsewhere: BTreeSet::new(),
            ipsec: None,
            traffic: None,
            flows_checked: Instant::now(),
            written: Snapshot::default(),
            shares_port: false,
            unlisted_packets: 0,
            leases_outlive_us: Some(flags.refuse_without_agent).filter(|time| !time.is_zero()),
        })
    }

    /// Whether packets are short-cut.
    pub fn carries(&self) -> bool {
        self.carries
    }

    /// The pods that programs judge.
    pub fn judged(&self, view: &View<'_>) -> BTreeSet<String> {
        if !self.judges {
            return BTreeSet::new();
        }
        let names = view.pods.pods.iter().map(|pod| pod.name.clone());
        names.filter(|name| !self.unjudged.contains(name)).collect()
    }

    /// Whether the pinned maps are those that this process fills, because the plugin and the next
    /// agent use the pins.
    pub fn is_pinned(&self) -> bool {
        maps::ids(&self.pins).is_ok_and(|ids| ids == self.map_ids)
    }

    /// Whether a program, a pin or the configuration is missing or changed.
    pub fn is_disturbed(&mut self) -> bool {
        if !self.is_pinned() || self.live.lock().maps.config().ok().flatten() != self.config {
            return true;
        }
        let programs = &mut self.programs;
        let left_out = &self.left_out;
        let mut sites = self
            .sites
            .iter()
            .filter(|site| !site.is_pod() || !left_out.contains_key(&site.interface));
        !sites.all(|site| {
            programs
                .presence(site.hook, &site.interface, site.ifindex)
                .is_ok_and(|presence| presence.ours)
        })
    }

    /// See [`super::FastPath::is_surprised`].
    pub async fn is_surprised(&mut self) -> bool {
        let others_wrote = self.live.lock().maps.look_at_peers().unwrap_or(true);
        let pods_differ = self.pods_differ().unwrap_or(true);
        let ipsec = match &self.traffic {
            Some(traffic) => ipsec(traffic).await,
            None => None,
        };
        others_wrote || pods_differ || ipsec != self.ipsec
    }

    /// Whether the entries of pods differ from those that were written last.
    fn pods_differ(&self) -> Result<bool, Error> {
        let now = self.live.lock().maps.known_pods()?;
        Ok((&now.endpoints, &now.pods) != (&self.written.endpoints, &self.written.pods))
    }

    /// See [`super::FastPath::ways_changed`].
    pub fn ways_changed(&self) -> Arc<Notify> {
        self.follower.changed()
    }

    /// Prepares the maps for the coming changes of the kernel path.
    pub fn prepare(&mut self, view: &View<'_>) -> Result<(), Error> {
        let live = self.live.clone();
        let maps = &mut live.lock().maps;
        let Some(config) = maps.config()? else {
            return Ok(());
        };
        let pods = local_pods(&view.pods.pods, |_| false);
        let (mut tables, _) =
            tables::desired(&table_input(view, MacAddr::default(), view.peers, pods));
        // A newcomer answers as soon as the kernel has a route to the newcomer. Until its subnet is
        // in the table, a source without an entry may be the newcomer's.
        if maps.admit(&tables)? {
            self.write(
                maps,
                Config {
                    flags: config.flags & !CONFIG_PEERS_COMPLETE,
                    ..config
                },
            )?;
        }
        if tables
            .config
            .is_none_or(|new| new.peer_mask != config.peer_mask)
        {
            // The entries of the old mask are used until the new mask is in force.
            (tables.peers, tables.vteps) = maps.known_peers()?;
        }
        maps.retire(&tables)?;
        Ok(())
    }

    /// Attaches the programs to their hooks and fills the maps with the destinations that the
    /// kernel path serves.
    pub async fn carry_out(
        &mut self,
        view: &mut View<'_>,
        backing: &Backing<'_>,
    ) -> Result<(), Error> {
        let kernel = view.kernel;
        self.judges = false;
        if backing.outlets.is_empty() {
            self.sites.clear();
            return self.deactivate();
        }
        let live = self.live.clone();
        let mut known = live.lock().maps.known_pods()?;
        self.second_look(view, &known).await;
        self.sites = sites(view, backing.outlets);
        if !self.carries {
            // VXLAN that the kernel decapsulates passes the guard in any case, and is judged there.
            self.sites.retain(|site| site.hook == Hook::PodIn);
            self.deactivate()?;
        }
        if self.programs.mechanism() == Mechanism::Clsact {
            let filters = self.filters(kernel).await;
            self.programs.note_filters(filters);
        }
        let mut gap = view.hindrance.is_some()
            || known
                .config
                .is_none_or(|config| config.flags & CONFIG_ACTIVE == 0);
        for site in self.sites.clone() {
            let ours = self.presence(&site).is_ok_and(|presence| presence.ours);
            if !site.is_pod() {
                gap |= !ours;
            } else if !ours {
                // The stack may send the pod packets that no program of ours sees, so the pod
                // becomes a newcomer again.
                live.lock().maps.hold_device(site.ifindex)?;
                known.endpoints.remove(&site.ifindex);
            }
        }
        if gap {
            self.deactivate()?;
        }
        let foreign = self.attach()?;

        let mut input = self.input(view, backing, &foreign).await;
        if !gap && self.carries {
            input.flags |= CONFIG_ACTIVE;
        }
        let ways = self.find_ways(kernel, &mut input).await;
        let Some((tables, newcomers)) = self.fill(&mut input, &known)? else {
            return Ok(());
        };
        // While hindered, the flows are not read: the return of the fast path counts as a gap.
        let is_hindered = view.hindrance.is_some() || !self.carries;
        if (gap || newcomers) && !is_hindered {
            // While packets passed through the stack, flows may have been translated unseen.
            let network = view.settings.network();
            if gap {
                flows::rebuild(&live, network).await?;
            } else {
                flows::heal(&live, network).await?;
            }
            self.flows_checked = Instant::now();
        }
        live.lock().maps.fill_pods(&tables)?;
        self.judges = true;
        self.unjudged = self.unjudged_pods(view, &tables);
        self.written = tables;
        let config = self.written.config;
        if let Some(config) = config.filter(|_| gap && !is_hindered) {
            let flags = config.flags | CONFIG_ACTIVE;
            self.write(&mut live.lock().maps, Config { flags, ..config })?;
            tracing::info!("fast path active");
        }
        if self.carries || view.settings.flags.node.xdp == Xdp::On {
            self.refuse_early(view).await;
        }
        self.forget_gone()?;
        ways.map_err(Error::Ways)
    }

    /// The pods without a program of ours, or without an entry in the tables.
    fn unjudged_pods(&self, view: &View<'_>, tables: &Snapshot<V4>) -> BTreeSet<String> {
        let is_judged = |pod: &&PodLink| {
            !self.left_out.contains_key(&pod.name) && tables.endpoints.contains_key(&pod.ifindex)
        };
        let pods = view.pods.pods.iter().filter(|pod| !is_judged(pod));
        pods.map(|pod| pod.name.clone()).collect()
    }

    /// Whether the flows have to be compared with connection tracking. No comparison is needed
    /// where there are no flows, and pods have not sent to addresses of the network that no table
    /// lists. Services may have such addresses, and one translation in 32,768 is not seen.
    fn flows_are_due(&mut self) -> Result<bool, Error> {
        if self.flows_checked.elapsed() < FLOWS_RESYNC {
            return Ok(false);
        }
        let maps = &mut self.live.lock().maps;
        let mut packets = 0;
        for verdict in [Verdict::UnknownPod, Verdict::UnknownPeer] {
            packets += maps.counter(Hook::PodIn, verdict)?.packets;
        }
        let is_news = std::mem::replace(&mut self.unlisted_packets, packets) != packets;
        self.flows_checked = Instant::now();
        Ok(maps.has_flows()? || is_news)
    }

    /// Compares the flows with connection tracking, if a comparison is due.
    pub async fn heal_flows(&mut self, network: IpNet) -> Result<(), Error> {
        if self.carries && self.flows_are_due()? {
            flows::heal(&self.live, network).await?;
        }
        Ok(())
    }

    /// Renews the programs' trust in the list of leases.
    pub fn keep_leases(&self) -> Result<(), Error> {
        self.live.lock().keep_leases(self.leases_outlive_us)
    }

    /// Leaves every packet to the kernel; refusals continue.
    pub fn deactivate(&mut self) -> Result<(), Error> {
        if let Some(config) = self.live.lock().maps.deactivate()? {
            self.config = Some(config);
        }
        Ok(())
    }

    fn write(&mut self, maps: &mut Maps<V4>, config: Config<V4>) -> Result<(), Error> {
        maps.set_config(&config)?;
        self.config = Some(config);
        Ok(())
    }
}
