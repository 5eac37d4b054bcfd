//! The decision on a packet: pure code over any tables.
//!
//! [`from_pod`], [`from_network`], [`refused_early`], [`leaving`] and [`sending`] are the whole
//! policy of the data path. The eBPF programs call these functions with BPF maps behind [`Tables`]
//! and carry out the results; tools and tests call them with tables of their own.
//!
//! Checks that refuse come before every step that hands a packet over, so that no oddity (an
//! option, a fragment, a tag) bypasses a check.

use crate::family::{Family, Fragment, Ip, same_family};
use crate::packet::{ETHERNET_LEN, Ethernet, Packet, TCP, UDP, same_mac, segment_header_len};
use crate::schema::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_DIRECT, CONFIG_ENCAPSULATE_FOR_STACK,
    CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT, CONFIG_VTEPS_INCOMPLETE, Config, Endpoint, FlowKey,
    PEER_DIRECT, PEER_NEXT_HOP, POD_KERNEL_PATH, PeerEntry, PodEntry,
};
use crate::transport::Transport;
use crate::verdict::Verdict;
use crate::vxlan;

mod arrived;
mod leaving;
mod mark;
mod network;
mod pod;
mod routed;
mod sending;

pub use arrived::FromNetwork;
pub use leaving::{Leaving, leaving};
pub use mark::mark;
pub use network::{from_network, refused_early};
pub use pod::{FromPod, from_pod};
pub use sending::{Encapsulation, Sending, sending};

/// The tables behind the decision: for pods of one family, over an underlay of another or the same.
pub trait Tables<F: Family, O: Family = F> {
    /// This node's configuration; `None` before an agent has written one.
    fn config(&self) -> Option<&Config<F, O>>;
    /// The pod behind a host veth.
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<F>>;
    /// A pod of this node by its address.
    fn pod(&self, address: F::Addr) -> Option<&PodEntry>;
    /// The peer that owns a subnet, by its address under [`Config::peer_mask`].
    fn peer(&self, subnet: F::Addr) -> Option<&PeerEntry<O>>;
    /// Whether a device that an entry names still exists.
    fn has_device(&self, ifindex: u32) -> bool;
    /// Whether a node that holds a lease has this underlay address.
    fn is_vtep(&self, address: O::Addr) -> bool;
    /// Whether the IP stack owns this flow.
    fn is_stack_owned(&self, flow: &FlowKey<F>) -> bool;
    /// Whether no agent has kept the list of leases for so long that no packet may be refused by
    /// the list.
    fn leases_are_stale(&self) -> bool;
}

/// A packet that is left to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Why.
    pub verdict: Verdict,
    /// Where the IP header starts in the frame of plain pod-to-pod traffic, which the fast path
    /// could have carried as well; `None` for other traffic. When the stack sends such a packet on
    /// unchanged, the flow need not be remembered; see [`mark`].
    pub plain: Option<u32>,
}

impl Pass {
    /// Traffic that the stack is expected to translate, or whose replies pass through the stack
    /// anyway.
    #[inline(always)]
    const fn of(verdict: Verdict) -> Self {
        Self {
            verdict,
            plain: None,
        }
    }

    /// Plain pod-to-pod traffic.
    #[inline(always)]
    const fn plain(verdict: Verdict, ip_offset: u32) -> Self {
        Self {
            verdict,
            plain: Some(ip_offset),
        }
    }
}

/// 802.1Q: the VLAN identifier in the tag; 0 marks a frame that carries a priority only.
const VLAN_ID: u16 = 0x0fff;

/// Whether the kernel counts a tagged frame as one of another network.
#[inline(always)]
fn in_a_vlan<P: Packet>(packet: &P) -> bool {
    matches!(packet.vlan(), Some(tag) if tag & VLAN_ID != 0)
}

/// Whether an address is in the overlay's network.
#[inline(always)]
fn in_network<F: Family, O: Family>(config: &Config<F, O>, address: F::Addr) -> bool {
    F::same(F::mask(address, config.network_mask), config.network)
}

/// Whether an address is in this node's own subnet.
#[inline(always)]
fn in_own_subnet<F: Family, O: Family>(config: &Config<F, O>, address: F::Addr) -> bool {
    F::same(F::mask(address, config.subnet_mask), config.subnet)
}

/// Whether an address in the own subnet is this node's: the bridge's, or the VXLAN device's.
#[inline(always)]
fn is_this_node<F: Family, O: Family>(config: &Config<F, O>, address: F::Addr) -> bool {
    F::same(address, config.gateway) || F::same(address, config.subnet)
}

