//! The decision on a packet that arrives by the NIC.

use super::arrived::{Arrived, FromNetwork, pass, receiver};
use super::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT,
    CONFIG_VTEPS_INCOMPLETE, Config, ETHERNET_LEN, Ethernet, Family, Fragment, Ip, POD_KERNEL_PATH,
    Packet, Pass, PeerEntry, PodEntry, Tables, UDP, Verdict, fits, in_a_vlan, in_network,
    in_own_subnet, is_not_stack_owned, is_regular, is_this_node, routed, same_mac, vxlan,
};
use crate::packet::TCP;
use crate::vxlan::DecapsulatedEcn;

/// UDP (RFC 768) and VXLAN (RFC 7348) headers, in bytes.
const UDP_LEN: u32 = 8;
const VXLAN_LEN: u32 = 8;

/// Decides on a packet that arrived from the underlay, seen at the NIC.
#[inline(always)]
pub fn from_network<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
) -> FromNetwork<'t, F> {
    let Some(config) = tables.config() else {
        return pass(Verdict::Inactive);
    };
    let arrived = Arrived::<O>::parse(packet);
    if let Some(routed) = routed::parse(packet, config, arrived.as_ref()) {
        return match routed::sender(packet, config, tables, &routed) {
            Ok(()) => routed::deliver(packet, config, tables, &routed),
            Err(end) => end,
        };
    }
    let Some(Arrived { ip: outer, .. }) = arrived else {
        return pass(Verdict::NotVxlan);
    };
    let udp_length_and_checksum = match to_vtep(packet, config, &outer) {
        Ok(second_word) => second_word,
        Err(verdict) => return pass(verdict),
    };
    let inner = match inner(packet, config, tables, &outer) {
        Ok(inner) => inner,
        Err(end) => return end,
    };

    // By now the sender is verified.
    if config.flags & CONFIG_ACTIVE == 0 {
        return FromNetwork::Pass(Pass::plain(Verdict::Inactive, inner.offset));
    }
    let opened = open(packet, config, &outer, udp_length_and_checksum, &inner);
    // Next comes the receiver.
    let pod = match receiver(config, tables, inner.ip.destination, inner.offset) {
        Ok(pod) => pod,
        Err(pass) => return to_stack(packet, config, tables, &inner, opened, pass),
    };
    let ecn = match is_ordinary(packet, config, tables, opened, &inner, pod) {
        Ok(ecn) => ecn,
        Err(verdict) => {
            let pass = Pass::plain(verdict, inner.offset);
            return to_stack(packet, config, tables, &inner, opened, pass);
        }
    };
    // The order is the kernel's: the VXLAN device adapts the ECN field, then forwarding takes a
    // hop.
    let header = match ecn {
        DecapsulatedEcn::Congested => F::congested(inner.ip.header),
        _ => inner.ip.header,
    };
    FromNetwork::Decapsulate {
        pod,
        gateway_mac: config.bridge_mac,
        header: F::forwarded(header),
    }
}

/// Why to drop a packet that has just arrived, before the kernel makes a socket buffer for it;
/// `None` leaves the packet to the kernel.
///
/// Refuses exactly the packets that [`from_network`] would refuse, for the same reason.
#[inline(always)]
pub fn refused_early<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &T,
) -> Option<Verdict> {
    let config = tables.config()?;
    let arrived = Arrived::<O>::parse(packet);
    if let Some(routed) = routed::parse(packet, config, arrived.as_ref()) {
        return match routed::sender(packet, config, tables, &routed) {
            Err(FromNetwork::Refuse(verdict)) => Some(verdict),
            _ => None,
        };
    }
    let outer = arrived?.ip;
    to_vtep(packet, config, &outer).ok()?;
    match inner(packet, config, tables, &outer) {
        Err(FromNetwork::Refuse(verdict)) => Some(verdict),
        _ => None,
    }
}

