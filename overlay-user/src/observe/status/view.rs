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
    /// What the fast path has done.
    pub fast_path: FastPathView,
    /// Where hostile VXLAN is refused early (XDP), or why nowhere; as of the last agent.
    pub early_refusal: Option<String>,
    /// Where the eBPF programs are from (`--programs`); absent where they are the agent's own. As
    /// of the last agent.
    pub foreign_programs: Option<String>,
    /// Foreign packet-filter rules on the kernel path, and what follows; as of the last agent.
    pub network_policies: Option<String>,
    /// When the leases were known last, where the store has not answered the agent yet.
    pub leases_as_of: Option<String>,
    /// The translator of Services' addresses and the reason, as of the last agent; and how sockets
    /// fared.
    pub services: ServicesView,
    /// Packets left to the kernel although the fast path serves such packets in principle, by
    /// cause.
    pub slow_path: BTreeMap<&'static str, u64>,
    /// Packets dropped because they forge something, by reason, on both paths.
    pub refused: BTreeMap<&'static str, RefusedView>,
    /// Leases that the agent does not believe, and why; as of the last agent.
    pub rejected: Vec<RejectedLease>,
    /// Peers that do not answer over the kernel path: down, or behind a firewall; as of the last
    /// agent.
    pub unreachable: Vec<backend::Peer>,
    /// Why TCP connections that leave the fast path may be lost, if so.
    pub tcp_pick_up: Option<&'static str>,
    /// Why no peer is asked for an answer, if so.
    pub unchecked: Option<String>,
    /// What is pinned of the data path.
    pub abi: AbiView,
    /// What could not be read, and why.
    pub problems: Vec<String>,
}

/// Services at the socket.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServicesView {
    /// The translator, and the reason.
    pub by: Option<String>,
    /// What is not taken as it is; as of the last agent.
    pub refused: RefusedServices,
    /// How sockets fared, by operation and verdict.
    pub sockets: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

/// The agent.
#[derive(Clone, Debug, Serialize)]
pub struct AgentView {
    /// Whether it runs.
    pub running: bool,
    /// Process of the agent, or of the last one.
    pub pid: Option<u32>,
}

/// Versions of the maps' layout.
#[derive(Clone, Debug, Serialize)]
pub struct AbiView {
    /// The one that this build reads.
    pub own: u32,
    /// The networks that agents have pinned something of.
    pub pinned: Vec<u32>,
}

impl AbiView {
    /// Why this build sees nothing of what is pinned, if so.
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
    /// `vxlan`, or `direct` where packets go there as they are.
    pub way: &'static str,
    /// MAC address of its VXLAN device, where that is how it is reached.
    pub mac: Option<MacAddr>,
    /// Longest packet of a pod on the fast path; absent where only the kernel path reaches it.
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

/// What the fast path has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FastPathView {
    /// `active`, `inactive` (loaded, everything left to the kernel) or `absent`.
    pub state: &'static str,
    /// Whether every lease is known to it.
    pub complete: bool,
    /// Share of pod-to-pod packets that took it, 0 to 1; absent before there were any.
    pub hit_ratio: Option<f64>,
    /// Packets handed to a pod of this node, from another one or as a node on the link sent them.
    pub redirected: u64,
    /// Packets sent to another node on the link as they are.
    pub routed: u64,
    /// Packets encapsulated.
    pub encapsulated: u64,
    /// Packets decapsulated.
    pub decapsulated: u64,
    /// Packets that it should have carried and left to the kernel.
    pub slow: u64,
    /// Packets lost half-way.
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
