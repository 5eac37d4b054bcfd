//! Rounds: look at what should be and what is, and apply the difference.
//!
//! Any change (a lease, a pod, a netlink event) only starts a round; what to do follows from the state alone,
//! so a lost event costs time, never correctness.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::{self, Peer};
use crate::kernel::Kernel;
use crate::kernel::interface::Underlay;
use crate::kernel::monitor::{Event, Monitor};
use crate::kernel::pods::BRIDGE;
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::observe::agent_file::AgentFile;
use crate::store::{LeaseState, Store};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::agent::fast_path::{Backing, FastPath, View};
use crate::agent::health::{Health, Report};
use crate::agent::kernel_path::{KernelPath, guard_state};
use crate::agent::node::{Node, Start, attributes};

/// Changes come in bursts; a round waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(20);
/// At least this long from round to round, or from look to look at the next hops, however many events there are.
const PAUSE: Duration = Duration::from_millis(100);
/// How often everything is looked at without any event.
const RESYNC: Duration = Duration::from_secs(5);
/// How often what sends no events is looked at: programs, pins, sysctls, the subnet file.
const TICK: Duration = Duration::from_secs(1);

/// The agent's state between rounds.
pub struct Reconciler {
    node: Node,
    store: Arc<Store>,
    leases: watch::Receiver<LeaseState>,
    kernel: Kernel,
    kernel_path: KernelPath,
    fast_path: FastPath,
    health: Health,
    underlay: Underlay,
    /// The prefixes of the underlay's device, as of the last round.
    on_link: Vec<IpNet>,
    lease: Lease,
    mac: MacAddr,
    file: AgentFile,
    /// The peers of the last round: a newcomer cannot push them out.
    accepted: Vec<Peer>,
    announced: bool,
}

impl Reconciler {
    /// A reconciler that has not done anything yet.
    pub fn new(
        node: Node,
        start: Start,
        kernel: Kernel,
        store: Arc<Store>,
        health: Health,
    ) -> Self {
        Self {
            leases: store.subscribe(),
            kernel_path: KernelPath::default(),
            fast_path: FastPath::new(&node),
            node,
            store,
            kernel,
            health,
            underlay: start.underlay,
            on_link: Vec::new(),
            lease: start.lease,
            mac: start.mac,
            file: start.file,
            accepted: Vec::new(),
            announced: false,
        }
    }

