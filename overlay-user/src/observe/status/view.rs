//! What `overlayctl status` shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::backend;
use crate::datapath::programs::OnHook;
use crate::mac::MacAddr;
use crate::observe::agent_file::{RefusedServices, RejectedLease};

/// Everything `overlayctl status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The agent.
    pub agent: AgentView,
    /// This node; absent before an agent has had a lease.
    pub node: Option<NodeView>,
    /// The other nodes.
    pub peers: Vec<PeerView>,
    /// The pods of this node.
    pub pods: Vec<PodView>,
    /// Our programs on their hooks, and those of others beside them.
    pub attachments: Vec<HookView>,
    /// State and counters of the fast path.
    pub fast_path: FastPathView,
    /// The device on which hostile VXLAN is refused early (XDP), or why on none; as of the last
    /// agent.
    pub early_refusal: Option<String>,
    /// The file of the eBPF programs (`--programs`); absent where they are the agent's own. As of
    /// the last agent.
    pub foreign_programs: Option<String>,
    /// Foreign packet-filter rules on the kernel path, and what follows; as of the last agent.
    pub network_policies: Option<String>,
    /// The time of the leases in use, where an earlier agent knew them and the store has not
    /// answered this agent yet.
    pub leases_as_of: Option<String>,
    /// The translator of Services' addresses and the reason, as of the last agent; and the counters
    /// of the programs at the socket.
    pub services: ServicesView,
    /// Packets left to the kernel although the fast path serves such packets in principle, by
    /// cause.
    pub slow_path: BTreeMap<&'static str, u64>,
    /// Packets dropped because they forge something, by reason, on both paths.
    pub refused: BTreeMap<&'static str, RefusedView>,
    /// Leases that the agent refuses, and why; as of the last agent.
    pub rejected: Vec<RejectedLease>,
    /// Peers that do not answer echo requests over the kernel path: down, or behind a firewall; as
    /// of the last agent.
    pub unreachable: Vec<backend::Peer>,
    /// Why TCP connections that leave the fast path may be lost, if so.
    pub tcp_pick_up: Option<&'static str>,
    /// Why no peer is sent an echo request; absent where peers are.
    pub unchecked: Option<String>,
    /// ABI versions of the pinned maps and programs.
    pub abi: AbiView,
    /// What could not be read, and why.
    pub problems: Vec<String>,
}

/// Services at the socket.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServicesView {
    /// The translator, and the reason.
    pub by: Option<String>,
    /// Services and EndpointSlices of which a part is refused; as of the last agent.
    pub refused: RefusedServices,
    /// Number of calls at the socket, by operation and verdict.
    pub sockets: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

/// The agent.
#[derive(Clone, Debug, Serialize)]
pub struct AgentView {
    /// Whether the agent runs.
    pub running: bool,
    /// Process of the agent, or of the last one.
    pub pid: Option<u32>,
}

/// Versions of the maps' layout.
#[derive(Clone, Debug, Serialize)]
pub struct AbiView {
    /// The version that this build reads.
    pub own: u32,
    /// The versions of which there are pins.
    pub pinned: Vec<u32>,
}

impl AbiView {
    /// Why this build cannot read the pins; absent where it can.
    pub(super) fn problem(&self) -> Option<String> {
        if self.pinned.is_empty() || self.pinned.contains(&self.own) {
            return None;
        }
        let pinned: Vec<_> = self.pinned.iter().map(u32::to_string).collect();
        Some(format!(
            "the pinned maps are of ABI version {}, and this overlayctl reads version {}: use the \
             one that came with the agent",
            pinned.join(" and "),
            self.own
        ))
    }
}

/// This node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// The whole overlay.
    pub network: String,
    /// This node's lease.
    pub subnet: String,
    /// Underlay address of the peer.
    pub vtep: IpAddr,
    /// MAC address of the VXLAN device.
    pub vtep_mac: MacAddr,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// Another node's subnet.
#[derive(Clone, Debug, Serialize)]
pub struct PeerView {
    /// The subnet.
    pub subnet: String,
    /// The node's underlay address.
    pub vtep: IpAddr,
    /// `vxlan`, or `direct` where packets are sent without encapsulation.
    pub way: &'static str,
    /// MAC address of the peer's VXLAN device, where the way is `vxlan`.
    pub mac: Option<MacAddr>,
    /// Longest packet of a pod on the fast path, in bytes; absent where only the kernel path
    /// reaches the peer.
    pub mtu: Option<u32>,
}

/// A pod of this node.
#[derive(Clone, Debug, Serialize)]
pub struct PodView {
    /// Address of the pod.
    pub address: IpAddr,
    /// MAC address of the pod.
    pub mac: MacAddr,
    /// The host end of its veth pair.
    pub device: String,
    /// The runtime's name for the container.
    pub container: String,
    /// `fast`, `kernel` where something on its veth forbids short cuts, `unknown` where no agent
    /// has seen it.
    pub path: &'static str,
}

/// A hook and what sits on it.
#[derive(Clone, Debug, Serialize)]
pub struct HookView {
    /// The hook.
    pub hook: &'static str,
    /// The device.
    pub device: String,
    /// The programs, in the order they run.
    pub programs: Vec<OnHook>,
}

/// State and counters of the fast path.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FastPathView {
    /// `active`, `inactive` (loaded, everything left to the kernel) or `absent`.
    pub state: &'static str,
    /// Whether the programs' list of leases is complete.
    pub complete: bool,
    /// Share of pod-to-pod packets that the fast path carried, 0 to 1; absent before the first
    /// packet.
    pub hit_ratio: Option<f64>,
    /// Packets redirected into a pod of this node: from another pod of this node, or without
    /// encapsulation from a node on the link.
    pub redirected: u64,
    /// Packets sent to another node on the link without encapsulation.
    pub routed: u64,
    /// Packets encapsulated.
    pub encapsulated: u64,
    /// Packets decapsulated.
    pub decapsulated: u64,
    /// Packets that the programs left to the kernel although the fast path serves such packets.
    pub slow: u64,
    /// Packets lost because a program failed after it had begun to change them.
    pub failed: u64,
    /// Flows that the IP stack owns.
    pub stack_owned_flows: usize,
}

/// Refused packets.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RefusedView {
    /// By the programs.
    pub fast_path: u64,
    /// By the packet filter.
    pub kernel_path: u64,
}
