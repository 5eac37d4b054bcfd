//! What comes from the network without encapsulation: packets of pods of nodes on the same link.
//!
//! No outer header tells which node sent it. What is known is the MAC address that a node's frames
//! come from, by the kernel's neighbour table: what comes from there takes the short cut. Nothing
//! else is refused for its MAC address, because honest nodes may send from another one than they
//! answer ARP with (bonding in the modes balance-tlb and balance-alb, two devices on one link).

use super::network::{Arrived, FromNetwork, pass};
use super::{
    CONFIG_ACTIVE, CONFIG_DIRECT, Config, ETHERNET_LEN, Family, Fragment, PEER_DIRECT,
    PEER_NEXT_HOP, POD_KERNEL_PATH, Packet, Pass, Peer, Pod, Tables, Verdict, fits, flow,
    in_a_vlan, in_network, in_own_subnet, is_this_node, is_whole, same_mac,
};

/// Whether a packet claims to be a pod's although nothing is around it.
#[inline(always)]
pub(super) fn concerns<F: Family>(config: &Config<F>, arrived: &Arrived<F>) -> bool {
    config.flags & CONFIG_DIRECT != 0 && in_network(config, arrived.ip.source)
}

/// Whether the packet comes from where its source is; or how it ends.
#[inline(always)]
pub(super) fn sender<'t, F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    config: &Config<F>,
    tables: &T,
    arrived: &Arrived<F>,
) -> Result<(), FromNetwork<'t, F>> {
    if in_a_vlan(packet) || !packet.to_this_host() {
        return Err(pass(Verdict::NotForUs));
    }
    let source = arrived.ip.source;
    // This node's own pods are not out there.
    if in_own_subnet(config, source) {
        return Err(FromNetwork::Refuse(Verdict::ForeignInnerSource));
    }
    let sends_from_here = |peer: &Peer<F>| {
        let [a, b, c, d, e, f, ..] = peer.header;
        peer.flags & (PEER_DIRECT | PEER_NEXT_HOP) == PEER_DIRECT | PEER_NEXT_HOP
            && same_mac(arrived.ethernet.source, [a, b, c, d, e, f])
    };
    let subnet = F::mask(source, config.peer_mask);
    if tables.peer(subnet).is_some_and(sends_from_here) {
        Ok(())
    } else {
        Err(FromNetwork::Pass(plain(Verdict::UnprovenSource)))
    }
}

/// What to do with a packet whose sender has been checked.
#[inline(always)]
pub(super) fn receiver<'t, F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    config: &Config<F>,
    tables: &'t T,
    arrived: &Arrived<F>,
) -> FromNetwork<'t, F> {
    let to = arrived.ip.destination;
    let Some(pod) = tables.pod(to) else {
        let is_pod = in_own_subnet(config, to) && !is_this_node(config, to);
        return FromNetwork::Pass(if is_pod {
            plain(Verdict::UnknownPod)
        } else {
            Pass::of(Verdict::NotOverlay)
        });
    };
    match is_ordinary(packet, config, tables, arrived, pod) {
        Ok(()) => FromNetwork::Deliver {
            pod,
            gateway_mac: config.bridge_mac,
            header: F::forwarded(arrived.ip.header),
        },
        Err(verdict) => FromNetwork::Pass(plain(verdict)),
    }
}

#[inline(always)]
const fn plain(verdict: Verdict) -> Pass {
    Pass::plain(verdict, ETHERNET_LEN)
}

/// What the short cut asks of a packet.
#[inline(always)]
fn is_ordinary<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    config: &Config<F>,
    tables: &T,
    arrived: &Arrived<F>,
    pod: &Pod,
) -> Result<(), Verdict> {
    let ip = &arrived.ip;
    if config.flags & CONFIG_ACTIVE == 0 {
        return Err(Verdict::Inactive);
    }
    if packet.vlan().is_some() {
        return Err(Verdict::VlanTag);
    }
    if pod.flags & POD_KERNEL_PATH != 0 {
        return Err(Verdict::PodKernelPath);
    }
    if ip.fragment != Fragment::No {
        return Err(Verdict::Fragment);
    }
    if ip.has_options() {
        return Err(Verdict::Options);
    }
    // A short frame is padded on the wire; the kernel cuts that off.
    if !ip.checksum_ok || !is_whole(packet, ip, ETHERNET_LEN) {
        return Err(Verdict::Malformed);
    }
    if ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    if !fits(packet, ip, ETHERNET_LEN, pod.mtu)? {
        return Err(Verdict::TooLong);
    }
    let flow = flow(packet, config, ip, ETHERNET_LEN)?;
    if tables.is_stack_owned(&flow) {
        return Err(Verdict::StackOwned);
    }
    Ok(())
}
