//! The decision on a packet that a pod sends.

use super::{
    CONFIG_ACTIVE, Config, ETHERNET_LEN, Endpoint, Ethernet, Family, Fragment, Ip, PEER_DIRECT,
    POD_KERNEL_PATH, Packet, Pass, PeerEntry, PodEntry, Tables, Transport, UDP, Verdict, fits,
    fits_in_vxlan, in_a_vlan, in_network, in_own_subnet, is_not_stack_owned, is_regular,
    is_this_node, same_family, same_mac,
};

/// Outcomes of the decision on a packet from a pod.
#[derive(Clone, Copy, Debug)]
pub enum FromPod<'t, F: Family, O: Family = F> {
    /// Hand the packet to a pod of this node, unchanged.
    Redirect(&'t PodEntry),
    /// Encapsulate the packet and send it to the peer.
    Encapsulate {
        /// This node's configuration.
        config: &'t Config<F, O>,
        /// The receiving peer.
        peer: &'t PeerEntry<O>,
        /// The IP header, after one hop more.
        header: F::Header,
        /// Length of the IP packet in bytes.
        len: u32,
        /// The ECN field of the IP header.
        ecn: u8,
    },
    /// Send the packet to the peer without encapsulation.
    Route {
        /// This node's configuration.
        config: &'t Config<F, O>,
        /// The receiving peer.
        peer: &'t PeerEntry<O>,
        /// The IP header, after one hop more.
        header: F::Header,
    },
    /// Leave the packet to the kernel.
    Pass(Pass),
    /// Drop the packet.
    Refuse(Verdict),
}

/// Decides on a packet that a pod sent, seen at its host veth.
#[inline(always)]
pub fn from_pod<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
) -> FromPod<'t, F, O> {
    let Some(config) = tables.config() else {
        return FromPod::Pass(Pass::of(Verdict::Inactive));
    };
    let Some(endpoint) = tables.endpoint(packet.ifindex()) else {
        return FromPod::Pass(Pass::of(Verdict::UnknownEndpoint));
    };
    let Some(ethernet) = Ethernet::parse(packet, 0) else {
        return FromPod::Pass(Pass::of(Verdict::Malformed));
    };
    if in_a_vlan(packet) {
        return FromPod::Pass(Pass::of(Verdict::VlanTag));
    }
    // The kernel has removed one tag. Later the kernel removes further tags, as long as they have
    // only a priority (`__netif_receive_skb_core()`), and so sees a packet that was not visible
    // here.
    if ethernet.is_tagged() {
        return FromPod::Refuse(Verdict::StackedVlan);
    }
    if ethernet.ethertype != F::ETHERTYPE {
        return not_ip(packet, config, tables, endpoint, &ethernet);
    }
    let Some(ip) = F::parse(packet, ETHERNET_LEN) else {
        return FromPod::Pass(Pass::of(Verdict::Malformed));
    };

    // A forged source is refused before any hand-over, so that no oddity bypasses the check.
    let is_own = endpoint.has(ip.source);
    let is_sibling = !is_own && in_network(config, ip.source);
    if is_sibling && !same_owner(tables, endpoint, ip.source) {
        return FromPod::Refuse(Verdict::SpoofedSource);
    }
    if is_vxlan_to_node(packet, config, tables, &ip) {
        return FromPod::Refuse(Verdict::PodVxlan);
    }
    if claims_anothers(packet, config, tables, endpoint, &ethernet, Some(&ip)) {
        return FromPod::Refuse(Verdict::SpoofedArp);
    }

    if is_sibling {
        return FromPod::Pass(plain(Verdict::SiblingSource));
    }
    if !is_own {
        return FromPod::Pass(Pass::of(Verdict::ForeignSource));
    }
    if ethernet.destination[0] & 1 != 0 {
        return FromPod::Pass(Pass::of(Verdict::Group));
    }
    // The peer is not looked up, because the kernel carries the packet in any case.
    if config.flags & CONFIG_ACTIVE == 0 {
        return FromPod::Pass(inactive(config, ip.destination));
    }
    // Pods are in this node's own subnet, except pods that remain from an earlier one.
    let to_peer = if in_own_subnet(config, ip.destination) {
        None
    } else {
        tables.peer(F::mask(ip.destination, config.peer_mask))
    };
    let to_pod = match to_peer {
        Some(_) => None,
        None => tables.pod(ip.destination),
    };
    if to_pod.is_none() && to_peer.is_none() {
        return FromPod::Pass(unlisted(config, ip.destination));
    }

    // From here on the packet is plain pod-to-pod traffic, on either path.
    if let Err(verdict) = is_ordinary(packet, config, tables, endpoint, &ethernet, &ip) {
        return FromPod::Pass(plain(verdict));
    }
    if let Some(pod) = to_pod {
        return match to_local(packet, &ethernet, &ip, pod) {
            Ok(()) => FromPod::Redirect(pod),
            Err(verdict) => FromPod::Pass(plain(verdict)),
        };
    }
    let Some(peer) = to_peer else {
        return FromPod::Pass(Pass::of(Verdict::NotOverlay));
    };
    match to_remote(packet, config, &ethernet, &ip, peer) {
        Ok(()) if peer.flags & PEER_DIRECT != 0 => FromPod::Route {
            config,
            peer,
            header: F::forwarded(ip.header),
        },
        Ok(()) => FromPod::Encapsulate {
            config,
            peer,
            header: F::forwarded(ip.header),
            len: ip.total_len,
            ecn: ip.ecn,
        },
        Err(verdict) => FromPod::Pass(plain(verdict)),
    }
}

