//! Outcomes of the decision on a packet from the network, in VXLAN or without encapsulation.

use super::{
    Config, ETHERNET_LEN, Ethernet, Family, Ip, Packet, Pass, PodEntry, Tables, Verdict,
    in_own_subnet, is_this_node,
};

/// Outcomes of the decision on a packet from the network.
#[derive(Clone, Copy, Debug)]
pub enum FromNetwork<'t, F: Family> {
    /// Decapsulate the packet and hand it to a pod of this node.
    Decapsulate {
        /// The receiving pod.
        pod: &'t PodEntry,
        /// The source MAC address for the pod: the bridge's.
        gateway_mac: [u8; 6],
        /// The inner IP header, after one hop more.
        header: F::Header,
    },
    /// Hand the packet, which arrived without encapsulation, to a pod of this node.
    Deliver {
        /// The receiving pod.
        pod: &'t PodEntry,
        /// The source MAC address for the pod: the bridge's.
        gateway_mac: [u8; 6],
        /// The IP header, after one hop more.
        header: F::Header,
    },
    /// Decapsulate the packet and hand it to the IP stack, as the VXLAN device would.
    HandIn {
        /// The VXLAN device.
        device: u32,
        /// The inner Ethernet header.
        ethernet: Ethernet,
        /// How the packet is left to the kernel.
        pass: Pass,
    },
    /// Leave the packet to the kernel.
    Pass(Pass),
    /// Drop the packet.
    Refuse(Verdict),
}

#[inline(always)]
pub(super) fn pass<'t, F: Family>(verdict: Verdict) -> FromNetwork<'t, F> {
    FromNetwork::Pass(Pass::of(verdict))
}

/// The headers of an IP packet that arrived from the network.
pub(super) struct Arrived<F: Family> {
    pub(super) ethernet: Ethernet,
    pub(super) ip: Ip<F>,
}

impl<F: Family> Arrived<F> {
    /// Reads the headers; `None` where there is no packet of this family.
    #[inline(always)]
    pub(super) fn parse<P: Packet>(packet: &P) -> Option<Self> {
        // The cheapest check comes first, because most foreign packets end here.
        let ethernet = Ethernet::parse(packet, 0)?;
        if ethernet.ethertype != F::ETHERTYPE {
            return None;
        }
        let ip = F::parse(packet, ETHERNET_LEN)?;
        Some(Self { ethernet, ip })
    }

    /// The packet as one of another family: itself, or `None` where the families differ.
    #[inline(always)]
    pub(super) fn of_family<G: Family>(&self) -> Option<Arrived<G>> {
        Some(Arrived {
            ethernet: self.ethernet,
            ip: self.ip.of_family()?,
        })
    }
}

/// The pod of this node that is the packet's receiver; or how the packet is left to the kernel.
#[inline(always)]
pub(super) fn receiver<'t, F: Family, O: Family, T: Tables<F, O>>(
    config: &Config<F, O>,
    tables: &'t T,
    address: F::Addr,
    ip_offset: u32,
) -> Result<&'t PodEntry, Pass> {
    tables.pod(address).ok_or_else(|| {
        if in_own_subnet(config, address) && !is_this_node(config, address) {
            Pass::plain(Verdict::UnknownPod, ip_offset)
        } else {
            Pass::of(Verdict::NotOverlay)
        }
    })
}
