//! Rounds: see what is, plan what should be, carry out the difference.
//!
//! Any change (a lease, a pod, a netlink event) only starts a round; what to do follows from the
//! state alone, so a lost event costs time, never correctness.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::admitted::Admitted;
use super::fast_path::{Backing, FastPath, View, has_untracked};
use super::health::{Health, Report};
use super::kernel_path::KernelPath;
use super::path_check::PathCheck;
use super::plan::{self, Plan, attributes};
use super::policies::{Hindrance, scope};
use super::rules::RulesUpkeep;
use super::seen::Seen;
use super::services;
use super::settings::Settings;
use super::underlay::Footing;
use crate::backend::{Here, Peer, Peers};
use crate::kernel::Kernel;
use crate::kernel::guard::GuardState;
use crate::kernel::interface::Underlay;
use crate::lease::Lease;
use crate::liveness::Pulse;
use crate::mac::MacAddr;
use crate::observe::agent_file::AgentFile;
use crate::store::{LeaseState, Store};

mod look;
mod tell;
mod waits;

use tell::guards;
use waits::{told, told_of, watch_kernel, when};

/// Changes come in bursts; a round waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(20);
/// At least this long from the end of a round to the next, however many events there are.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a round that failed is run again. As often the agent looks at state of which no event
/// tells and which takes long to read: map entries, IPsec policies.
const RESYNC: Duration = Duration::from_secs(5);
/// How often the agent looks at state of which no event tells and which is quickly read: programs,
/// pins, sysctls, the subnet file.
const TICK: Duration = Duration::from_secs(1);

/// What the agent starts with.
pub struct Start {
    /// The underlay's device.
    pub underlay: Underlay,
    /// This node's lease.
    pub lease: Lease,
    /// MAC address of the backend's device.
    pub mac: MacAddr,
    /// The agent's note for the tools, with the fields that are known at the start.
    pub file: AgentFile,
}

/// The agent's state between rounds.
pub struct Reconciler {
    settings: Settings,
    store: Arc<Store>,
    leases: watch::Receiver<LeaseState>,
    kernel: Kernel,
    seen: Seen,
    kernel_path: KernelPath,
    fast_path: FastPath,
    hindrance: Hindrance,
    rules: RulesUpkeep,
    health: Health,
    footing: Footing,
    lease: Lease,
    mac: MacAddr,
    file: AgentFile,
    /// The other nodes, as judged so far: a newcomer cannot push them out.
    peers: Peers,
    admitted: Admitted,
    /// Whether the last round ended with a problem.
    failed: bool,
    announced: bool,
    pulse: Pulse,
    path_check: PathCheck,
    services: services::Channels,
}

impl Reconciler {
    /// A reconciler that has not done anything yet.
    pub fn new(
        settings: Settings,
        start: Start,
        kernel: Kernel,
        store: Arc<Store>,
        health: Health,
        path_check: PathCheck,
        services: services::Channels,
    ) -> Self {
        let mut seen = Seen::default();
        seen.has_untracked = has_untracked(&settings);
        Self {
            leases: store.subscribe(),
            seen,
            kernel_path: KernelPath::default(),
            fast_path: FastPath::new(&settings),
            hindrance: Hindrance::new(settings.flags.node.fast_path),
            rules: RulesUpkeep::start(&settings),
            settings,
            store,
            kernel,
            health,
            footing: Footing::new(start.underlay),
            lease: start.lease,
            mac: start.mac,
            file: start.file,
            peers: Peers::default(),
            admitted: Admitted::default(),
            failed: false,
            announced: false,
            pulse: Pulse::default(),
            path_check,
            services,
        }
    }