/// The second word of the UDP header (length and checksum) of VXLAN for this node; or why the
/// packet is left to the kernel.
#[inline(always)]
fn to_vtep<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    outer: &Ip<O>,
) -> Result<u32, Verdict> {
    if outer.protocol != UDP || outer.fragment == Fragment::Later {
        return Err(Verdict::NotVxlan);
    }
    let Some([ports, udp_length_and_checksum]) = packet.load::<2>(ETHERNET_LEN + outer.header_len)
    else {
        return Err(Verdict::NotVxlan);
    };
    let [_, _, port_hi, port_lo] = ports.to_ne_bytes();
    if u16::from_be_bytes([port_hi, port_lo]) != config.port {
        return Err(Verdict::NotVxlan);
    }
    if in_a_vlan(packet) || !packet.to_this_host() || !O::same(outer.destination, config.vtep) {
        return Err(Verdict::NotForUs);
    }
    Ok(udp_length_and_checksum)
}

/// A packet in VXLAN whose sender has been checked.
struct Inner<F: Family> {
    ethernet: Ethernet,
    ip: Ip<F>,
    /// Where `ip` starts in the frame.
    offset: u32,
}

/// Parses VXLAN as far as needed to identify the sender of the inner packet, and verifies that the
/// sender may use the inner source.
#[inline(always)]
fn inner<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    outer: &Ip<O>,
) -> Result<Inner<F>, FromNetwork<'t, F>> {
    let vxlan = ETHERNET_LEN + outer.header_len + UDP_LEN;
    let offset = vxlan + VXLAN_LEN + ETHERNET_LEN;
    // The later fragments of a datagram are not seen; only the first can be judged, so it must
    // contain all headers that are checked. Bytes behind the end of the packet do not count,
    // because the kernel cuts them off.
    if outer.fragment == Fragment::First && ETHERNET_LEN + outer.total_len < offset + F::HEADER_LEN
    {
        return Err(FromNetwork::Refuse(Verdict::HidingFragment));
    }
    let Some([flags, vni]) = packet.load::<2>(vxlan) else {
        return Err(pass(Verdict::Malformed));
    };
    let vni = u32::from_be(vni);
    if flags != u32::from_ne_bytes(vxlan::FLAGS) || vni & 0xff != 0 {
        return Err(pass(Verdict::VxlanExtension));
    }
    if vni >> 8 != config.vni {
        return Err(if config.flags & CONFIG_SHARED_PORT != 0 {
            pass(Verdict::ForeignVni)
        } else {
            FromNetwork::Refuse(Verdict::WrongVni)
        });
    }
    let Some(ethernet) = Ethernet::parse(packet, vxlan + VXLAN_LEN) else {
        return Err(pass(Verdict::Malformed));
    };
    let ip = if ethernet.ethertype == F::ETHERTYPE {
        F::parse(packet, offset)
    } else {
        None
    };
    if let Some(ip) = ip {
        let owned = |peer: &PeerEntry<O>| O::same(peer.vtep, outer.source);
        if cfg!(feature = "without-inner-source")
            || tables
                .peer(F::mask(ip.source, config.peer_mask))
                .is_some_and(owned)
        {
            return Ok(Inner {
                ethernet,
                ip,
                offset,
            });
        }
    }

    // The packet failed the direct check; its verdict follows.
    let is_node = tables.is_vtep(outer.source);
    let all_listed = if is_node {
        config.flags & CONFIG_PEERS_COMPLETE != 0
    } else {
        config.flags & CONFIG_VTEPS_INCOMPLETE == 0
    };
    // Why a sender or source without an entry may be honest nevertheless.
    let doubt = if !all_listed {
        Some(Verdict::PeersIncomplete)
    } else if tables.leases_are_stale() {
        Some(Verdict::StaleLeases)
    } else {
        None
    };
    if !is_node && doubt.is_none() {
        return Err(FromNetwork::Refuse(Verdict::UnknownVtep));
    }
    if ethernet.is_tagged() {
        return Err(FromNetwork::Refuse(Verdict::InnerVlan));
    }
    if ethernet.ethertype != F::ETHERTYPE {
        return Err(FromNetwork::Refuse(Verdict::InnerProtocol));
    }
    let Some(ip) = ip else {
        return Err(pass(Verdict::Malformed));
    };
    // This node's own subnet belongs to no other node, even while the list of leases is incomplete.
    if in_own_subnet(config, ip.source) {
        return Err(FromNetwork::Refuse(Verdict::ForeignInnerSource));
    }
    if is_node && !in_network(config, ip.source) {
        return Err(pass(Verdict::ForeignSource));
    }
    Err(match doubt {
        Some(verdict) => pass(verdict),
        None => FromNetwork::Refuse(Verdict::ForeignInnerSource),
    })
}

