//! What the IP stack sends: flows whose replies must find their way back through it.

use super::{
    CONFIG_ACTIVE, CONFIG_ENCAPSULATE_FOR_STACK, Config, ETHERNET_LEN, Ethernet, Family, FlowKey,
    Fragment, Ip, PEER_DIRECT, Packet, PeerEntry, Tables, Verdict, fits, fits_in_vxlan, flow,
    in_network, in_own_subnet, is_regular, mark, same_mac,
};
use crate::verdict::Hook;

/// What to do with a packet that is leaving; it is never held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving<F: Family> {
    /// Remember that the stack owns this flow.
    Remember(FlowKey<F>),
    /// Nothing to remember.
    Pass(Verdict),
}

/// Decides on a packet that leaves by the IP stack, towards a pod or another node.
///
/// `handed_over` is the [`mark`](super::mark()) that a program of ours put on this very packet when
/// it handed it over as plain pod-to-pod traffic, else zero. Whatever goes between overlay
/// addresses and does not bear its own mark has been translated (a Service, a host port, a source
/// port that was taken), for the fast path would have carried it: the replies have to be translated
/// back.
#[inline(always)]
pub fn leaving<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    handed_over: u16,
) -> Leaving<F> {
    match seen::<F, O, _, _>(packet, tables) {
        Ok((config, _, ip)) => translated(packet, config, tables, hook, handed_over, &ip),
        Err(verdict) => Leaving::Pass(verdict),
    }
}

/// The packet in front of the IP stack's tunnel to another node.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'t, F: Family, O: Family = F> {
    /// What there is to remember.
    pub leaving: Leaving<F>,
    /// Where it is to be encapsulated in the VXLAN device's place, and how.
    pub tunnel: Option<Encapsulation<'t, F, O>>,
}

/// What the IP stack sends to a peer. Its headers are the stack's, and stay.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation<'t, F: Family, O: Family = F> {
    /// From where.
    pub config: &'t Config<F, O>,
    /// Whereto.
    pub peer: &'t PeerEntry<O>,
    /// Its IP header.
    pub header: F::Header,
    /// Length of the IP packet in bytes.
    pub len: u32,
    /// Its ECN field.
    pub ecn: u8,
}

/// Decides on a packet that leaves by a device that leads to other nodes: see [`leaving`], and
/// whether it is encapsulated at once.
#[inline(always)]
pub fn sending<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
    handed_over: u16,
) -> Sending<'t, F, O> {
    match seen(packet, tables) {
        Ok((config, ethernet, ip)) => Sending {
            leaving: translated(packet, config, tables, Hook::VtepOut, handed_over, &ip),
            tunnel: encapsulation(packet, config, tables, &ethernet, &ip),
        },
        Err(verdict) => Sending {
            leaving: Leaving::Pass(verdict),
            tunnel: None,
        },
    }
}

/// How the VXLAN device would encapsulate a packet; `None` where that is the device's business.
#[inline(always)]
fn encapsulation<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &'t Config<F, O>,
    tables: &'t T,
    ethernet: &Ethernet,
    ip: &Ip<F>,
) -> Option<Encapsulation<'t, F, O>> {
    const WANTED: u32 = CONFIG_ACTIVE | CONFIG_ENCAPSULATE_FOR_STACK;
    if config.flags & WANTED != WANTED || packet.vlan().is_some() {
        return None;
    }
    let peer = tables.peer(F::mask(ip.destination, config.peer_mask))?;
    // A frame of another device, such as the NIC, or for another node than the address is of.
    let inner = peer.inner_ethernet();
    let is_tunnelled = peer.flags & PEER_DIRECT == 0
        && same_mac(ethernet.source, inner.source)
        && same_mac(ethernet.destination, inner.destination);
    if !is_tunnelled || is_regular(packet, ip, ETHERNET_LEN).is_err() {
        return None;
    }
    let fits =
        fits_in_vxlan::<O, _>(packet) && fits(packet, ip, ETHERNET_LEN, peer.mtu) == Ok(true);
    fits.then_some(Encapsulation {
        config,
        peer,
        header: ip.header,
        len: ip.total_len,
        ecn: ip.ecn,
    })
}

/// What every decision on a packet that leaves begins with.
#[inline(always)]
fn seen<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
) -> Result<(&'t Config<F, O>, Ethernet, Ip<F>), Verdict> {
    let config = tables.config().ok_or(Verdict::Inactive)?;
    let ethernet = Ethernet::parse(packet, 0).ok_or(Verdict::NotIp)?;
    if ethernet.ethertype != F::ETHERTYPE {
        return Err(Verdict::NotIp);
    }
    let ip = F::parse(packet, ETHERNET_LEN).ok_or(Verdict::NotIp)?;
    Ok((config, ethernet, ip))
}

#[inline(always)]
fn translated<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    hook: Hook,
    handed_over: u16,
    ip: &Ip<F>,
) -> Leaving<F> {
    // Of a datagram that the stack took apart, the first part tells.
    let is_plain = handed_over != 0
        && (ip.fragment == Fragment::Later || handed_over == mark::of(packet, ip, ETHERNET_LEN));
    if is_plain {
        return Leaving::Pass(Verdict::Passed);
    }
    // Replies to addresses that are no pods reach the stack anyway.
    let from_own_pod = in_network(config, ip.destination) && tables.pod(ip.source).is_some();
    let from_peers_pod =
        hook == Hook::PodOut && in_network(config, ip.source) && !in_own_subnet(config, ip.source);
    if !from_own_pod && !from_peers_pod {
        return Leaving::Pass(Verdict::Passed);
    }
    if ip.fragment == Fragment::Later {
        return Leaving::Pass(Verdict::Fragment);
    }
    match flow(packet, config, ip, ETHERNET_LEN) {
        Ok(flow) => Leaving::Remember(flow),
        Err(verdict) => Leaving::Pass(verdict),
    }
}
