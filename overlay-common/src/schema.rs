//! Keys and values of the BPF maps: the operator's view of the data path.
//!
//! `bpftool map dump` prints these field names. Addresses are byte arrays in network order; all other
//! integers are in the machine's order. No value has padding that is not named.
//!
//! | map | type | key | value |
//! |---|---|---|---|
//! | `ov_config` | array | 0 | [`Config`] |
//! | `ov_endpoints` | hash | ifindex of a pod's host veth | [`Endpoint`] |
//! | `ov_pods` | hash | address of a pod on this node | [`PodEntry`] |
//! | `ov_peers` | hash | address under [`Config::peer_mask`] | [`PeerEntry`] |
//! | `ov_vteps` | hash | underlay address of a node that holds a lease | [`Vtep`] |
//! | `ov_flows` | LRU hash | [`FlowKey`] | [`Flow`] |
//! | `ov_flow_news` | array | [`NEWEST_FLOW`], [`NO_FLOW_SINCE`] | [`FlowNews`] |
//! | `ov_heartbeat` | array | 0 | [`Heartbeat`] |
//! | `ov_counters` | per-CPU array | [`counter_index`](crate::verdict::counter_index) | [`Counter`] |

use bytemuck::{Pod as Plain, Zeroable};

use crate::family::{Family, V4};

/// Version of everything in this module; part of the directory that the maps are pinned in.
pub const ABI_VERSION: u32 = 2;

/// How many pods a node can hold; a Linux bridge has no more ports.
pub const MAX_PODS: u32 = 1024;
/// How many peer subnets the fast path can hold.
pub const MAX_PEERS: u32 = 16384;
/// How many flows of the IP stack are remembered.
pub const MAX_FLOWS: u32 = 131_072;

/// The program may short-cut packets; without it every packet is left to the kernel.
pub const CONFIG_ACTIVE: u32 = 1 << 0;
/// Every lease is in `ov_peers`: a source that is not there belongs to nobody.
pub const CONFIG_PEERS_COMPLETE: u32 = 1 << 1;
/// Another VXLAN device shares the UDP port: an unknown VNI is not ours to refuse.
pub const CONFIG_SHARED_PORT: u32 = 1 << 2;
/// Super-packets from the network are left to the kernel's VXLAN device.
pub const CONFIG_AGGREGATES_TO_KERNEL: u32 = 1 << 3;
/// Not every node is in `ov_vteps`: a sender that is not there may be honest.
pub const CONFIG_VTEPS_INCOMPLETE: u32 = 1 << 4;

/// This pod's packets, both ways, are left to the kernel: its veth carries a qdisc or a program that
/// somebody attached on purpose.
pub const POD_KERNEL_PATH: u16 = 1 << 0;

/// What all programs need to know of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<F: Family> {
    /// [`ABI_VERSION`] of the agent that wrote this.
    pub abi: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// The NIC that encapsulated packets leave by.
    pub underlay_ifindex: u32,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The whole overlay's network and its mask.
    pub network: F::Addr,
    /// See [`Config::network`].
    pub network_mask: F::Addr,
    /// This node's own subnet and its mask.
    pub subnet: F::Addr,
    /// See [`Config::subnet`].
    pub subnet_mask: F::Addr,
    /// This node's address among its pods, the bridge's; all zeros while it has none. The VXLAN
    /// device has the first address of the subnet.
    pub gateway: F::Addr,
    /// What an address is masked with to find its peer.
    pub peer_mask: F::Addr,
    /// This node's address on the underlay.
    pub vtep: F::Addr,
    /// MAC address of the VXLAN device: what peers address inner frames to.
    pub vtep_mac: [u8; 6],
    /// MAC address of the bridge: the pods' gateway.
    pub bridge_mac: [u8; 6],
    /// UDP port of VXLAN.
    pub port: u16,
    /// Lowest source port of encapsulated packets.
    pub source_port_min: u16,
    /// How many source ports there are from there on.
    pub source_port_count: u16,
    /// MAC address of the NIC: tells at XDP what is for this host.
    pub underlay_mac: [u8; 6],
}

/// What the programs on a pod's host veth know of the pod behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<F: Family> {
    /// The only overlay address that the pod may send from.
    pub address: F::Addr,
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// `POD_*`.
    pub flags: u16,
    /// Tells the container; zero where that is not known. Endpoints with the same owner are
    /// interfaces of one container, which may send from any of its addresses by any of them.
    pub owner: u32,
}

/// Where a pod of this node is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct PodEntry {
    /// The host end of its veth pair.
    pub ifindex: u32,
    /// Longest IP packet that it takes, in bytes.
    pub mtu: u32,
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// `POD_*`.
    pub flags: u16,
    /// See [`Endpoint::owner`].
    pub owner: u32,
}

/// The outer MAC addresses in [`PeerEntry::header`] are those of the kernel's neighbour table.
pub const PEER_NEXT_HOP: u32 = 1 << 0;

/// How to reach a peer's subnet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEntry<F: Family> {
    /// Everything in front of the inner IP packet, ready but for lengths, IP identification, ECN and source
    /// port: see [`vxlan::prepare`](crate::vxlan::prepare). The outer MAC addresses count with
    /// [`PEER_NEXT_HOP`] only.
    pub header: [u8; 64],
    /// The peer's address on the underlay.
    pub vtep: F::Addr,
    /// Longest inner IP packet that fits the path, in bytes.
    pub mtu: u32,
    /// `PEER_*`.
    pub flags: u32,
}