/// Plain pod-to-pod traffic. The IP header follows one Ethernet header, as in every frame of a pod.
#[inline(always)]
const fn plain(verdict: Verdict) -> Pass {
    Pass::plain(verdict, ETHERNET_LEN)
}

/// The verdict on any destination while the fast path is off.
#[inline(always)]
fn inactive<F: Family, O: Family>(config: &Config<F, O>, destination: F::Addr) -> Pass {
    if is_outside(config, destination) {
        Pass::of(Verdict::NotOverlay)
    } else {
        plain(Verdict::Inactive)
    }
}

/// Whether an address belongs to no pod: outside the overlay's network, or this node's own.
#[inline(always)]
fn is_outside<F: Family, O: Family>(config: &Config<F, O>, address: F::Addr) -> bool {
    !in_network(config, address) || is_this_node(config, address)
}

/// The verdict on a destination without an entry: in the overlay's network the destination is a pod
/// that the tables do not list yet, or an address that the stack translates.
#[inline(always)]
fn unlisted<F: Family, O: Family>(config: &Config<F, O>, destination: F::Addr) -> Pass {
    if is_outside(config, destination) {
        Pass::of(Verdict::NotOverlay)
    } else if in_own_subnet(config, destination) {
        plain(Verdict::UnknownPod)
    } else {
        plain(Verdict::UnknownPeer)
    }
}

/// Whether an address belongs to an interface of the same container. A container that answers from
/// the address of one of its interfaces by the other forges nothing.
#[inline(always)]
fn same_owner<F: Family, O: Family, T: Tables<F, O>>(
    tables: &T,
    endpoint: &Endpoint<F>,
    address: F::Addr,
) -> bool {
    endpoint.owner != 0
        && tables
            .pod(address)
            .is_some_and(|pod| pod.owner == endpoint.owner)
}

/// Decides on a frame that is no IP packet of the family: only claims to addresses are refused.
#[inline(always)]
fn not_ip<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    endpoint: &Endpoint<F>,
    ethernet: &Ethernet,
) -> FromPod<'t, F, O> {
    if claims_anothers(packet, config, tables, endpoint, ethernet, None) {
        FromPod::Refuse(Verdict::SpoofedArp)
    } else {
        FromPod::Pass(Pass::of(Verdict::NotIp))
    }
}

