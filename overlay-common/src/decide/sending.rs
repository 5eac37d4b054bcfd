//! The decision on a packet from the IP stack to another node: the program encapsulates the packet
//! before the VXLAN device would.
//!
//! The stack has routed the packet and filled in its Ethernet header. The only question left is
//! whether the device would do exactly the same; odd packets are left to the device.

use super::leaving::{Leaving, Outgoing, outgoing, translated};
use super::{
    CONFIG_ACTIVE, CONFIG_ENCAPSULATE_FOR_STACK, Config, ETHERNET_LEN, Family, PEER_DIRECT, Packet,
    PeerEntry, Tables, fits, fits_in_vxlan, is_regular, is_this_node, same_mac,
};
use crate::verdict::Hook;

/// The outcome for a packet from the IP stack to another node.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'t, F: Family, O: Family = F> {
    /// The flow to remember, if the stack translated it.
    pub leaving: Leaving<F>,
    /// The encapsulation instead of the VXLAN device's; `None` where the device encapsulates.
    pub tunnel: Option<Encapsulation<'t, F, O>>,
}

/// The encapsulation of a packet from the IP stack to a peer. The stack's own headers stay.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation<'t, F: Family, O: Family = F> {
    /// This node's configuration.
    pub config: &'t Config<F, O>,
    /// The receiving peer.
    pub peer: &'t PeerEntry<O>,
    /// The IP header.
    pub header: F::Header,
    /// Length of the IP packet in bytes.
    pub len: u32,
    /// The ECN field of the IP header.
    pub ecn: u8,
}

/// Decides on a packet that leaves by a device to other nodes: the outcome of
/// [`leaving`](super::leaving()), and whether the packet is encapsulated at once.
#[inline(always)]
pub fn sending<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
    handed_over: u16,
) -> Sending<'t, F, O> {
    match outgoing(packet, tables) {
        Ok(outgoing) => Sending {
            leaving: translated(packet, tables, Hook::VtepOut, handed_over, &outgoing),
            tunnel: encapsulation(packet, tables, &outgoing),
        },
        Err(verdict) => Sending {
            leaving: Leaving::Pass(verdict),
            tunnel: None,
        },
    }
}

/// How the VXLAN device would encapsulate a packet; `None` where the packet is left to the device.
#[inline(always)]
fn encapsulation<'t, F: Family, O: Family, P: Packet, T: Tables<F, O>>(
    packet: &P,
    tables: &'t T,
    outgoing: &Outgoing<'t, F, O>,
) -> Option<Encapsulation<'t, F, O>> {
    const WANTED: u32 = CONFIG_ACTIVE | CONFIG_ENCAPSULATE_FOR_STACK;
    let Outgoing {
        config,
        ethernet,
        ip,
    } = outgoing;
    if config.flags & WANTED != WANTED || packet.vlan().is_some() {
        return None;
    }
    // The agent checks by ICMP whether the kernel's own path to the peers works, so ICMP from this
    // node must use that path.
    if ip.protocol == F::ICMP && is_this_node(config, ip.source) {
        return None;
    }
    let peer = tables.peer(F::mask(ip.destination, config.peer_mask))?;
    // Another Ethernet header belongs to another device, such as the NIC, or leads to another node
    // than the one that has the destination in its subnet.
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
