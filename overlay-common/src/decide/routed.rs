//! The decision on a packet without encapsulation from a pod of a node on the same link.
//!
//! No outer header names the node that sent the packet. The kernel's neighbour table has the MAC
//! address of a node's frames, and packets from that address take the short cut. A packet is never
//! refused for its MAC address, because honest nodes may send from another one than they answer ARP
//! with (bonding in the modes balance-tlb and balance-alb, two devices on one link).

use super::arrived::{Arrived, FromNetwork, pass, receiver};
use super::{
    CONFIG_ACTIVE, CONFIG_DIRECT, Config, ETHERNET_LEN, Family, Ip, PEER_DIRECT, PEER_NEXT_HOP,
    POD_KERNEL_PATH, Packet, Pass, PeerEntry, PodEntry, Tables, Verdict, fits, in_a_vlan,
    in_network, in_own_subnet, is_not_stack_owned, is_regular, same_mac,
};

/// The packet, if it arrives without encapsulation and its source is in the overlay's network.
/// `arrived` is the packet as one of the underlay's family, which need not be the pods' family.
#[inline(always)]
pub(super) fn parse<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    arrived: Option<&Arrived<O>>,
) -> Option<Arrived<F>> {
    if config.flags & CONFIG_DIRECT == 0 {
        return None;
    }
    let routed = if F::ETHERTYPE == O::ETHERTYPE {
        arrived?.of_family()?
    } else {
        Arrived::parse(packet)?
    };
    in_network(config, routed.ip.source).then_some(routed)
}

/// Checks that the packet comes from the MAC address of the node whose subnet contains the source;
/// `Err` has the outcome for a packet from elsewhere.
#[inline(always)]
pub(super) fn sender<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    routed: &Arrived<F>,
) -> Result<(), FromNetwork<'t, F>> {
    if in_a_vlan(packet) || !packet.to_this_host() {
        return Err(pass(Verdict::NotForUs));
    }
    let source = routed.ip.source;
    // A packet of this node's own pods does not come from the network.
    if in_own_subnet(config, source) {
        return Err(FromNetwork::Refuse(Verdict::ForeignInnerSource));
    }
    let sends_from_here = |peer: &PeerEntry<O>| {
        peer.flags & PEER_DIRECT != 0
            && peer.flags & PEER_NEXT_HOP != 0
            && same_mac(routed.ethernet.source, peer.outer_macs().0)
    };
    let subnet = F::mask(source, config.peer_mask);
    if tables.peer(subnet).is_some_and(sends_from_here) {
        Ok(())
    } else {
        Err(FromNetwork::Pass(plain(Verdict::UnprovenSource)))
    }
}

/// Decides on a packet whose sender has been checked.
#[inline(always)]
pub(super) fn deliver<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &'t T,
    routed: &Arrived<F>,
) -> FromNetwork<'t, F> {
    let ip = &routed.ip;
    let pod = match receiver(config, tables, ip.destination, ETHERNET_LEN) {
        Ok(pod) => pod,
        Err(pass) => return FromNetwork::Pass(pass),
    };
    match is_ordinary(packet, config, tables, ip, pod) {
        Ok(()) => FromNetwork::Deliver {
            pod,
            gateway_mac: config.bridge_mac,
            header: F::forwarded(ip.header),
        },
        Err(verdict) => FromNetwork::Pass(plain(verdict)),
    }
}

#[inline(always)]
const fn plain(verdict: Verdict) -> Pass {
    Pass::plain(verdict, ETHERNET_LEN)
}

/// The conditions of the short cut on a packet.
#[inline(always)]
fn is_ordinary<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    ip: &Ip<F>,
    pod: &PodEntry,
) -> Result<(), Verdict> {
    if config.flags & CONFIG_ACTIVE == 0 {
        return Err(Verdict::Inactive);
    }
    if packet.vlan().is_some() {
        return Err(Verdict::VlanTag);
    }
    if pod.flags & POD_KERNEL_PATH != 0 {
        return Err(Verdict::PodKernelPath);
    }
    is_regular(packet, ip, ETHERNET_LEN)?;
    if ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if !fits(packet, ip, ETHERNET_LEN, pod.mtu)? {
        return Err(Verdict::TooLong);
    }
    is_not_stack_owned(packet, config, tables, ip, ETHERNET_LEN)
}