    /// Rounds until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut monitor = Monitor::subscribe()?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_round = Instant::now();
        // Due at once, and again whenever something changes.
        let mut due = Some(Instant::now());
        let mut next_hops_due = None;
        let mut last_look = last_round;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = when(due) => {
                    self.kernel.look();
                    // A round may be left at any point, as when the agent is killed: the next agent's puts it right.
                    tokio::select! {
                        () = cancel.cancelled() => return Ok(()),
                        () = self.round() => {}
                    }
                    self.kernel.look_away();
                    last_round = Instant::now();
                    due = None;
                }
                event = monitor.next() => match event? {
                    Event::Neighbour(ifindex) if ifindex == self.underlay.ifindex => {
                        next_hops_due = next_hops_due.or_else(|| Some((Instant::now() + SETTLE).max(last_look + PAUSE)));
                    }
                    event if self.matters(event) => {
                        due = due.or_else(|| Some((Instant::now() + SETTLE).max(last_round + PAUSE)));
                    }
                    _ => {}
                },
                () = when(next_hops_due) => {
                    self.fast_path.refresh_next_hops(&self.kernel).await;
                    last_look = Instant::now();
                    next_hops_due = None;
                }
                changed = self.leases.changed() => {
                    changed?;
                    due = due.or_else(|| Some((Instant::now() + SETTLE).max(last_round + PAUSE)));
                }
                _ = tick.tick() => {
                    self.fast_path.beat(&self.kernel).await;
                    if last_round.elapsed() >= RESYNC
                        || self.kernel_path.is_due(&self.node)
                        || self.fast_path.is_disturbed()
                    {
                        due = due.or_else(|| Some(Instant::now()));
                    }
                }
            }
        }
    }

    /// Whether an event can concern us: neighbours of other devices come and go all the time.
    fn matters(&self, event: Event) -> bool {
        match event {
            Event::Neighbour(ifindex) => Some(ifindex) == self.kernel_path.device_ifindex(),
            _ => true,
        }
    }

    async fn round(&mut self) {
        // Its socket can break; without it every round would fail the same way.
        if self.kernel.is_closed() {
            match Kernel::connect() {
                Ok(kernel) => self.kernel = kernel,
                Err(error) => tracing::error!("{error}"),
            }
        }
        let state = self.leases.borrow_and_update().clone();
        if let Some(own) = &state.own {
            if own.subnet != self.lease.subnet {
                tracing::warn!(
                    old = %self.lease.subnet, new = %own.subnet,
                    "this node has another subnet now; pods of the old one keep their addresses until they are made anew"
                );
            }
            self.lease = own.clone();
        }
        let mut report = Report::new(&state, &self.lease);
        self.refresh_underlay(&mut report).await;

        let network = self.node.config.network();
        let (peers, rejected) = backend::peers(
            &network,
            &self.lease,
            &self.on_link,
            &state.leases,
            &self.accepted,
        );
        report.rejected.extend(rejected);
        self.accepted.clone_from(&peers);

        let pods = match self.kernel.pods(BRIDGE).await {
            Ok(pods) => pods,
            Err(error) => {
                report.problem("kernel", format!("list pods: {error}"));
                return self.health.publish(report);
            }
        };
        let mtu = self.node.config.vxlan.mtu.unwrap_or(self.underlay.mtu);
        let desired = self.kernel_path.desired(
            &self.node,
            &self.underlay,
            &self.lease,
            self.mac,
            mtu,
            &peers,
        );

        // What goes, goes from the maps first; what comes, comes to the maps last.
        let mut view = View {
            node: &self.node,
            underlay: &self.underlay,
            subnet: self.lease.subnet,
            mtu: desired.device.mtu,
            pods: &pods,
            peers: &peers,
            kernel: &self.kernel,
        };
        self.fast_path.look(&view);
        let judged = self.fast_path.judged(&view);
        let (kernel, subnet) = (&self.kernel, self.lease.subnet);
        if let Some(state) = guard_state(kernel, &self.node, &desired, subnet, &pods, judged).await
        {
            self.kernel_path.widen_guard(state, &mut report).await;
        }
        self.fast_path.prepare(&view, &mut report);
        let served = self
            .kernel_path
            .round(kernel, &self.node, &desired, subnet, &pods, &mut report)
            .await;
        if let Some(mac) = self.kernel_path.device_mac()
            && mac != self.mac
        {
            tracing::warn!(old = %self.mac, new = %mac, "the device's MAC address was changed; telling the others");
            self.mac = mac;
        }
        match attributes(&self.underlay, self.node.config.vxlan.vni, self.mac) {
            Ok(attributes) => self.store.publish(attributes),
            Err(error) => report.problem("underlay", format!("{error:#}")),
        }
        // What was done so far took its time; a pod may have come or gone, its address with it.
        self.kernel.look();
        let now = match self.kernel.pods(BRIDGE).await {
            Ok(pods) => pods,
            Err(error) => {
                report.problem("kernel", format!("list pods: {error}"));
                return self.health.publish(report);
            }
        };
        view.pods = &now;
        report.pods = view.pods.pods.len();
        let backing = Backing {
            device: self.kernel_path.device(),
            peers: &served,
        };
        self.fast_path.round(&view, &backing, &mut report).await;
        let judged = self.fast_path.judged(&view);
        let guards = match judged.len() {
            0 => "nftables".to_owned(),
            pods => format!("eBPF programs what {pods} pods send, nftables all else"),
        };
        let subnet = self.lease.subnet;
        if let Some(state) =
            guard_state(&self.kernel, &self.node, &desired, subnet, &now, judged).await
        {
            self.kernel_path.narrow_guard(state, &mut report).await;
        }
        report.note("who refuses forged packets", guards);

        self.leave_note(&mut report);

        report.peers = served.len();
        if report.is_ready() && !self.announced {
            self.announced = true;
            tracing::info!(peers = report.peers, pods = report.pods, "ready");
            if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
                tracing::debug!("sd_notify: {error}");
            }
        }
        self.health.publish(report);
    }

    /// Leaves a note for the tools of what the kernel does not show.
    fn leave_note(&mut self, report: &mut Report) {
        let file = AgentFile {
            rejected: report.rejected.iter().map(Into::into).collect(),
            early_refusal: self.fast_path.early_refusal(),
            foreign_programs: self.fast_path.foreign_programs(),
            ..self.file.clone()
        };
        if file == self.file {
            return;
        }
        match file.write(&self.node.flags.node.run_dir) {
            Ok(()) => self.file = file,
            Err(error) => report.problem("note for the tools", error.to_string()),
        }
    }

    /// Follows the underlay's device through renaming and another MTU. Only when it has lost its address is
    /// another chosen: an address or a default route that comes later is no reason to move.
    async fn refresh_underlay(&mut self, report: &mut Report) {
        let underlay = &mut self.underlay;
        let addresses = self.kernel.addresses_of(underlay.ifindex).await;
        if let Ok(addresses) = &addresses {
            self.on_link.clone_from(addresses);
        }
        let has_address = addresses.map(|all| all.iter().any(|it| it.addr() == underlay.address));
        let device = self.kernel.device(underlay.ifindex).await;
        if let (Ok(true), Ok(Some((name, mtu)))) = (has_address, device)
            && mtu != 0
        {
            if (&name, mtu) != (&underlay.name, underlay.mtu) {
                tracing::warn!(device = name, mtu, "the underlay changed");
            }
            (underlay.name, underlay.mtu) = (name, mtu);
            return;
        }
        let network = self.node.config.network();
        match self
            .kernel
            .select_underlay(&self.node.criteria, network)
            .await
        {
            Ok(underlay) => {
                tracing::warn!(old = ?self.underlay, new = ?underlay, "the underlay changed");
                self.underlay = underlay;
            }
            Err(error) => report.problem("underlay", error.to_string()),
        }
    }
}

/// Waits for a moment, or for ever.
async fn when(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
