//! What the IP stack sends: flows whose replies must find their way back through it.

use super::{
    ETHERNET_LEN, Ethernet, Family, FlowKey, Fragment, Packet, Tables, Verdict, flow, in_network,
    in_own_subnet, mark,
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
    let Some(config) = tables.config() else {
        return Leaving::Pass(Verdict::Inactive);
    };
    let ip = match Ethernet::parse(packet, 0) {
        Some(ethernet) if ethernet.ethertype == F::ETHERTYPE => F::parse(packet, ETHERNET_LEN),
        _ => None,
    };
    let Some(ip) = ip else {
        return Leaving::Pass(Verdict::NotIp);
    };
    // Of a datagram that the stack took apart, the first part tells.
    let is_plain = handed_over != 0
        && (ip.fragment == Fragment::Later || handed_over == mark::of(packet, &ip, ETHERNET_LEN));
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
    match flow(packet, config, &ip, ETHERNET_LEN) {
        Ok(flow) => Leaving::Remember(flow),
        Err(verdict) => Leaving::Pass(verdict),
    }
}
