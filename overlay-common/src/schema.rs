//! Keys and values of the BPF maps: the operator's view of the data path.
//!
//! `bpftool map dump` prints these field names. Addresses are byte arrays in network order; all
//! other integers are in the machine's order. No value has padding that is not named.
//!
//! A name that ends in 4 or 6 is that of two maps, one for each family of the pods. Programs have
//! those of the family that they are built for:
//!
//! | map | type | key | value |
//! |---|---|---|---|
//! | `ov_config4`, `…6` | array | 0 | [`Config`] |
//! | `ov_endpoints4`, `…6` | hash | ifindex of a pod's host veth | [`Endpoint`] |
//! | `ov_pods4`, `…6` | hash | address of a pod on this node | [`PodEntry`] |
//! | `ov_devices4`, `…6` | device hash | [`PodEntry::ifindex`], or the VTEP's | the device |
//! | `ov_peers4`, `…6` | hash | address under [`Config::peer_mask`] | [`PeerEntry`] |
//! | `ov_vteps4`, `…6` | hash | underlay address of a node that holds a lease | [`Vtep`] |
//! | `ov_flows4`, `…6` | LRU hash | [`FlowKey`] | [`Flow`] |
//! | `ov_flow_news4`, `…6` | array | [`NEWEST_FLOW`], [`NO_FLOW_SINCE`] | [`FlowNews`] |
//! | `ov_heartbeat` | array | 0 | [`Heartbeat`] |
//! | `ov_counters` | per-CPU array | [`counter_index`][index] | [`Counter`] |
//! | `ov_events` | ring buffer | | [`Event`](crate::event::Event) |
//! | `ov_events_lost` | per-CPU array | 0 | how many events found the ring full |
//!
//! [index]: crate::verdict::counter_index
//!
//! Two families meet in a value: `F` is that of the pods, `O` (outer) that of the underlay. The
//! programs are built for tunnels over the pods' own family, as flannel's are.

#![expect(
    unsafe_code,
    reason = "marker traits of map values, which no derive gives to generic types"
)]

use bytemuck::{Pod as Plain, Zeroable};

use crate::family::{Family, V4, V6};
use crate::packet::Ethernet;

/// Version of all types in this module; part of the name of the directory with the pinned maps.
pub const ABI_VERSION: u32 = 4;

/// Most pods of a node; a Linux bridge has no more ports.
pub const MAX_PODS: u32 = 1024;
/// Most devices of a node: those of the pods, and the VXLAN device.
pub const MAX_DEVICES: u32 = MAX_PODS + 1;
/// Most peer subnets of the fast path.
pub const MAX_PEERS: u32 = 16384;
/// Most flows of the IP stack that are remembered.
pub const MAX_FLOWS: u32 = 131_072;

/// The program may short-cut packets; without it every packet is left to the kernel.
pub const CONFIG_ACTIVE: u32 = 1 << 0;
/// Every lease is in the map of peers, so that a source without an entry belongs to no node.
pub const CONFIG_PEERS_COMPLETE: u32 = 1 << 1;
/// Another VXLAN device shares the UDP port, so that a packet with an unknown VNI must not be
/// refused.
pub const CONFIG_SHARED_PORT: u32 = 1 << 2;
/// Super-packets from the network are left to the kernel's VXLAN device.
pub const CONFIG_AGGREGATES_TO_KERNEL: u32 = 1 << 3;
/// Not every node is in the map of VTEPs, so that a sender without an entry may be honest.
pub const CONFIG_VTEPS_INCOMPLETE: u32 = 1 << 4;
/// Packets of some nodes' pods arrive by the NIC without encapsulation.
pub const CONFIG_DIRECT: u32 = 1 << 5;
/// The programs report refused packets in `ov_events`.
pub const CONFIG_EVENTS: u32 = 1 << 6;
/// A program encapsulates packets from the IP stack to other nodes before the VXLAN device does.
pub const CONFIG_ENCAPSULATE_FOR_STACK: u32 = 1 << 7;

/// This pod's packets, in both directions, are left to the kernel: its veth has a qdisc or a
/// program that another process attached on purpose.
pub const POD_KERNEL_PATH: u16 = 1 << 0;