/// Whether the packet, or each segment that it stands for, fits `mtu`.
///
/// `Err` where the answer cannot be determined.
#[inline(always)]
fn fits<F: Family, P: Packet>(
    packet: &P,
    ip: &Ip<F>,
    ip_offset: u32,
    mtu: u32,
) -> Result<bool, Verdict> {
    let gso_size = packet.gso_size();
    if gso_size == 0 {
        return Ok(ip.total_len <= mtu);
    }
    let transport = ip_offset + ip.header_len;
    match segment_header_len(packet, transport, ip.header_len, ip.protocol) {
        Some(headers) => Ok(gso_size + headers <= mtu),
        None => Err(Verdict::Aggregate),
    }
}

/// Whether the frame has the length that the IP header gives.
///
/// TCP super-packets whose length does not fit the field have zero there (`iph_totlen()` of
/// include/linux/ip.h, since Linux 6.3).
#[inline(always)]
fn is_whole<F: Family, P: Packet>(packet: &P, ip: &Ip<F>, ip_offset: u32) -> bool {
    let len = packet.frame_len() - ip_offset;
    ip.total_len == len
        || ip.total_len == 0
            && len > u32::from(u16::MAX)
            && ip.protocol == TCP
            && packet.gso_size() != 0
}

/// The conditions of every short cut on an IP packet: a whole datagram without options, whose
/// checksum and length the IP stack would accept. A short frame is padded on the wire, and the
/// kernel removes the padding.
#[inline(always)]
fn is_regular<F: Family, P: Packet>(packet: &P, ip: &Ip<F>, ip_offset: u32) -> Result<(), Verdict> {
    if ip.fragment != Fragment::No {
        return Err(Verdict::Fragment);
    }
    if ip.has_options() {
        return Err(Verdict::Options);
    }
    if !ip.checksum_ok || !is_whole(packet, ip, ip_offset) {
        return Err(Verdict::Malformed);
    }
    Ok(())
}

/// Whether the outer length fields can hold a packet's length: the fields have 16 bits, and a zero
/// in a tunnel's headers does not stand for a larger length.
#[inline(always)]
fn fits_in_vxlan<O: Family, P: Packet>(packet: &P) -> bool {
    packet.frame_len() - ETHERNET_LEN <= u32::from(u16::MAX) - O::VXLAN_OVERHEAD
}

/// The condition of every short cut on a flow: the IP stack has not translated it.
#[inline(always)]
fn is_not_stack_owned<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    ip: &Ip<F>,
    ip_offset: u32,
) -> Result<(), Verdict> {
    let flow = flow(packet, config, ip, ip_offset)?;
    if tables.is_stack_owned(&flow) {
        Err(Verdict::StackOwned)
    } else {
        Ok(())
    }
}

/// The flow of a packet, or why the fast path cannot determine the flow.
#[inline(always)]
fn flow<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    ip: &Ip<F>,
    ip_offset: u32,
) -> Result<FlowKey<F>, Verdict> {
    match Transport::parse::<F, _>(packet, ip_offset + ip.header_len, ip.protocol) {
        Transport::Ports {
            source,
            destination,
        } => Ok(FlowKey::new(
            (ip.source, source),
            (ip.destination, destination),
            ip.protocol,
        )),
        Transport::IcmpError { quoted } => quoted_flow(packet, config, ip, quoted),
        Transport::IcmpOther => Err(Verdict::IcmpError),
        Transport::Truncated => Err(Verdict::Malformed),
    }
}

/// The flow that an ICMP error is about.
/// The stack cannot deliver the error: connection tracking has not seen packets that the fast path
/// carried, counts an error about them as invalid, and kube-proxy's rules drop invalid packets.
#[inline(always)]
fn quoted_flow<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    ip: &Ip<F>,
    offset: u32,
) -> Result<FlowKey<F>, Verdict> {
    let Some(quoted) = F::parse(packet, offset) else {
        return Err(Verdict::IcmpError);
    };
    // An honest error goes to the sender of the quoted packet; any other error is about a
    // translated packet.
    if !F::same(quoted.source, ip.destination)
        || !in_network(config, quoted.destination)
        || quoted.fragment == Fragment::Later
    {
        return Err(Verdict::IcmpError);
    }
    match Transport::parse::<F, _>(packet, offset + quoted.header_len, quoted.protocol) {
        Transport::Ports {
            source,
            destination,
        } => Ok(FlowKey::new(
            (quoted.source, source),
            (quoted.destination, destination),
            quoted.protocol,
        )),
        _ => Err(Verdict::IcmpError),
    }
}
