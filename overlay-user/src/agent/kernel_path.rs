//! One round of the kernel path: device, neighbours, FDB, routes, rules, guard, subnet.env.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::backend::Peer;
use crate::config::SubnetEnv;
use crate::kernel::apply::Failure;
use crate::kernel::guard::{self, DEFAULT_LAPSE, Guard, GuardState};
use crate::kernel::interface::Underlay;
use crate::kernel::pods::{BRIDGE, PodLinks};
use crate::kernel::rules::{Driver, RuleSet};
use crate::kernel::{Kernel, sysctl};
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::reconcile::{Action, Desired, Device, Observed, diff};
use ipnet::{IpNet, Ipv4Net};
use overlay_common::vxlan::OVERHEAD;

use crate::agent::health::Report;
use crate::agent::node::Node;

/// What the kernel path remembers between rounds.
#[derive(Default)]
pub struct KernelPath {
    device: Option<(u32, MacAddr)>,
    rules: Option<(RuleSet, Instant)>,
    guard: Guard,
    /// The peers that the guard lets in.
    guarded: BTreeSet<(Ipv4Addr, Ipv4Net)>,
    guard_unavailable: bool,
    bridge_warned: bool,
    /// What the subnet file holds.
    subnet_env: Option<SubnetEnv>,
}

impl KernelPath {
    /// Whether something was changed for which the kernel sends no event, or could have been for so long that
    /// it is time to look.
    pub fn is_due(&self, node: &Node) -> bool {
        let forwards = sysctl::forwarding(node.config.network().addr()).unwrap_or(true);
        let path = &node.flags.node.subnet_file;
        let is_past = |looked: Instant, every| looked.elapsed() >= every;
        !forwards
            || self.subnet_env.is_some() && SubnetEnv::read(path).ok() != self.subnet_env
            || self
                .rules
                .as_ref()
                .is_some_and(|(_, looked)| is_past(*looked, rules_resync(node)))
    }

    /// Index and MAC address of the VXLAN device, as last seen.
    pub fn device(&self) -> Option<(u32, MacAddr)> {
        self.device
    }

    /// Index of the VXLAN device, as last seen.
    pub fn device_ifindex(&self) -> Option<u32> {
        self.device.map(|(ifindex, _)| ifindex)
    }

    /// MAC address of the VXLAN device, as last seen.
    pub fn device_mac(&self) -> Option<MacAddr> {
        self.device.map(|(_, mac)| mac)
    }

    /// What the kernel should hold.
    pub fn desired(
        &self,
        node: &Node,
        underlay: &Underlay,
        lease: &Lease,
        mac: MacAddr,
        underlay_mtu: u32,
        peers: &[Peer],
    ) -> Desired {
        Desired {
            network: node.config.network(),
            device: Device {
                name: node.device.clone(),
                vni: node.config.vxlan.vni,
                port: node.config.vxlan.port,
                underlay: underlay.ifindex,
                local: underlay.public_address,
                mtu: underlay_mtu.saturating_sub(OVERHEAD),
                address: IpNet::from(lease.subnet.network()),
                mac: Some(mac),
            },
            peers: peers
                .iter()
                .map(|peer| (peer.subnet, peer.clone()))
                .collect::<BTreeMap<_, _>>(),
            forwarding: true,
        }
    }

    /// Brings the kernel to `desired`; returns the peers that it serves completely.
    pub async fn round(
        &mut self,
        kernel: &Kernel,
        node: &Node,
        desired: &Desired,
        subnet: IpNet,
        pods: &PodLinks,
        report: &mut Report,
    ) -> Vec<Peer> {
        let served = self.device_and_peers(kernel, desired, report).await;
        if let Some(bridge) = pods.bridge.as_ref().filter(|bridge| !bridge.up) {
            match kernel.set_up(bridge.ifindex).await {
                Ok(()) => tracing::warn!(device = BRIDGE, "somebody set the device down"),
                Err(error) => report.problem("kernel", error.to_string()),
            }
        }
        self.rules(node, desired, subnet, report).await;
        self.subnet_env(node, desired, subnet, report);
        if !self.bridge_warned && sysctl::bridge_calls_iptables() != Some(true) {
            self.bridge_warned = true;
            tracing::warn!(
                "bridged packets do not pass iptables: Services between pods of this node need br_netfilter and net.bridge.bridge-nf-call-iptables=1"
            );
        }
        served
    }

    async fn device_and_peers(
        &mut self,
        kernel: &Kernel,
        desired: &Desired,
        report: &mut Report,
    ) -> Vec<Peer> {
        match kernel.reclaim_name(&desired.device).await {
            Ok(true) => tracing::warn!(device = desired.device.name, "somebody renamed the device"),
            Ok(false) => {}
            Err(error) => report.problem("kernel", error.to_string()),
        }
        let observed = match kernel.observe(&desired.device.name, desired.network).await {
            Ok(observed) => observed,
            Err(error) => {
                // What is not known cannot be built on.
                self.device = None;
                report.problem("kernel", format!("look at the kernel: {error}"));
                return Vec::new();
            }
        };
        let actions = diff(desired, &observed);
        if actions.is_empty() {
            self.device = device_of(observed);
            return desired.peers.values().cloned().collect();
        }
        let failures = kernel.apply(desired, &actions).await;
        for failure in &failures {
            report.problem("kernel", failure.to_string());
        }
        self.device = match kernel.observe(&desired.device.name, desired.network).await {
            Ok(observed) => device_of(observed),
            Err(_) => None,
        };
        if self.device.is_none() {
            return Vec::new();
        }
        let is_served = |peer: &&Peer| !failures.iter().any(|failure| concerns(failure, peer));
        desired.peers.values().filter(is_served).cloned().collect()
    }

