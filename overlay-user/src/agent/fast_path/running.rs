//! The fast path while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::flags::{Aggregates, Attach, NodeFlags};
use crate::datapath::Error;
use crate::datapath::maps::{self, Maps};
use crate::datapath::object;
use crate::datapath::pins::Pins;
use crate::datapath::probe::Probes;
use crate::datapath::programs::{Attachment, Programs};
use crate::datapath::tables::{Node as TablesOf, Omission, Tables};
use crate::kernel::nic::Nic;
use crate::kernel::{Kernel, sysctl};
use crate::mac::MacAddr;
use overlay_common::schema::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT, Config,
    Heartbeat,
};
use overlay_common::{Hook, V4, Verdict};

use super::ways::Ways;
use super::{Backing, View};
use crate::agent::flows;
use hooks::{Site, sites};
use wanted::{local_pods, tables_of, watch_newcomers};

mod hooks;
mod wanted;

/// How often the remembered flows are compared with connection tracking.
const FLOWS_RESYNC: Duration = Duration::from_secs(20);
/// How long the programs trust next hops after a sign of life of the agent.
const TRUST: Duration = Duration::from_secs(5);
/// How often stale next hops are confirmed: about when the kernel would, were the packets its own
/// (`delay_first_probe_time`).
const CONFIRM: Duration = Duration::from_secs(5);

/// A loaded fast path.
pub struct Running {
    programs: Programs,
    /// Where the programs are from, if they are not this build's own.
    pub foreign_programs: Option<String>,
    maps: Maps<V4>,
    /// What the maps were made from, as of the last round.
    node: Option<TablesOf>,
    pins: Pins,
    /// The kernel's ids of the maps.
    map_ids: Vec<u32>,
    /// What was written last.
    config: Option<Config<V4>>,
    /// Where programs have to sit, as of the last round.
    sites: Vec<Site>,
    /// Pods that programs could not be attached to, and why: the kernel path serves them.
    pub left_out: BTreeMap<String, String>,
    /// What the tables have no room or form for, for people.
    pub omissions: Option<String>,
    /// Where hostile VXLAN is refused early; or why nowhere.
    pub early: Result<Nic, String>,
    /// How the peers are reached.
    pub ways: Ways,
    flows_checked: Instant,
    /// Whether another VXLAN device has the same UDP port.
    shares_port: bool,
    next_hops_confirmed: Instant,
    /// See [`Running::has_unlisted_traffic`].
    unlisted_packets: u64,
    /// How long the list of leases holds without an agent; for ever where there is none.
    leases_outlive_us: Option<Duration>,
}

