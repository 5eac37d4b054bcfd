//! A made-up node: its tables, and packets that take the fast path there.

use std::collections::{BTreeMap, HashSet};

use overlay_common::schema::{
    ABI_VERSION, CONFIG_ACTIVE, CONFIG_DIRECT, CONFIG_PEERS_COMPLETE, Config, ENDPOINT_ADDRESSES,
    Endpoint, PEER_NEXT_HOP, PeerEntry, PodEntry, Vtep,
};
use overlay_common::snapshot::Snapshot;
use overlay_common::vxlan::Tunnel;
use overlay_common::{Family as _, V4};

use super::frames::{End, Ipv4Frame, vxlan as vxlan_bytes};

/// The interfaces of the node. Their numbers are free in every new namespace: tunnel drivers put up
/// to nine devices into each, after the loopback device (`ip_tunnel_init_net()` of
/// net/ipv4/ip_tunnel.c and its likes).
pub const VETH_A: u32 = 11;
pub const VETH_B: u32 = 12;
/// One that no pod is known behind.
pub const VETH_UNKNOWN: u32 = 13;
pub const NIC: u32 = 14;
/// The VXLAN device, where packets are handed in there.
pub const VTEP_INTERFACE: u32 = 15;

pub const NIC_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xe0];
pub const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb0];
pub const VTEP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const PEER_VTEP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const PEER_NIC_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0xe0];
pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0x0a, 2];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0x0a, 3];

/// This node's underlay address, a peer's, another peer's, and one of no node.
pub const VTEP: [u8; 4] = [192, 168, 0, 1];
pub const PEER_VTEP: [u8; 4] = [192, 168, 0, 2];
pub const OTHER_VTEP: [u8; 4] = [192, 168, 0, 3];
pub const STRANGER: [u8; 4] = [192, 168, 0, 99];

/// This node among its pods: the bridge, and the VXLAN device.
pub const GATEWAY: [u8; 4] = [10, 244, 1, 1];
pub const VTEP_DEVICE: [u8; 4] = [10, 244, 1, 0];
pub const POD_A: [u8; 4] = [10, 244, 1, 2];
pub const POD_B: [u8; 4] = [10, 244, 1, 3];
/// A pod that the tables do not list, on this node.
pub const POD_UNLISTED: [u8; 4] = [10, 244, 1, 99];
/// Behind the peer, behind the other peer, and where there is no peer.
pub const POD_REMOTE: [u8; 4] = [10, 244, 2, 5];
pub const POD_OTHER: [u8; 4] = [10, 244, 3, 5];
pub const POD_NOWHERE: [u8; 4] = [10, 244, 77, 5];
/// Outside the overlay.
pub const OUTSIDE: [u8; 4] = [8, 8, 8, 8];

pub const VNI: u32 = 1;
pub const PORT: u16 = 8472;
pub const MTU: u32 = 1450;
/// Without encapsulation.
pub const DIRECT_MTU: u32 = 1500;

/// The tables of a node.
pub type World = Snapshot<V4>;

/// Two pods, two peers, everything switched on.
#[must_use]
pub fn world() -> World {
    let pod = |ifindex, mac| PodEntry {
        ifindex,
        mtu: MTU,
        mac,
        flags: 0,
        owner: ifindex,
    };
    let endpoint = |(ifindex, address, mac)| {
        let endpoint = Endpoint {
            addresses: [address; ENDPOINT_ADDRESSES],
            mac,
            flags: 0,
            owner: ifindex,
        };
        (ifindex, endpoint)
    };
    World {
        config: Some(Config {
            abi: ABI_VERSION,
            flags: CONFIG_ACTIVE | CONFIG_PEERS_COMPLETE,
            underlay_ifindex: NIC,
            vtep_ifindex: 0,
            vni: VNI,
            network: [10, 244, 0, 0],
            network_mask: [255, 255, 0, 0],
            subnet: [10, 244, 1, 0],
            subnet_mask: [255, 255, 255, 0],
            gateway: GATEWAY,
            peer_mask: [255, 255, 255, 0],
            vtep: VTEP,
            vtep_mac: VTEP_MAC,
            bridge_mac: BRIDGE_MAC,
            port: PORT,
            source_port_min: 32768,
            source_port_count: 28231,
            underlay_mac: NIC_MAC,
        }),
        endpoints: [(VETH_A, POD_A, MAC_A), (VETH_B, POD_B, MAC_B)]
            .map(endpoint)
            .into(),
        pods: BTreeMap::from([(POD_A, pod(VETH_A, MAC_A)), (POD_B, pod(VETH_B, MAC_B))]),
        peers: BTreeMap::from([
            ([10, 244, 2, 0], peer(PEER_VTEP)),
            ([10, 244, 3, 0], peer(OTHER_VTEP)),
        ]),
        vteps: BTreeMap::from([
            (PEER_VTEP, Vtep { subnets: 1 }),
            (OTHER_VTEP, Vtep { subnets: 1 }),
        ]),
        flows: HashSet::new(),
        leases_are_stale: false,
    }
}