/// Whether a message of neighbour resolution claims a foreign address, which would divert that
/// pod's traffic, or hides the claimed address.
#[inline(always)]
fn claims_anothers<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    endpoint: &Endpoint<F>,
    ethernet: &Ethernet,
    ip: Option<&Ip<F>>,
) -> bool {
    let claims = F::claimed(packet, ethernet.ethertype, ip).is_some_and(|claimed| {
        !endpoint.has(claimed)
            && in_network(config, claimed)
            && !same_owner(tables, endpoint, claimed)
    });
    claims || ip.is_some_and(F::hides_claim)
}

/// Whether a pod sends VXLAN to a node, like a VTEP: the packet would leave with the node's own
/// address.
#[inline(always)]
fn is_vxlan_to_node<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    ip: &Ip<F>,
) -> bool {
    if ip.protocol != UDP || ip.fragment == Fragment::Later {
        return false;
    }
    match Transport::parse::<F, _>(packet, ETHERNET_LEN + ip.header_len, ip.protocol) {
        Transport::Ports { destination, .. } => {
            destination == config.port
                && (is_this_node(config, ip.destination)
                    || same_family::<F, O>(ip.destination)
                        .is_some_and(|node| O::same(node, config.vtep) || tables.is_vtep(node)))
        }
        _ => false,
    }
}

/// The conditions that both ways from a pod, to a local pod and to a peer, have in common.
#[inline(always)]
fn is_ordinary<F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    config: &Config<F, O>,
    tables: &T,
    endpoint: &Endpoint<F>,
    ethernet: &Ethernet,
    ip: &Ip<F>,
) -> Result<(), Verdict> {
    if packet.vlan().is_some() {
        return Err(Verdict::VlanTag);
    }
    if endpoint.flags & POD_KERNEL_PATH != 0 {
        return Err(Verdict::PodKernelPath);
    }
    if !same_mac(ethernet.source, endpoint.mac) {
        return Err(Verdict::ForeignMac);
    }
    is_regular(packet, ip, ETHERNET_LEN)?;
    is_not_stack_owned(packet, config, tables, ip, ETHERNET_LEN)
}

/// Forwards as the bridge would: the frame stays unchanged.
#[inline(always)]
fn to_local<F: Family, P: Packet>(
    packet: &P,
    ethernet: &Ethernet,
    ip: &Ip<F>,
    pod: &PodEntry,
) -> Result<(), Verdict> {
    if pod.flags & POD_KERNEL_PATH != 0 {
        return Err(Verdict::PodKernelPath);
    }
    // A packet to a neighbour by way of the gateway is routed, with another hop and other
    // addresses. And whether a frame may return to the port that it came from depends on the bridge
    // port's setting (hairpin mode).
    if !same_mac(ethernet.destination, pod.mac) || packet.ifindex() == pod.ifindex {
        return Err(Verdict::ForeignMac);
    }
    if !fits(packet, ip, ETHERNET_LEN, pod.mtu)? {
        return Err(Verdict::TooLong);
    }
    Ok(())
}

/// Forwards as the IP stack would, and the VXLAN device where there is a tunnel.
#[inline(always)]
fn to_remote<F: Family, O: Family, P: Packet>(
    packet: &P,
    config: &Config<F, O>,
    ethernet: &Ethernet,
    ip: &Ip<F>,
    peer: &PeerEntry<O>,
) -> Result<(), Verdict> {
    if !same_mac(ethernet.destination, config.bridge_mac) {
        return Err(Verdict::ForeignMac);
    }
    if ip.ttl <= 1 {
        return Err(Verdict::TtlExpired);
    }
    let is_direct = peer.flags & PEER_DIRECT != 0;
    if !is_direct && !fits_in_vxlan::<O, _>(packet) {
        return Err(Verdict::TooLong);
    }
    if !fits(packet, ip, ETHERNET_LEN, peer.mtu)? {
        return Err(Verdict::TooLong);
    }
    Ok(())
}
