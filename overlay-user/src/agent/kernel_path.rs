//! Sets up the kernel path: device, neighbours, FDB, routes, guard, subnet.env.

use std::time::{Duration, Instant};

use super::health::Report;
use super::plan::Plan;
use super::seen::Seen;
use super::settings::Settings;
use crate::backend::Peer;
use crate::config::SubnetEnv;
use crate::kernel::apply::Failure;
use crate::kernel::guard::{self, Guard, GuardState, Sources};
use crate::kernel::{Kernel, sysctl};
use crate::reconcile::{Action, diff};

/// Pause before another attempt on a node that cannot have a guard, because `nft` may be installed
/// meanwhile.
const RETRY: Duration = Duration::from_secs(60);

/// The state of the kernel path between rounds.
#[derive(Default)]
pub struct KernelPath {
    guard: Guard,
    /// The state that was last written to the guard.
    guarded: Option<GuardState>,
    /// The time and the cause of the last failure because no guard is possible.
    unguardable: Option<(Instant, String)>,
    bridge_warned: bool,
    /// The contents of the subnet file.
    subnet_env: Option<SubnetEnv>,
}

impl KernelPath {
    /// Whether a part was changed of which the kernel sends no event.
    pub fn is_due(&self, settings: &Settings) -> bool {
        let forwards = sysctl::forwarding(settings.network().addr()).unwrap_or(true);
        let path = &settings.flags.node.subnet_file;
        !forwards || self.subnet_env.is_some() && SubnetEnv::read(path).ok() != self.subnet_env
    }

    /// Keeps the guard's rules that depend on the list of leases in force.
    pub async fn keep_guard(&mut self) {
        if let Err(error) = self.guard.renew().await {
            tracing::warn!("keep the guard: {error}");
        }
    }

    /// Whether another process has changed the guard.
    pub async fn is_guard_hurt(&mut self) -> bool {
        self.unguardable.is_none() && !self.guard.is_intact().await.unwrap_or(false)
    }

    /// Changes the kernel to the planned state; returns the peers that the kernel path serves
    /// completely.
    pub async fn carry_out(
        &mut self,
        kernel: &Kernel,
        settings: &Settings,
        plan: &Plan,
        peers: &[Peer],
        seen: &mut Seen,
        report: &mut Report,
    ) -> Vec<Peer> {
        let served = device_and_peers(kernel, settings, plan, peers, seen, report).await;
        if let Some(bridge) = seen.pods.bridge.as_ref().filter(|bridge| !bridge.up) {
            match kernel.set_up(bridge.ifindex).await {
                Ok(()) => tracing::warn!(device = bridge.name, "somebody set the device down"),
                Err(error) => report.problem("kernel", error.to_string()),
            }
        }
        self.subnet_env(settings, &plan.subnet_env, report);
        if !self.bridge_warned && sysctl::bridge_calls_iptables() != Some(true) {
            self.bridge_warned = true;
            tracing::warn!(
                "bridged packets do not pass iptables: Services between pods of this node need \
                br_netfilter and net.bridge.bridge-nf-call-iptables=1"
            );
        }
        served
    }

    /// Admits new peers before their routes are added, because replies arrive at once; and guards
    /// the pods and packets that programs are about to stop judging.
    pub async fn widen_guard(&mut self, mut state: GuardState, report: &mut Report) {
        if let Some(last) = &self.guarded {
            add_departing(&mut state.peers, &last.peers);
        }
        self.guard(state, report).await;
    }

    /// Removes departed peers after their routes are removed; and stops guarding what programs
    /// judge.
    pub async fn narrow_guard(&mut self, state: GuardState, report: &mut Report) {
        self.guard(state, report).await;
    }

