//! The decision on a packet that the IP stack sends: replies to a translated flow must return
//! through the stack, so the flow is remembered.

use super::{
    Config, ETHERNET_LEN, Ethernet, Family, FlowKey, Fragment, Ip, Packet, Tables, Verdict, flow,
    in_network, in_own_subnet, mark,
};
use crate::verdict::Hook;

/// Outcomes of the decision on a packet that leaves the IP stack; no packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving<F: Family> {
    /// Remember that the stack owns this flow.
    Remember(FlowKey<F>),
    /// Remember nothing.
    Pass(Verdict),
}

/// Decides on a packet from the IP stack to a pod or another node.
///
/// `handed_over` is the [`mark`](super::mark()) that a program of ours put on this very packet when
/// it handed the packet over as plain pod-to-pod traffic, else zero. A packet between overlay
/// addresses without its own mark has been translated (by a Service, a host port, or because a
/// source port was taken), because the fast path would have carried it otherwise; its replies have
/// to be translated back.
#[inline(always)]
pub fn leaving<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    handed_over: u16,
) -> Leaving<F> {
    match outgoing(packet, tables) {
        Ok(outgoing) => translated(packet, tables, hook, handed_over, &outgoing),
        Err(verdict) => Leaving::Pass(verdict),
    }
}

/// A packet of the family that leaves the IP stack, and this node's configuration.
pub(super) struct Outgoing<'t, F: Family, O: Family> {
    pub config: &'t Config<F, O>,
    pub ethernet: Ethernet,
    pub ip: Ip<F>,
}

/// The first step of every decision on a packet that leaves the IP stack.
#[inline(always)]
pub(super) fn outgoing<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
) -> Result<Outgoing<'t, F, O>, Verdict> {
    let config = tables.config().ok_or(Verdict::Inactive)?;
    let ethernet = Ethernet::parse(packet, 0).ok_or(Verdict::NotIp)?;
    if ethernet.ethertype != F::ETHERTYPE {
        return Err(Verdict::NotIp);
    }
    let ip = F::parse(packet, ETHERNET_LEN).ok_or(Verdict::NotIp)?;
    Ok(Outgoing {
        config,
        ethernet,
        ip,
    })
}

/// Whether the stack has translated the packet.
#[inline(always)]
pub(super) fn translated<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &T,
    hook: Hook,
    handed_over: u16,
    Outgoing { config, ip, .. }: &Outgoing<'_, F, O>,
) -> Leaving<F> {
    // Of a datagram that the stack fragmented, the first part decides.
    let is_plain = handed_over != 0
        && (ip.fragment == Fragment::Later || handed_over == mark::of(packet, ip, ETHERNET_LEN));
    if is_plain {
        return Leaving::Pass(Verdict::Passed);
    }
    // Replies to addresses outside the overlay reach the stack anyway.
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
