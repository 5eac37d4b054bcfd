//! One round of the fast path: programs on their hooks, then the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use overlay_common::schema::{CONFIG_ACTIVE, CONFIG_SHARED_PORT, Config};
use overlay_common::vxlan::OVERHEAD;
use overlay_common::{Hook, V4};
use overlay_user::backend::Peer;
use overlay_user::config::flags::FastPath as Wanted;
use overlay_user::datapath::Error;
use overlay_user::datapath::maps::Maps;
use overlay_user::datapath::pins::Pins;
use overlay_user::datapath::probe::Probes;
use overlay_user::datapath::programs::Programs;
use overlay_user::datapath::tables::{LocalPod, Node as TablesOf, Tables, Way};
use overlay_user::kernel::interface::Underlay;
use overlay_user::kernel::pods::PodLinks;
use overlay_user::kernel::{Kernel, sysctl};
use overlay_user::mac::MacAddr;

use crate::flows;
use crate::health::Report;
use crate::node::Node;

/// How long to wait before a fast path that would not load is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How often the remembered flows are compared with connection tracking.
const FLOWS_RESYNC: Duration = Duration::from_secs(20);
/// How long the programs trust next hops after a sign of life of the agent.
const TRUST: Duration = Duration::from_secs(5);
/// How often stale next hops are confirmed: about when the kernel would, were the packets its own
/// (`delay_first_probe_time`).
const CONFIRM: Duration = Duration::from_secs(5);

/// A round's view of the node.
pub struct View<'a> {
    /// What does not change.
    pub node: &'a Node,
    /// The underlay's device.
    pub underlay: &'a Underlay,
    /// This node's subnet.
    pub subnet: IpNet,
    /// Longest inner packet that fits the underlay.
    pub mtu: u32,
    /// The pods.
    pub pods: &'a PodLinks,
}

/// The fast path between rounds.
pub enum FastPath {
    /// Not wanted; what an earlier agent left is taken off in the first round.
    Off {
        /// Whether that has been done.
        removed: bool,
    },
    /// Not running: not tried yet, or why not.
    Down {
        /// When it was tried, and what came of it.
        tried: Option<(Instant, String)>,
    },
    /// Running.
    Up(Box<Running>),
}

/// A loaded fast path.
pub struct Running {
    programs: Programs,
    maps: Maps<V4>,
    /// What the maps were made from, as of the last round.
    node: Option<TablesOf>,
    /// Where programs have to sit, as of the last round.
    sites: Vec<Site>,
    flows_checked: Instant,
    next_hops_confirmed: Instant,
}

/// A hook on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Site {
    hook: Hook,
    interface: String,
    ifindex: u32,
}

impl FastPath {
    /// As the flags want it; nothing is done yet.
    pub fn new(node: &Node) -> Self {
        match node.flags.node.fast_path {
            Wanted::Off => Self::Off { removed: false },
            Wanted::Auto => Self::Down { tried: None },
        }
    }

    /// Whether a program of ours is missing somewhere, for which the kernel sends no event.
    pub fn is_disturbed(&mut self) -> bool {
        match self {
            Self::Up(running) => running.is_disturbed(),
            _ => false,
        }
    }

    /// Tells the programs that the agent lives, and keeps next hops confirmed that the fast path uses unseen by
    /// the neighbour table.
    pub async fn beat(&mut self, kernel: &Kernel) {
        if let Self::Up(running) = self
            && let Err(error) = running.beat(kernel).await
        {
            tracing::warn!("follow the next hops: {error:#}");
        }
    }

    /// Follows a change of the underlay's neighbours.
    pub async fn refresh_next_hops(&mut self, kernel: &Kernel) {
        if let Self::Up(running) = self
            && let Err(error) = running.refresh_next_hops(kernel).await
        {
            tracing::warn!("follow the next hops: {error:#}");
        }
    }

    /// Takes out of the maps what is going to leave the kernel.
    pub fn retire(&mut self, view: &View<'_>, peers: &[Peer], report: &mut Report) {
        if let Self::Up(running) = self
            && let Err(error) = running.retire(view, peers)
        {
            report.problem("fast path", error.to_string());
        }
    }

    /// Puts programs on their hooks and fills the maps.
    pub async fn round(
        &mut self,
        view: &View<'_>,
        device: Option<(u32, MacAddr)>,
        served: &[Peer],
        kernel: &Kernel,
        report: &mut Report,
    ) {
        match self {
            Self::Off { removed } => {
                if !*removed {
                    match take_off(&view.node.pins) {
                        Ok(()) => *removed = true,
                        Err(error) => report.problem("fast path", error.to_string()),
                    }
                }
                report.note("fast path", "off: the kernel path carries everything");
                return;
            }
            Self::Down { tried } => {
                if tried
                    .as_ref()
                    .is_none_or(|(when, _)| when.elapsed() >= RETRY)
                {
                    match Running::start(&view.node.pins) {
                        Ok(running) => *self = Self::Up(Box::new(running)),
                        Err(error) => {
                            if tried.as_ref().is_none_or(|(_, last)| *last != error) {
                                tracing::warn!("the kernel path carries everything: {error}");
                            }
                            *tried = Some((Instant::now(), error));
                        }
                    }
                }
                if let Self::Down {
                    tried: Some((_, error)),
                } = self
                {
                    report.note("fast path", format!("down: {error}"));
                }
            }
            Self::Up(_) => {}
        }
        if let Self::Up(running) = self
            && let Err(error) = running.round(view, device, served, kernel).await
        {
            report.problem("fast path", error.to_string());
        }
    }
}