/// This node's configuration, for all programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<F: Family, O: Family = F> {
    /// [`ABI_VERSION`] of the agent that wrote this.
    pub abi: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// The NIC by which encapsulated packets leave.
    pub underlay_ifindex: u32,
    /// The VXLAN device, by which a program hands packets for the IP stack in without their tunnel;
    /// zero where the device decapsulates them itself. The index is valid only while `ov_devices4`
    /// or its like contains it, see [`PodEntry::ifindex`].
    pub vtep_ifindex: u32,
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
    /// This node's address among its pods, the bridge's; all zeros while there is none. The VXLAN
    /// device has the first address of the subnet.
    pub gateway: F::Addr,
    /// The mask that gives the key of an address's peer.
    pub peer_mask: F::Addr,
    /// This node's address on the underlay.
    pub vtep: O::Addr,
    /// MAC address of the VXLAN device: the destination of inner frames from peers.
    pub vtep_mac: [u8; 6],
    /// MAC address of the bridge: the pods' gateway.
    pub bridge_mac: [u8; 6],
    /// UDP port of VXLAN; zero where nothing is encapsulated.
    pub port: u16,
    /// Lowest source port of encapsulated packets.
    pub source_port_min: u16,
    /// Number of source ports from the lowest one on.
    pub source_port_count: u16,
    /// MAC address of the NIC, by which XDP recognises packets for this host.
    pub underlay_mac: [u8; 6],
}

/// Most addresses of one family of an endpoint. A container's further addresses are recognised by
/// [`Endpoint::owner`].
pub const ENDPOINT_ADDRESSES: usize = 4;

/// The pod behind a host veth, for the programs on that veth.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<F: Family> {
    /// The overlay addresses that the pod may send from. Unused places repeat the first one.
    pub addresses: [F::Addr; ENDPOINT_ADDRESSES],
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// `POD_*`.
    pub flags: u16,
    /// Identifies the container; zero where the container is not known. Endpoints with the same
    /// owner are interfaces of one container, which may send from any of its addresses by any of
    /// them.
    pub owner: u32,
}

impl<F: Family> Endpoint<F> {
    /// The places for these addresses; `None` where there is no address, or too many.
    #[must_use]
    pub fn places(addresses: &[F::Addr]) -> Option<[F::Addr; ENDPOINT_ADDRESSES]> {
        let mut places = [*addresses.first()?; ENDPOINT_ADDRESSES];
        places
            .get_mut(..addresses.len())?
            .copy_from_slice(addresses);
        Some(places)
    }

    /// Whether the pod may send from this address.
    #[inline(always)]
    pub fn has(&self, address: F::Addr) -> bool {
        let [first, second, third, fourth] = self.addresses;
        F::same(address, first)
            || F::same(address, second)
            || F::same(address, third)
            || F::same(address, fourth)
    }
}

/// The device and attributes of a pod of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct PodEntry {
    /// The host end of the pod's veth pair. The entry is valid only while `ov_devices4` or its like
    /// contains this index. The kernel removes a deleted device from such a map, so that the index
    /// of another device, which may get the same number, leads nowhere.
    pub ifindex: u32,
    /// Longest IP packet that the pod's device accepts, in bytes.
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

/// Packets go to the peer without encapsulation: of [`PeerEntry::header`] only the outer MAC
/// addresses are valid, and frames of the peer's pods come from the first of them.
pub const PEER_DIRECT: u32 = 1 << 1;

/// How to reach a peer's subnet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEntry<O: Family> {
    /// All headers in front of the inner IP packet, complete except for lengths, IP identification,
    /// ECN and source port: see [`Family::prepare`]. The outer MAC addresses are valid with
    /// [`PEER_NEXT_HOP`] only.
    pub header: O::Front,
    /// The peer's address on the underlay.
    pub vtep: O::Addr,
    /// Longest IP packet of a pod that fits the path, in bytes.
    pub mtu: u32,
    /// `PEER_*`.
    pub flags: u32,
}

impl<O: Family> PeerEntry<O> {
    /// The Ethernet header of frames inside the tunnel: the last header in front of a packet.
    #[inline(always)]
    pub fn inner_ethernet(&self) -> Ethernet {
        match *self.header.as_ref() {
            [.., a, b, c, d, e, f, g, h, i, j, k, l, m, n] => Ethernet {
                destination: [a, b, c, d, e, f],
                source: [g, h, i, j, k, l],
                ethertype: u16::from_be_bytes([m, n]),
            },
            _ => Ethernet {
                destination: [0; 6],
                source: [0; 6],
                ethertype: 0,
            },
        }
    }