/// The conditions on every packet that a program decapsulates; returns the change of its ECN field.
#[inline(always)]
fn open<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    outer: &Ip<O>,
    udp_length_and_checksum: u32,
    inner: &Inner<F>,
) -> Result<DecapsulatedEcn, Verdict> {
    if packet.vlan().is_some() {
        return Err(Verdict::VlanTag);
    }
    is_regular(packet, outer, ETHERNET_LEN)?;
    is_regular(packet, &inner.ip, inner.offset)?;
    // The outer checksum need not be zero, and need not be verified (RFC 7348, section 5), because
    // the inner packet has its own.
    let [udp_len_hi, udp_len_lo, _, _] = udp_length_and_checksum.to_ne_bytes();
    let udp_len = u32::from(u16::from_be_bytes([udp_len_hi, udp_len_lo]));
    if outer.total_len != udp_len + outer.header_len {
        return Err(Verdict::Malformed);
    }
    if !same_mac(inner.ethernet.destination, config.vtep_mac)
        || same_mac(inner.ethernet.source, config.vtep_mac)
    {
        return Err(Verdict::ForeignMac);
    }
    match vxlan::decapsulated_ecn(outer.ecn, inner.ip.ecn) {
        DecapsulatedEcn::Unusual => Err(Verdict::EcnPair),
        ecn => Ok(ecn),
    }
}

/// Hands a packet with a verified sender to the IP stack: at the VXLAN device, where the device
/// would not change the inner packet; else the device decapsulates the packet itself.
#[inline(always)]
fn to_stack<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    inner: &Inner<F>,
    opened: Result<DecapsulatedEcn, Verdict>,
    pass: Pass,
) -> FromNetwork<'t, F> {
    let device = config.vtep_ifindex;
    // The agent checks by ICMP whether the kernel's own path to the peers works, so ICMP to this
    // node must use that path.
    let is_question = inner.ip.protocol == F::ICMP && is_this_node(config, inner.ip.destination);
    // A super-packet stays marked as tunnelled after decapsulation, see `is_ordinary`.
    let is_single = packet.gso_size() == 0;
    if device != 0
        && !is_question
        && is_single
        && matches!(opened, Ok(DecapsulatedEcn::Keep))
        && tables.has_device(device)
    {
        FromNetwork::HandIn {
            device,
            ethernet: inner.ethernet,
            pass,
        }
    } else {
        FromNetwork::Pass(pass)
    }
}

/// The conditions of the short cut on a packet whose sender and receiver are known.
#[inline(always)]
fn is_ordinary<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    opened: Result<DecapsulatedEcn, Verdict>,
    inner: &Inner<F>,
    pod: &PodEntry,
) -> Result<DecapsulatedEcn, Verdict> {
    let ecn = opened?;
    if pod.flags & POD_KERNEL_PATH != 0 {
        return Err(Verdict::PodKernelPath);
    }
    if inner.ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    // A super-packet stays marked as tunnelled after the decapsulation (SKB_GSO_UDP_TUNNEL, until
    // BPF_F_ADJ_ROOM_DECAP_L4_UDP). TCP accepts such a super-packet. A UDP socket has it segmented
    // into datagrams first, and loses all of them, because segmentation finds no tunnel.
    if packet.gso_size() != 0
        && (inner.ip.protocol != TCP || config.flags & CONFIG_AGGREGATES_TO_KERNEL != 0)
    {
        return Err(Verdict::Aggregate);
    }
    if !fits(packet, &inner.ip, inner.offset, pod.mtu)? {
        return Err(Verdict::TooLong);
    }
    is_not_stack_owned(packet, config, tables, &inner.ip, inner.offset)?;
    Ok(ecn)
}