/// Changes to the tables of a node.
pub trait Change {
    fn config_mut(&mut self) -> &mut Config<V4>;
    fn pod_mut(&mut self, address: [u8; 4]) -> &mut PodEntry;
    /// Puts the peer's node on the link: its pods' packets travel as they are.
    fn go_direct(&mut self);
    /// Gives all pods one owner.
    fn join_under(&mut self, owner: u32);

    fn clear_flags(&mut self, flags: u32) {
        self.config_mut().flags &= !flags;
    }

    fn set_flags(&mut self, flags: u32) {
        self.config_mut().flags |= flags;
    }

    /// Makes pods A and B two interfaces of one container.
    fn join(&mut self) {
        self.join_under(7);
    }
}

impl Change for World {
    fn config_mut(&mut self) -> &mut Config<V4> {
        self.config.as_mut().expect("a configured world")
    }

    fn pod_mut(&mut self, address: [u8; 4]) -> &mut PodEntry {
        self.pods.get_mut(&address).expect("a listed pod")
    }

    fn go_direct(&mut self) {
        self.set_flags(CONFIG_DIRECT);
        let peer = self.peers.get_mut(&[10, 244, 2, 0]).expect("a peer");
        *peer = PeerEntry::direct(peer.vtep, DIRECT_MTU);
        peer.header[..6].copy_from_slice(&PEER_NIC_MAC);
        peer.header[6..12].copy_from_slice(&NIC_MAC);
        peer.flags |= PEER_NEXT_HOP;
    }

    fn join_under(&mut self, owner: u32) {
        let endpoints = self.endpoints.values_mut().map(|it| &mut it.owner);
        let pods = self.pods.values_mut().map(|it| &mut it.owner);
        endpoints.chain(pods).for_each(|it| *it = owner);
    }
}

/// The entry of a peer that is reached by way of `vtep`.
pub fn peer(vtep: [u8; 4]) -> PeerEntry<V4> {
    PeerEntry {
        header: V4::prepare(
            &Tunnel {
                source: VTEP,
                destination: vtep,
                port: PORT,
                vni: VNI,
                source_mac: VTEP_MAC,
                destination_mac: PEER_VTEP_MAC,
                outer_macs: (PEER_NIC_MAC, NIC_MAC),
            },
            V4::ETHERTYPE,
        ),
        vtep,
        mtu: MTU,
        flags: PEER_NEXT_HOP,
    }
}

/// From pod A to an address beyond the gateway.
pub fn routed(destination: [u8; 4]) -> Ipv4Frame {
    Ipv4Frame::tcp((POD_A, 40000), (destination, 80), b"request")
        .sent_by(MAC_A)
        .sent_to(BRIDGE_MAC)
}

/// From pod A to pod B.
pub fn local() -> Ipv4Frame {
    routed(POD_B).sent_to(MAC_B)
}

/// Inside VXLAN: from the peer's pod to pod A.
pub fn inner() -> Ipv4Frame {
    between((POD_REMOTE, 80), (POD_A, 40000))
}

/// Inside VXLAN: from any end to any other.
pub fn between(source: End, destination: End) -> Ipv4Frame {
    Ipv4Frame::tcp(source, destination, b"response")
        .sent_by(PEER_VTEP_MAC)
        .sent_to(VTEP_MAC)
}

/// From the peer's node to this one, with a frame in VXLAN.
pub fn outer(inner: &[u8]) -> Ipv4Frame {
    carrying(&vxlan_bytes(VNI, inner))
}

/// From the peer's node to this node's VXLAN port, with anything inside.
pub fn carrying(payload: &[u8]) -> Ipv4Frame {
    Ipv4Frame::udp((PEER_VTEP, 50000), (VTEP, PORT), payload)
        .sent_by(PEER_NIC_MAC)
        .sent_to(NIC_MAC)
}

/// An ICMP error, "port unreachable" (RFC 792), that quotes the packet that it is about.
pub fn unreachable(source: [u8; 4], destination: [u8; 4], about: &Ipv4Frame) -> Ipv4Frame {
    const PORT_UNREACHABLE: [u8; 8] = [3, 3, 0, 0, 0, 0, 0, 0];
    const ICMP: u8 = 1;
    // The IP header and eight bytes more.
    let quoted = &about.bytes()[14..14 + 28];
    let message = [&PORT_UNREACHABLE, quoted].concat();
    Ipv4Frame::protocol(source, destination, ICMP, message)
}