    /// An entry with [`PEER_DIRECT`], whose MAC addresses are not known yet.
    #[must_use]
    pub fn direct(vtep: O::Addr, mtu: u32) -> Self {
        Self {
            header: Zeroable::zeroed(),
            vtep,
            mtu,
            flags: PEER_DIRECT,
        }
    }

    /// The outer MAC addresses: of the next hop, and of the NIC.
    #[inline(always)]
    pub fn outer_macs(&self) -> ([u8; 6], [u8; 6]) {
        match *self.header.as_ref() {
            [a, b, c, d, e, f, g, h, i, j, k, l, ..] => ([a, b, c, d, e, f], [g, h, i, j, k, l]),
            _ => Default::default(),
        }
    }
}

/// A sign of life from the agent, which follows the kernel's neighbour table and the store's
/// leases.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Heartbeat {
    /// End of the validity of prepared MAC addresses (`CLOCK_MONOTONIC`, nanoseconds). Afterwards
    /// the kernel looks the next hop up packet by packet.
    pub next_hops_until_ns: u64,
    /// End of the validity of the list of leases (`CLOCK_MONOTONIC`, nanoseconds). Afterwards a
    /// node without an entry may have joined in the meantime, and is left to the kernel.
    pub leases_until_ns: u64,
}

/// A node that holds a lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Plain, Zeroable)]
pub struct Vtep {
    /// Number of subnets that the node holds.
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
    /// Time at which the stack last sent a packet of the flow (`CLOCK_MONOTONIC`, nanoseconds).
    pub last_seen_ns: u64,
}

/// Key of `ov_flow_news4` and its like: the time at which a program last added a flow. Written
/// after the flow was added, and before its packet is sent on.
pub const NEWEST_FLOW: u32 = 0;
/// Key of `ov_flow_news4` and its like: the value of [`NEWEST_FLOW`] before the agent found no
/// flow. While both values are equal there is still no flow, and the programs skip the look-up.
pub const NO_FLOW_SINCE: u32 = 1;

/// A time by which the programs know whether there are flows to look up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Plain, Zeroable)]
pub struct FlowNews {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
}

/// The packets with one verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Plain, Zeroable)]
pub struct Counter {
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on, as the program saw them.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Config<V4>>() == 72);
    assert!(size_of::<Config<V6>>() == 156);
    assert!(size_of::<Config<V6, V4>>() == 144);
    assert!(size_of::<Config<V4, V6>>() == 84);
    assert!(size_of::<Endpoint<V4>>() == 28);
    assert!(size_of::<Endpoint<V6>>() == 76);
    assert!(size_of::<PodEntry>() == 20);
    assert!(size_of::<PeerEntry<V4>>() == 76);
    assert!(size_of::<PeerEntry<V6>>() == 108);
    assert!(size_of::<FlowKey<V4>>() == 16);
    assert!(size_of::<FlowKey<V6>>() == 40);
};

/// The derive of bytemuck refuses generic types, so the traits are implemented here, once. The
/// assertions above show that for every family the sizes are the sums of the fields, so that there
/// is no padding.
macro_rules! plain {
    ($($name:ident<$($family:ident),+>),* $(,)?) => {$(
        // SAFETY: all zeros is a value of each field.
        unsafe impl<$($family: Family),+> Zeroable for $name<$($family),+> {}
        // SAFETY: `repr(C)`, every field is plain, no padding (sizes asserted above), 'static and
        // Copy.
        unsafe impl<$($family: Family),+> Plain for $name<$($family),+> {}
        #[cfg(feature = "user")]
        // SAFETY: as above: any bytes are a value, and all bytes of a value are initialised.
        unsafe impl<$($family: Family),+> aya::Pod for $name<$($family),+> {}
    )*};
}
plain!(Config<F, O>, Endpoint<F>, PeerEntry<O>, FlowKey<F>);

#[cfg(feature = "user")]
mod user {
    // SAFETY: the types derive `bytemuck::Pod`, which checks the requirements of `aya::Pod`.
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
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::event::Event {}
}

#[cfg(test)]
mod tests;