/// Takes the programs off their hooks, then the maps.
pub fn take_off(pins: &Pins) -> Result<(), Error> {
    let detached = Programs::detach_all(pins)?;
    if detached > 0 {
        tracing::info!(programs = detached, "fast path taken off");
    }
    pins.remove_all()
}

impl Running {
    /// Probes this kernel, loads the programs and takes over what is pinned.
    fn start(pins: &Pins) -> Result<Self, String> {
        let attachment = Probes::run().verdict()?;
        let (programs, misfits) =
            Programs::load(pins, attachment).map_err(|error| error.to_string())?;
        for misfit in misfits {
            tracing::warn!("{misfit}");
        }
        let maps = Maps::open(pins).map_err(|error| error.to_string())?;
        // Connection tracking sees halves of connections when some packets take the fast path and some do not.
        if let Err(error) = sysctl::be_liberal_with_tcp() {
            tracing::debug!("{error}");
        }
        tracing::info!(?attachment, pins = %pins.root().display(), "fast path loaded");
        Ok(Self {
            programs,
            maps,
            node: None,
            sites: Vec::new(),
            flows_checked: Instant::now(),
            next_hops_confirmed: Instant::now(),
        })
    }

    fn is_disturbed(&mut self) -> bool {
        let programs = &mut self.programs;
        !self.sites.iter().all(|site| {
            programs
                .presence(site.hook, &site.interface, site.ifindex)
                .is_ok_and(|presence| presence.ours)
        })
    }

    fn retire(&mut self, view: &View<'_>, peers: &[Peer]) -> Result<(), Error> {
        let Some(config) = self.maps.config()? else {
            return Ok(());
        };
        let pods = local_pods(view.pods, |_| false);
        let (mut tables, _) = Tables::of(&tables_of(view, MacAddr::default(), peers, pods));
        if tables
            .config
            .is_none_or(|new| new.peer_mask != config.peer_mask)
        {
            // The entries of the old mask answer until the new one is in force.
            let current = self.maps.dump()?;
            tables.peers = current.peers;
            tables.vteps = current.vteps;
        }
        self.maps.retire(&tables)?;
        Ok(())
    }

    async fn round(
        &mut self,
        view: &View<'_>,
        device: Option<(u32, MacAddr)>,
        served: &[Peer],
        kernel: &Kernel,
    ) -> Result<(), Error> {
        let Some((device_ifindex, mac)) = device else {
            return self.deactivate();
        };
        self.sites = sites(view, device_ifindex);
        let known = self.maps.dump()?;
        let mut gap = known
            .config
            .is_none_or(|config| config.flags & CONFIG_ACTIVE == 0);
        for site in &self.sites {
            let presence = self
                .programs
                .presence(site.hook, &site.interface, site.ifindex)?;
            // A pod that is not in the maps yet has no flows that could have been missed.
            let is_new_pod = matches!(site.hook, Hook::PodIn | Hook::PodOut)
                && !known.endpoints.contains_key(&site.ifindex);
            gap |= !presence.ours && !is_new_pod;
        }
        if gap {
            self.deactivate()?;
        }
        let mut foreign = Vec::new();
        for site in self.sites.clone() {
            self.programs
                .attach(site.hook, &site.interface, site.ifindex)?;
            let presence = self
                .programs
                .presence(site.hook, &site.interface, site.ifindex)?;
            if presence.foreign {
                foreign.push(site.ifindex);
            }
        }

        let pods = local_pods(view.pods, |ifindex| foreign.contains(&ifindex));
        let mut node = tables_of(view, mac, served, pods);
        node.source_ports = sysctl::local_port_range().unwrap_or(node.source_ports);
        let shared = !kernel
            .other_vnis(&view.node.device, node.port)
            .await
            .unwrap_or_default()
            .is_empty();
        node.flags = if shared { CONFIG_SHARED_PORT } else { 0 };
        if !gap {
            node.flags |= CONFIG_ACTIVE;
        }
        lead(kernel, &mut node).await;
        let (tables, omissions) = Tables::of(&node);
        self.node = Some(node);
        for omission in omissions {
            tracing::warn!("{omission}");
        }
        let Some(config) = tables.config else {
            return Ok(());
        };
        // Narrow the mask last: until then the old entries answer for the old mask.
        self.maps.fill(&tables)?;
        self.maps.set_config(&config)?;
        self.maps.retire(&tables)?;
        if gap {
            // While everything went by the stack, flows may have been translated unseen.
            flows::rebuild(&mut self.maps, view.node.config.network()).await?;
            self.maps.set_config(&Config {
                flags: config.flags | CONFIG_ACTIVE,
                ..config
            })?;
            self.flows_checked = Instant::now();
            tracing::info!("fast path active");
        } else if self.flows_checked.elapsed() >= FLOWS_RESYNC {
            flows::heal(&mut self.maps, view.node.config.network()).await?;
            self.flows_checked = Instant::now();
        }
        let sites = &self.sites;
        let gone = self.programs.forget_gone(|hook, ifindex| {
            sites
                .iter()
                .any(|site| site.hook == hook && site.ifindex == ifindex)
        })?;
        if gone > 0 {
            tracing::debug!(links = gone, "links of gone devices removed");
        }
        Ok(())
    }