    /// The pulse of [`Reconciler::run`], which beats with every turn of the loop, and so every
    /// second if all is well.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Rounds until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut events = watch_kernel()?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rules = self.rules.state();
        let (mut last_round, mut last_resync) = (Instant::now(), Instant::now());
        // Due at once, and again whenever something changes.
        let mut due = Some(Instant::now());
        let mut paths = self.path_check.paths();
        let mut services = self.services.standing.clone();
        let mut refused = self.services.refused.clone();
        loop {
            self.pulse.beat();
            let soon = || Some((Instant::now() + SETTLE).max(last_round + PAUSE));
            let ways = self.fast_path.ways_changed();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = when(due) => {
                    // A round may be left at any point, as when the agent is killed: the first
                    // round of the next agent puts right what was left half done.
                    tokio::select! {
                        () = cancel.cancelled() => return Ok(()),
                        () = self.round() => {}
                    }
                    self.kernel.look_away();
                    last_round = Instant::now();
                    due = None;
                }
                event = events.recv() => match event {
                    Some(event) => if self.seen.note(&event?) {
                        due = due.or_else(soon);
                    },
                    None => anyhow::bail!("the task that reads netlink events ended"),
                },
                changed = self.leases.changed() => {
                    changed?;
                    due = due.or_else(soon);
                }
                () = told(ways) => due = due.or_else(soon),
                changed = rules.changed() => {
                    changed?;
                    due = due.or_else(soon);
                }
                // A round writes both into the note for the tools.
                () = told_of(&mut paths) => due = due.or_else(soon),
                () = told_of(&mut services) => due = due.or_else(soon),
                () = told_of(&mut refused) => due = due.or_else(soon),
                _ = tick.tick() => {
                    self.fast_path.beat(self.settings.network()).await;
                    self.kernel_path.keep_guard().await;
                    let policies_changed = self.hindrance.find_again().await;
                    if policies_changed && self.hindrance.reason().is_some() {
                        self.fast_path.step_aside();
                    }
                    let mut is_due = policies_changed
                        || self.footing.is_waiting()
                        || self.seen.is_due()
                        || self.seen.is_capture_news()
                        || self.kernel_path.is_due(&self.settings)
                        || self.fast_path.is_disturbed();
                    if last_resync.elapsed() >= RESYNC {
                        last_resync = Instant::now();
                        if self.failed {
                            self.seen.distrust();
                        }
                        // `|` in place of `||`, because each call has to be made: the callee
                        // remembers what it sees.
                        is_due |= self.failed
                            | self.seen.are_pods_due()
                            | self.kernel_path.is_guard_hurt().await
                            | self.fast_path.is_surprised().await;
                    }
                    if is_due {
                        due = due.or_else(|| Some(Instant::now()));
                    }
                }
            }
        }
    }

    async fn round(&mut self) {
        // The connection's socket can break, and without a new socket every round would fail.
        if self.kernel.is_closed() {
            match Kernel::connect() {
                Ok(kernel) => self.kernel = kernel,
                Err(error) => tracing::error!("{error}"),
            }
        }
        let state = self.leases.borrow_and_update().clone();
        self.take_lease(&state);
        let mut report = Report::new(&state, &self.lease);
        if let Err(error) = self.see(&mut report).await {
            report.problem("kernel", format!("look at the kernel: {error}"));
        } else {
            self.tell_services();
            let here = self.here();
            self.judge_leases(&here, &state, &mut report);
            self.carry_out(&here, &mut report).await;
        }
        self.failed = !report.is_ready();
        self.leave_note(&mut report);
        self.announce(&report);
        self.health.publish(report);
    }

    fn take_lease(&mut self, state: &LeaseState) {
        let Some(own) = &state.own else {
            return;
        };
        if own.subnets != self.lease.subnets {
            tracing::warn!(
                old = %self.lease.subnets, new = %own.subnets,
                "this node has another subnet now; pods of the old one keep their addresses until \
                they are made anew"
            );
        }
        self.lease = own.clone();
    }

    fn here(&self) -> Here {
        let (underlay, on_link) = (self.footing.underlay(), self.footing.on_link());
        plan::here(&self.settings, &self.lease, self.mac, underlay, on_link)
    }

    /// Makes peers of leases.
    fn judge_leases(&mut self, here: &Here, state: &LeaseState, report: &mut Report) {
        let backend = &*self.settings.backend;
        self.peers.update(backend, here, &state.leases);
        report.reject(self.peers.rejected());
    }

    /// Changes everything in the order that the architecture's rule 7 asks for: what is removed
    /// leaves the maps first, and what is added enters the maps last.
    async fn carry_out(&mut self, here: &Here, report: &mut Report) {
        let mut peers: Vec<Peer> = self.peers.believed().values().cloned().collect();
        peers.sort();
        let sources = self.admitted.follow(self.peers.believed());
        let plan = Plan::of(&self.settings, here, &peers, sources, &self.seen);
        let mut view = View {
            settings: &self.settings,
            underlay: self.footing.underlay(),
            subnet: here.subnet,
            mtu: plan.mtu,
            pods: &mut self.seen.pods.clone(),
            other_vnis: self.seen.other_vnis.clone(),
            is_captured: self.seen.is_captured,
            peers: &peers,
            kernel: &self.kernel,
            hindrance: None,
        };
        self.fast_path.look(&view);
        if let Some(guard) = plan.guard.clone() {
            let judged = self.fast_path.judged(&view);
            let guard = GuardState { judged, ..guard };
            self.kernel_path.widen_guard(guard, report).await;
        }
        self.fast_path.prepare(&view, report);
        self.path_check.forget_others(self.peers.believed());
        let served = self
            .kernel_path
            .carry_out(
                &self.kernel,
                &self.settings,
                &plan,
                &peers,
                &mut self.seen,
                report,
            )
            .await;
        self.rules.want(&plan.rules);
        self.rules.state().borrow().tell(&plan.rules, report);
        let link = self.seen.observed.device.as_ref();
        if let (Some(name), None) = (&self.settings.device, link) {
            report.hinder("kernel", format!("there is no device {name}"));
        }
        if let Some(mac) = link.map(|link| link.mac)
            && mac != self.mac
        {
            tracing::warn!(
                old = %self.mac,
                new = %mac,
                "the device's MAC address was changed; telling the others"
            );
            self.mac = mac;
        }
        match attributes(&self.settings, view.underlay, self.mac) {
            Ok(attributes) => self.store.publish(attributes),
            Err(error) => report.problem("underlay", format!("{error:#}")),
        }
        let scope = scope(&self.settings, &here.nic.name, view.pods);
        self.hindrance.find(scope).await;
        view.hindrance = self.hindrance.reason();
        if let Some(note) = self.hindrance.note() {
            report.note("network policies", note);
        }
        report.policies = self.hindrance.policies().to_vec();
        let outlets = plan::outlets(&self.settings, &self.seen, here);
        let backing = Backing {
            outlets: &outlets,
            mac: self.mac,
            peers: &served,
        };
        self.fast_path.carry_out(&mut view, &backing, report).await;
        let judged = self.fast_path.judged(&view);
        let by_programs = judged.as_ref().map_or(0, BTreeSet::len);
        report.note("who refuses forged packets", guards(by_programs));
        if let Some(guard) = plan.guard {
            let pods = view.pods.sources();
            let guard = GuardState {
                judged,
                pods,
                ..guard
            };
            self.kernel_path.narrow_guard(guard, report).await;
        }
        if let Some(device) = &self.settings.device {
            let source = here.subnet.network();
            self.path_check
                .follow(device, source, self.peers.believed());
        }
        report.pods = view.pods.pods.len();
        report.peers = served.len();
    }
}