    async fn rules(&mut self, node: &Node, desired: &Desired, subnet: IpNet, report: &mut Report) {
        let rules = RuleSet {
            network: desired.network,
            subnet,
            masquerade: node.flags.node.ip_masq,
            forward: node.flags.node.iptables_forward_rules,
            random_fully: !node.flags.node.ip_masq_fully_random_disable,
        };
        if self
            .rules
            .as_ref()
            .is_some_and(|(last, checked)| *last == rules && checked.elapsed() < rules_resync(node))
        {
            return;
        }
        let (driver, others) = match (node.config.nftables, rules.masquerade || rules.forward) {
            (_, false) => (Driver::None, &[Driver::Iptables, Driver::Nftables][..]),
            (true, true) => (Driver::Nftables, &[Driver::Iptables][..]),
            (false, true) => (Driver::Iptables, &[Driver::Nftables][..]),
        };
        // What an agent with other flags has left, once.
        if self.rules.is_none() {
            for other in others {
                if let Err(error) = other.remove().await {
                    tracing::debug!("remove the other kind of rules: {error}");
                }
            }
        }
        match driver.ensure(&rules).await {
            Ok(changed) => {
                if changed {
                    tracing::info!("packet-filter rules written");
                }
                self.rules = Some((rules, Instant::now()));
            }
            Err(error) => report.problem("rules", error.to_string()),
        }
    }

    /// Lets in who comes before packets can go there, for the answers come at once; and guards what
    /// programs are about to leave.
    pub async fn widen_guard(&mut self, mut state: GuardState, report: &mut Report) {
        state.peers.extend(self.guarded.iter().copied());
        self.guard(&state, report).await;
    }

    /// Shuts out who is gone, when no packets go there any more; and leaves to programs what they judge.
    pub async fn narrow_guard(&mut self, state: GuardState, report: &mut Report) {
        self.guard(&state, report).await;
        self.guarded = state.peers;
    }

    async fn guard(&mut self, state: &GuardState, report: &mut Report) {
        let applied = match self.guard.apply(state).await {
            Ok(change) => {
                tracing::debug!(?change, "guard");
                self.guard.renew().await
            }
            Err(error) => Err(error),
        };
        match applied {
            Ok(()) => {}
            Err(error @ guard::Error::Unavailable(_)) => {
                // Nothing that another round would change: said once, and the node lives on.
                if !self.guard_unavailable {
                    self.guard_unavailable = true;
                    tracing::warn!("the kernel path goes unguarded: {error}");
                }
                report.note("guard", error.to_string());
            }
            Err(error) => report.problem("guard", error.to_string()),
        }
    }

    /// Writes what the CNI plugin reads, whenever it is not what it should be.
    fn subnet_env(&mut self, node: &Node, desired: &Desired, subnet: IpNet, report: &mut Report) {
        let gateway = subnet.hosts().next().unwrap_or(subnet.addr());
        let env = SubnetEnv {
            networks: vec![desired.network],
            subnet: IpNet::new(gateway, subnet.prefix_len()).ok(),
            subnet_v6: None,
            mtu: desired.device.mtu,
            ip_masq: node.flags.node.ip_masq,
        };
        let path = &node.flags.node.subnet_file;
        if SubnetEnv::read(path).ok().as_ref() != Some(&env) {
            match env.write(path) {
                Ok(()) => {
                    tracing::info!(file = %path.display(), mtu = env.mtu, "subnet file written");
                }
                Err(error) => return report.problem("subnet file", error.to_string()),
            }
        }
        self.subnet_env = Some(env);
    }
}

fn device_of(observed: Observed) -> Option<(u32, MacAddr)> {
    observed.device.map(|device| (device.ifindex, device.mac))
}

fn rules_resync(node: &Node) -> Duration {
    Duration::from_secs(node.flags.node.iptables_resync.into())
}

/// Whether a failure leaves a peer without a complete kernel path.
fn concerns(failure: &Failure, peer: &Peer) -> bool {
    match &failure.action {
        Action::AddRoute(route) | Action::ReplaceRoute(route) => route.subnet == peer.subnet,
        Action::SetNeighbour(address, _) => *address == peer.subnet.network(),
        Action::SetFdb(mac, _) => *mac == peer.mac,
        // Without its device nobody is served.
        Action::DeleteDevice(_) | Action::CreateDevice(_) | Action::SetUp => true,
        _ => false,
    }
}

/// What the guard should know; `None` where the kernel does not tell who shares the port: what was said
/// last stays.
pub async fn guard_state(
    kernel: &Kernel,
    node: &Node,
    desired: &Desired,
    subnet: IpNet,
    pods: &PodLinks,
    judged: BTreeSet<String>,
) -> Option<GuardState> {
    let (IpNet::V4(network), IpNet::V4(own_subnet), IpAddr::V4(own_vtep)) =
        (desired.network, subnet, desired.device.local)
    else {
        return None;
    };
    let peers = desired
        .peers
        .values()
        .filter_map(|peer| match (peer.vtep, peer.subnet) {
            (IpAddr::V4(vtep), IpNet::V4(subnet)) => Some((vtep, subnet)),
            _ => None,
        });
    let other_vnis = kernel
        .other_vnis(&node.device, node.config.vxlan.port)
        .await
        .ok()?;
    Some(GuardState {
        network,
        own_subnet,
        own_vtep,
        vxlan: node.device.clone(),
        bridge: BRIDGE.to_owned(),
        port: node.config.vxlan.port,
        vni: node.config.vxlan.vni,
        other_vnis,
        peers: peers.collect(),
        pods: pods.sources(),
        judged,
        translates: node.flags.node.ip_masq,
        lapse: DEFAULT_LAPSE,
    })
}