    async fn guard(&mut self, state: GuardState, report: &mut Report) {
        if let Some((when, why)) = &self.unguardable
            && when.elapsed() < RETRY
        {
            report.note("guard", why.clone());
            return;
        }
        let is_applied = self.guarded.as_ref() == Some(&state);
        if is_applied && self.guard.is_intact().await.unwrap_or(false) {
            return;
        }
        let applied = self.guard.apply(&state).await;
        self.guarded = applied.is_ok().then_some(state);
        match applied {
            Ok(change) => {
                self.unguardable = None;
                tracing::debug!(?change, "guard");
            }
            Err(error @ guard::Error::Unavailable(_)) => {
                // Another round would not change this, so it is reported once, and the node
                // continues.
                let why = error.to_string();
                if self.unguardable.is_none() {
                    tracing::warn!("the kernel path goes unguarded: {why}");
                }
                report.note("guard", why.clone());
                self.unguardable = Some((Instant::now(), why));
            }
            Err(error) => report.problem("guard", error.to_string()),
        }
    }

    /// Writes the file for the CNI plugin, whenever its contents are not the wanted ones.
    fn subnet_env(&mut self, settings: &Settings, env: &SubnetEnv, report: &mut Report) {
        let path = &settings.flags.node.subnet_file;
        if SubnetEnv::read(path).ok().as_ref() != Some(env) {
            match env.write(path) {
                Ok(()) => {
                    tracing::info!(file = %path.display(), mtu = env.mtu, "subnet file written");
                }
                Err(error) => return report.problem("subnet file", error.to_string()),
            }
        }
        self.subnet_env = Some(env.clone());
    }
}

/// Adds to `peers` the sources that only `last` has. The cost depends on the differences alone.
fn add_departing(peers: &mut Sources, last: &Sources) {
    let departing: Vec<_> = last
        .differences(peers)
        .filter_map(|it| {
            let mut subnets = it.now?.clone();
            subnets.extend(it.before.into_iter().flatten().copied());
            Some((*it.key, subnets))
        })
        .collect();
    for (vtep, subnets) in departing {
        peers.insert(vtep, subnets);
    }
}

/// Sets up the backend's device and the entries for peers; returns the peers that are served
/// completely.
async fn device_and_peers(
    kernel: &Kernel,
    settings: &Settings,
    plan: &Plan,
    peers: &[Peer],
    seen: &mut Seen,
    report: &mut Report,
) -> Vec<Peer> {
    let desired = &plan.kernel;
    if let (Some(link), None) = (&desired.device, &seen.observed.device) {
        match kernel.reclaim_name(link).await {
            Ok(true) => {
                tracing::warn!(device = link.name, "somebody renamed the device");
                if let Err(error) = seen.look_at_peers(kernel, settings).await {
                    report.problem("kernel", format!("look at the kernel: {error}"));
                    return Vec::new();
                }
            }
            Ok(false) => {}
            Err(error) => report.problem("kernel", error.to_string()),
        }
    }
    let actions = diff(desired, &seen.observed);
    let failures = kernel.apply(desired, &actions).await;
    for failure in &failures {
        report.problem("kernel", failure.to_string());
    }
    let changes: Option<Vec<_>> = actions.iter().map(Action::change).collect();
    match changes {
        Some(changes) if failures.is_empty() => {
            for change in changes {
                seen.observed.apply(&change);
            }
        }
        // The device itself has changed, or the change is not known.
        _ => {
            if let Err(error) = seen.look_at_peers(kernel, settings).await {
                report.problem("kernel", format!("look at the kernel: {error}"));
                seen.observed.device = None;
                return Vec::new();
            }
        }
    }
    // Without the device no pod is served.
    if desired.device.is_some() && seen.observed.device.is_none() {
        return Vec::new();
    }
    let is_served = |peer: &&Peer| !failures.iter().any(|failure| concerns(failure, peer));
    peers.iter().filter(is_served).cloned().collect()
}

/// Whether a failure leaves a peer without a complete kernel path.
fn concerns(failure: &Failure, peer: &Peer) -> bool {
    match &failure.action {
        Action::AddRoute(route) | Action::ReplaceRoute(route) => route.subnet == peer.subnet,
        Action::SetNeighbour(address, _) => *address == peer.subnet.network(),
        Action::SetFdb(mac, _) => Some(*mac) == peer.mac(),
        // Without the device no pod is served.
        Action::DeleteDevice(_) | Action::CreateDevice(..) | Action::SetUp => true,
        _ => false,
    }
}