impl Running {
    /// Probes this kernel, loads the programs and takes over what is pinned.
    pub fn start(pins: &Pins, flags: &NodeFlags) -> Result<Self, String> {
        let attachment = match (flags.attach, Probes::run().verdict()?) {
            (Attach::Tcx, Attachment::Clsact) => {
                return Err("this kernel has no tcx (Linux 6.6 has): leave --attach out".to_owned());
            }
            (Attach::Clsact, _) => Attachment::Clsact,
            (Attach::Tcx | Attach::Auto, best) => best,
        };
        let object = object::read(flags.programs.as_deref()).map_err(|error| error.to_string())?;
        let (programs, misfits) =
            Programs::load(&object.bytes, pins, attachment, flags.log_refused)
                .map_err(|error| error.to_string())?;
        for misfit in misfits {
            tracing::warn!("{misfit}");
        }
        // A packet meets each program once.
        let others = match attachment {
            Attachment::Tcx => Programs::detach_filters(),
            Attachment::Clsact => Programs::detach_links(pins, |hook| hook != Hook::NetXdp),
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
        let map_ids = maps::ids(pins).map_err(|error| error.to_string())?;
        tracing::info!(?attachment, pins = %pins.root().display(), "fast path loaded");
        if let Some(note) = &object.note {
            tracing::warn!("the programs are not this build's own: {note}");
        }
        Ok(Self {
            programs,
            foreign_programs: object.note,
            maps,
            node: None,
            pins: pins.clone(),
            map_ids,
            config: None,
            sites: Vec::new(),
            left_out: BTreeMap::new(),
            omissions: None,
            early: Err("not decided yet".to_owned()),
            ways: Ways::default(),
            flows_checked: Instant::now(),
            shares_port: false,
            next_hops_confirmed: Instant::now(),
            unlisted_packets: 0,
            leases_outlive_us: Some(flags.refuse_without_agent).filter(|time| !time.is_zero()),
        })
    }

    /// Whether the pinned maps are those that we fill: the plugin and the next agent go by the pins.
    pub fn is_pinned(&self) -> bool {
        maps::ids(&self.pins).is_ok_and(|ids| ids == self.map_ids)
    }

    pub fn is_disturbed(&mut self) -> bool {
        if !self.is_pinned() || self.maps.config().ok().flatten() != self.config {
            return true;
        }
        let programs = &mut self.programs;
        !self.sites.iter().all(|site| {
            programs
                .presence(site.hook, &site.interface, site.ifindex)
                .is_ok_and(|presence| presence.ours)
        })
    }

    pub fn prepare(&mut self, view: &View<'_>) -> Result<(), Error> {
        let Some(config) = self.maps.config()? else {
            return Ok(());
        };
        let pods = local_pods(&view.pods.pods, |_| false);
        let (mut tables, _) = Tables::of(&tables_of(view, MacAddr::default(), view.peers, pods));
        // A newcomer answers as soon as the kernel has a route to it. Until its subnet is in the table, a source
        // that is not there may be its.
        if self.maps.admit(&tables)? {
            self.write(Config {
                flags: config.flags & !CONFIG_PEERS_COMPLETE,
                ..config
            })?;
        }
        if tables
            .config
            .is_none_or(|new| new.peer_mask != config.peer_mask)
        {
            // The entries of the old mask answer until the new one is in force.
            let current = self.maps.tables()?;
            tables.peers = current.peers;
            tables.vteps = current.vteps;
        }
        self.maps.retire(&tables)?;
        Ok(())
    }

    pub async fn round(&mut self, view: &View<'_>, backing: &Backing<'_>) -> Result<(), Error> {
        let kernel = view.kernel;
        let Some((device_ifindex, mac)) = backing.device else {
            return self.deactivate();
        };
        self.sites = sites(view, device_ifindex);
        if self.programs.attachment() == Attachment::Clsact {
            let filters = self.filters(kernel).await;
            self.programs.note_filters(filters);
        }
        let mut known = self.maps.tables()?;
        let mut gap = known
            .config
            .is_none_or(|config| config.flags & CONFIG_ACTIVE == 0);
        for site in self.sites.clone() {
            let ours = self.presence(&site).is_ok_and(|presence| presence.ours);
            if !site.is_pod() {
                gap |= !ours;
            } else if !ours {
                // The stack may send it what no program of ours sees: it starts again as a newcomer.
                self.maps.hold_device(site.ifindex)?;
                known.endpoints.remove(&site.ifindex);
            }
        }
        if gap {
            self.deactivate()?;
        }
        let foreign = self.attach()?;

        let pods = view
            .pods
            .pods
            .iter()
            .filter(|pod| !self.left_out.contains_key(&pod.name));
        let pods = local_pods(pods, |ifindex| foreign.contains(&ifindex));
        let mut node = tables_of(view, mac, backing.peers, pods);
        node.source_ports = sysctl::local_port_range().unwrap_or(node.source_ports);
        // Where the kernel does not tell, what it told last holds.
        if let Ok(others) = kernel.other_vnis(&view.node.device, node.port).await {
            self.shares_port = !others.is_empty();
        }
        node.flags = if self.shares_port {
            CONFIG_SHARED_PORT
        } else {
            0
        };
        if view.node.flags.node.aggregates == Aggregates::Kernel {
            node.flags |= CONFIG_AGGREGATES_TO_KERNEL;
        }
        let backed: BTreeSet<_> = backing.peers.iter().map(|peer| peer.subnet).collect();
        node.unserved = view
            .peers
            .iter()
            .filter(|peer| !backed.contains(&peer.subnet))
            .cloned()
            .collect();
        if !gap {
            node.flags |= CONFIG_ACTIVE;
        }
        self.ways.find(kernel, &mut node).await;
        let (tables, omissions) = Tables::of(&node);
        self.node = Some(node);
        let omissions = Omission::summary(&omissions);
        if omissions != self.omissions {
            if let Some(text) = &omissions {
                tracing::warn!("{text}");
            }
            self.omissions = omissions;
        }
        let Some(config) = tables.config else {
            return Ok(());
        };
        // A newcomer may have talked with Services before it was watched: it is left to the kernel, and watched
        // from now on, until the flows that it has by then are known.
        let (watched, newcomers) = watch_newcomers(&tables, &known);
        // Narrow the mask last: until then the old entries answer for the old mask.
        if self.maps.fill(&watched).is_err() {
            // Old and new together may be too many: without the old, then, while the kernel has everything.
            self.write(Config {
                flags: config.flags & CONFIG_SHARED_PORT,
                ..config
            })?;
            self.maps.retire(&tables)?;
            self.maps.fill(&watched)?;
        }
        self.tell_of_life()?;
        self.write(config)?;
        self.maps.retire(&tables)?;
        if gap || newcomers {
            // While packets went by the stack, flows may have been translated unseen.
            let network = view.node.config.network();
            if gap {
                flows::rebuild(&mut self.maps, network).await?;
            } else {
                flows::heal(&mut self.maps, network).await?;
            }
            self.maps.fill(&tables)?;
            self.flows_checked = Instant::now();
        }
        let has_flows = self.maps.has_flows()?;
        if gap {
            self.write(Config {
                flags: config.flags | CONFIG_ACTIVE,
                ..config
            })?;
            tracing::info!("fast path active");
        } else if self.flows_checked.elapsed() >= FLOWS_RESYNC {
            if self.has_unlisted_traffic()? || has_flows {
                flows::heal(&mut self.maps, view.node.config.network()).await?;
            }
            self.flows_checked = Instant::now();
        }
        self.refuse_early(view).await;
        let (sites, early) = (&self.sites, &self.early);
        let gone = self.programs.forget_gone(|hook, ifindex| {
            if hook == Hook::NetXdp {
                return early.as_ref().is_ok_and(|nic| nic.ifindex == ifindex);
            }
            sites
                .iter()
                .any(|site| site.hook == hook && site.ifindex == ifindex)
        })?;
        if gone > 0 {
            tracing::debug!(links = gone, "links of gone devices removed");
        }
        Ok(())
    }

    pub async fn beat(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        self.tell_of_life()?;
        if self.next_hops_confirmed.elapsed() < CONFIRM {
            return Ok(());
        }
        self.next_hops_confirmed = Instant::now();
        let Some(node) = &self.node else {
            return Ok(());
        };
        Ok(self.ways.confirm(kernel, node.underlay_ifindex).await?)
    }

    pub async fn refresh_next_hops(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        if self.ways.follow(kernel, node).await {
            let (tables, _) = Tables::of(node);
            // Of the pods, this node is as old as the last round: one may be gone, and taken out, since.
            self.maps.fill_peers(&tables)?;
        }
        Ok(())
    }

    /// Whether pods have sent to addresses of the network that no table lists since this was asked
    /// last. Services may have such addresses, and one translation in 32,768 goes unseen.
    fn has_unlisted_traffic(&mut self) -> Result<bool, Error> {
        let mut packets = 0;
        for verdict in [Verdict::UnknownPod, Verdict::UnknownPeer] {
            packets += self.maps.counter(Hook::PodIn, verdict)?.packets;
        }
        Ok(std::mem::replace(&mut self.unlisted_packets, packets) != packets)
    }

    /// Tells the programs that the tables are kept.
    fn tell_of_life(&mut self) -> Result<(), Error> {
        let now = maps::now_ns();
        let after =
            |time: Duration| now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.maps.set_heartbeat(Heartbeat {
            next_hops_until_ns: after(TRUST),
            leases_until_ns: self.leases_outlive_us.map_or(u64::MAX, after),
        })
    }

    /// Leaves every packet to the kernel; refusals go on.
    fn deactivate(&mut self) -> Result<(), Error> {
        match self.maps.config()? {
            Some(config) => self.write(Config {
                flags: config.flags & !CONFIG_ACTIVE,
                ..config
            }),
            None => Ok(()),
        }
    }

    fn write(&mut self, config: Config<V4>) -> Result<(), Error> {
        self.maps.set_config(&config)?;
        self.config = Some(config);
        Ok(())
    }
}