/// A sign of life from the agent, which follows the kernel's neighbour table and the store's
/// leases.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Heartbeat {
    /// Until when prepared MAC addresses can be trusted (`CLOCK_MONOTONIC`, nanoseconds). After that the
    /// kernel looks the next hop up packet by packet.
    pub next_hops_until_ns: u64,
    /// Until when the list of leases holds (`CLOCK_MONOTONIC`, nanoseconds). After that a node that
    /// is not in it may have joined since, and is left to the kernel.
    pub leases_until_ns: u64,
}

/// A node that holds a lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Vtep {
    /// How many subnets it holds.
    pub subnets: u32,
}

/// A flow, the same for both directions: the end with the lower address (then port) comes first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<F: Family> {
    /// The lower end's address.
    pub low: F::Addr,
    /// The higher end's address.
    pub high: F::Addr,
    /// The lower end's port, or the identifier of an ICMP echo.
    pub low_port: u16,
    /// The higher end's port, or the identifier of an ICMP echo.
    pub high_port: u16,
    /// The protocol above IP (`IPPROTO_*`).
    pub protocol: u32,
}

impl<F: Family> FlowKey<F> {
    /// The key of the flow that a packet from `source` to `destination` belongs to.
    #[inline(always)]
    pub fn new(source: (F::Addr, u16), destination: (F::Addr, u16), protocol: u8) -> Self {
        let order = |end: (F::Addr, u16)| (F::number(end.0), end.1);
        let (low, high) = if order(source) <= order(destination) {
            (source, destination)
        } else {
            (destination, source)
        };
        Self {
            low: low.0,
            high: high.0,
            low_port: low.1,
            high_port: high.1,
            protocol: u32::from(protocol),
        }
    }
}

/// A flow that the IP stack owns, because it translated it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Flow {
    /// When the stack last sent a packet of it (`CLOCK_MONOTONIC`, nanoseconds).
    pub last_seen_ns: u64,
}

/// Key of `ov_flow_news`: when a program last added a flow to `ov_flows`. Written after the flow is there, and
/// before its packet goes on.
pub const NEWEST_FLOW: u32 = 0;
/// Key of `ov_flow_news`: what [`NEWEST_FLOW`] was before the agent found `ov_flows` empty. While the two are equal
/// it is empty still, and the programs need not look.
pub const NO_FLOW_SINCE: u32 = 1;

/// Whether there are flows to look for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Plain, Zeroable)]
pub struct FlowNews {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
}

/// Packets that ended in one verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Plain, Zeroable)]
pub struct Counter {
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on, as the program saw them.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Config<V4>>() == 68);
    assert!(size_of::<Endpoint<V4>>() == 16);
    assert!(size_of::<PodEntry>() == 20);
    assert!(size_of::<PeerEntry<V4>>() == 76);
    assert!(size_of::<FlowKey<V4>>() == 16);
};

/// The derive of bytemuck refuses generic types, so the promise is made here, once, and checked above: for
/// every family the sizes are the sums of the fields, so there is no padding.
macro_rules! plain {
    ($($name:ident),*) => {$(
        // SAFETY: all zeros is a value of each field.
        unsafe impl<F: Family> Zeroable for $name<F> {}
        // SAFETY: `repr(C)`, every field is plain, no padding (sizes asserted above), 'static and Copy.
        unsafe impl<F: Family> Plain for $name<F> {}
        #[cfg(feature = "user")]
        // SAFETY: as above: any bytes are a value, and all bytes of a value are initialised.
        unsafe impl<F: Family> aya::Pod for $name<F> {}
    )*};
}
plain!(Config, Endpoint, PeerEntry, FlowKey);

#[cfg(feature = "user")]
mod user {
    // SAFETY: the types derive `bytemuck::Pod`, which checks what `aya::Pod` asks for.
    unsafe impl aya::Pod for super::PodEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Vtep {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Heartbeat {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowNews {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counter {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They stand in maps that an agent of another build may have filled.
    #[test]
    fn flags_are_frozen() {
        let config = [
            CONFIG_ACTIVE,
            CONFIG_PEERS_COMPLETE,
            CONFIG_SHARED_PORT,
            CONFIG_AGGREGATES_TO_KERNEL,
            CONFIG_VTEPS_INCOMPLETE,
        ];
        assert_eq!(config, [0x01, 0x02, 0x04, 0x08, 0x10]);
        assert_eq!((POD_KERNEL_PATH, PEER_NEXT_HOP), (0x01, 0x01));
    }

    #[test]
    fn both_directions_of_a_flow_share_a_key() {
        let a = ([10, 244, 1, 2], 40000);
        let b = ([10, 244, 1, 3], 80);
        assert_eq!(FlowKey::<V4>::new(a, b, 6), FlowKey::new(b, a, 6));
        assert_ne!(FlowKey::<V4>::new(a, b, 6), FlowKey::new(a, b, 17));
        let hairpin = (a.0, 80);
        assert_eq!(
            FlowKey::<V4>::new(a, hairpin, 6),
            FlowKey::new(hairpin, a, 6)
        );
    }
}