    async fn beat(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        let until = flows::now_ns() + u64::try_from(TRUST.as_nanos()).unwrap_or(0);
        self.maps.set_heartbeat(until)?;
        if self.next_hops_confirmed.elapsed() < CONFIRM {
            return Ok(());
        }
        self.next_hops_confirmed = Instant::now();
        let Some(node) = &self.node else {
            return Ok(());
        };
        for path in kernel
            .paths(node.underlay_ifindex, vteps(node))
            .await?
            .values()
        {
            if path.is_stale {
                kernel
                    .confirm_neighbour(node.underlay_ifindex, path.next_hop)
                    .await?;
            }
        }
        Ok(())
    }

    async fn refresh_next_hops(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        lead(kernel, node).await;
        let (tables, _) = Tables::of(node);
        self.maps.fill(&tables)?;
        Ok(())
    }

    /// Leaves every packet to the kernel; refusals go on.
    fn deactivate(&mut self) -> Result<(), Error> {
        match self.maps.config()? {
            Some(config) if config.flags & CONFIG_ACTIVE != 0 => self.maps.set_config(&Config {
                flags: config.flags & !CONFIG_ACTIVE,
                ..config
            }),
            _ => Ok(()),
        }
    }
}

/// Finds the ways to the peers. Where that fails, the kernel looks the next hop up packet by packet.
async fn lead(kernel: &Kernel, node: &mut TablesOf) {
    let paths = match kernel.paths(node.underlay_ifindex, vteps(node)).await {
        Ok(paths) => paths,
        Err(error) => {
            tracing::debug!("look for next hops: {error}");
            BTreeMap::new()
        }
    };
    match kernel.device_mac(node.underlay_ifindex).await {
        Ok(Some(mac)) => node.underlay_mac = mac,
        _ => node.underlay_mac = MacAddr::default(),
    }
    let has_mac = node.underlay_mac != MacAddr::default();
    for (peer, way) in &mut node.peers {
        let path = paths.get(&peer.vtep);
        way.next_hop = path.and_then(|path| path.mac).filter(|_| has_mac);
        if let Some(mtu) = path.and_then(|path| path.mtu) {
            way.mtu = way.mtu.min(mtu.saturating_sub(OVERHEAD));
        }
    }
}

fn vteps(node: &TablesOf) -> BTreeSet<IpAddr> {
    node.peers.iter().map(|(peer, _)| peer.vtep).collect()
}

/// Where programs have to sit.
fn sites(view: &View<'_>, device_ifindex: u32) -> Vec<Site> {
    let site = |hook, interface: &str, ifindex| Site {
        hook,
        interface: interface.to_owned(),
        ifindex,
    };
    let mut sites = vec![
        site(Hook::NetIn, &view.underlay.name, view.underlay.ifindex),
        site(Hook::VtepOut, &view.node.device, device_ifindex),
    ];
    for pod in &view.pods.pods {
        sites.push(site(Hook::PodIn, &pod.name, pod.ifindex));
        sites.push(site(Hook::PodOut, &pod.name, pod.ifindex));
    }
    sites
}

fn local_pods(pods: &PodLinks, has_foreign_program: impl Fn(u32) -> bool) -> Vec<LocalPod> {
    let local = |pod: &overlay_user::kernel::pods::PodLink| LocalPod {
        ifindex: pod.ifindex,
        address: pod.note.address,
        mac: pod.note.mac,
        mtu: pod.mtu,
        kernel_path: pod.has_foreign_qdisc || has_foreign_program(pod.ifindex),
    };
    pods.pods.iter().filter(|pod| pod.up).map(local).collect()
}

fn tables_of(view: &View<'_>, mac: MacAddr, peers: &[Peer], pods: Vec<LocalPod>) -> TablesOf {
    TablesOf {
        network: view.node.config.network(),
        subnet: view.subnet,
        underlay_ifindex: view.underlay.ifindex,
        vtep: view.underlay.public_address,
        vtep_mac: mac,
        bridge_mac: view
            .pods
            .bridge
            .as_ref()
            .map(|bridge| bridge.mac)
            .unwrap_or_default(),
        vni: view.node.config.vxlan.vni,
        port: view.node.config.vxlan.port,
        source_ports: (32768, 60999),
        flags: 0,
        underlay_mac: MacAddr::default(),
        peers: peers
            .iter()
            .map(|peer| {
                (
                    peer.clone(),
                    Way {
                        mtu: view.mtu,
                        next_hop: None,
                    },
                )
            })
            .collect(),
        pods,
    }
}
