//! A second judge, which shares no code with the data path: it decodes by `etherparse`, sums
//! checksums by the book (RFC 1071), and holds what a program wrote against the standards and the
//! promises of the overlay.

mod direct;

use std::net::Ipv4Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use overlay_common::schema::{Config, PeerEntry};
use overlay_common::verdict::Kind;
use overlay_common::{Hook, V4, Verdict};

use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// VXLAN's header (RFC 7348, section 5): flags with only I set, reserved bits, VNI, a reserved
/// byte.
const VXLAN_LEN: usize = 8;
/// Bytes that a tunnel puts in front of the inner IP packet's own Ethernet header: IPv4, UDP,
/// VXLAN, Ethernet.
const TUNNEL_LEN: usize = 50;
const ETHERNET_LEN: usize = 14;
/// What the stack gives a packet of its own (`net.ipv4.ip_default_ttl`).
const DEFAULT_TTL: u8 = 64;

/// RFC 6040, figure 4: what the inner field becomes, by inner and outer field; `None` is a drop.
/// Not-ECT is 0, ECT(1) 1, ECT(0) 2, CE 3.
const DECAPSULATED_ECN: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];
/// RFC 3168, section 9.1.1 (full functionality), which Linux keeps to: CE goes in as ECT(0).
const ENCAPSULATED_ECN: [u8; 4] = [0, 1, 2, 2];

/// Fails unless the frame that a program leaves, `got`, and the verdict are right by the standards.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn judge(visit: &Visit, world: &World, verdict: Verdict, got: &[u8]) -> Result<(), String> {
    let Some(config) = world.config else {
        let idle = verdict == Verdict::Inactive || verdict.kind() == Kind::Kernel;
        return demand(idle, "nothing may happen without a configuration");
    };
    match verdict {
        Verdict::Encapsulated => encapsulated(visit, world, &config, got),
        Verdict::EncapsulatedForStack => encapsulated_for_stack(visit, world, &config, got),
        Verdict::Decapsulated => decapsulated(visit, world, &config, got),
        Verdict::Routed => direct::sent(visit, world, &config, got),
        Verdict::Redirected if visit.hook == Hook::NetIn => {
            direct::received(visit, world, &config, got)
        }
        Verdict::Redirected => redirected(visit, world, got),
        _ => {
            let is_handed_in = visit.hook == Hook::NetIn
                && config.vtep_ifindex != 0
                && visit.frame.get(TUNNEL_LEN..) == Some(got);
            demand(
                is_handed_in || got == visit.frame,
                "what goes no short way is changed",
            )?;
            unforged(visit, world, &config, verdict)
        }
    }
}

fn encapsulated(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    got: &[u8],
) -> Result<(), String> {
    let sent = Packet::read(&visit.frame)?;
    sent.is_plain(&visit.frame)?;
    from_itself(visit, world, &sent)?;
    demand(
        sent.ethernet.destination == config.bridge_mac,
        "it was not for the gateway",
    )?;
    demand(sent.ip.time_to_live > 1, "its time to live ends here")?;
    let (peer, tunnel) = tunnelled(visit, world, config, (&sent, got))?;
    let inner = &tunnel.inner;
    demand(
        inner.ethernet.source == config.vtep_mac,
        "the inner frame is not from this VTEP",
    )?;
    demand(
        inner.ethernet.destination == peer.header[50..56],
        "the inner frame is not for the peer's VTEP",
    )?;
    one_hop_on(&sent, inner, sent.ip.ecn.value())
}

/// The stack's frame is inside, as it was.
fn encapsulated_for_stack(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    got: &[u8],
) -> Result<(), String> {
    let sent = Packet::read(&visit.frame)?;
    sent.is_plain(&visit.frame)?;
    tunnelled(visit, world, config, (&sent, got))?;
    demand(
        got.get(TUNNEL_LEN..) == Some(&visit.frame),
        "the inner frame is not the stack's",
    )
}

/// The peer whose subnet an address is in.
fn peer_of<'a>(
    world: &'a World,
    config: &Config<V4>,
    address: [u8; 4],
) -> Option<&'a PeerEntry<V4>> {
    let subnet = number(address) & number(config.peer_mask);
    world.peers.get(&subnet.to_be_bytes())
}

/// The peer that a packet is for, and the tunnel to the peer that the packet is in now.
fn tunnelled<'a>(
    visit: &Visit,
    world: &'a World,
    config: &Config<V4>,
    (sent, got): (&Packet, &'a [u8]),
) -> Result<(&'a PeerEntry<V4>, Tunnel<'a>), String> {
    let peer = peer_of(world, config, sent.ip.destination).ok_or("there is no such peer")?;
    if visit.gso_size == 0 {
        let len = visit.frame.len() - ETHERNET_LEN;
        demand(len <= peer.mtu as usize, "it is longer than the path takes")?;
    }
    let tunnel = Tunnel::read(got)?;
    tunnel.is_right(config)?;
    let outer = &tunnel.outer.ip;
    demand(
        outer.source == config.vtep,
        "the outer source is not this node",
    )?;
    demand(
        outer.destination == peer.vtep,
        "the outer destination is not the peer",
    )?;
    demand(
        outer.time_to_live == DEFAULT_TTL,
        "the outer time to live is odd",
    )?;
    demand(outer.dscp.value() == 0, "the outer header has a DSCP")?;
    let ecn = ENCAPSULATED_ECN[usize::from(sent.ip.ecn.value())];
    demand(outer.ecn.value() == ecn, "the outer ECN field is wrong")?;
    demand(tunnel.udp.checksum == 0, "there is an outer UDP checksum")?;
    Ok((peer, tunnel))
}

fn decapsulated(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    got: &[u8],
) -> Result<(), String> {
    let tunnel = Tunnel::read(&visit.frame)?;
    tunnel.is_right(config)?;
    let (outer, inner) = (&tunnel.outer, &tunnel.inner);
    demand(
        outer.ip.destination == config.vtep,
        "it was for another node",
    )?;
    let owner = peer_of(world, config, inner.ip.source);
    demand(
        owner.is_some_and(|peer| peer.vtep == outer.ip.source),
        "the inner source belongs to another node",
    )?;
    demand(
        inner.ethernet.destination == config.vtep_mac,
        "the inner frame was for another VTEP",
    )?;
    demand(inner.ip.time_to_live > 1, "its time to live ends here")?;
    let pod = world
        .pods
        .get(&inner.ip.destination)
        .ok_or("there is no such pod")?;

    let arrived = Packet::read(got)?;
    arrived.is_plain(got)?;
    demand(
        got.len() + TUNNEL_LEN == visit.frame.len(),
        "the length is wrong",
    )?;
    demand(
        arrived.ethernet.destination == pod.mac,
        "it is not for the pod's MAC address",
    )?;
    demand(
        arrived.ethernet.source == config.bridge_mac,
        "it is not from the gateway",
    )?;
    let fields = (inner.ip.ecn.value(), outer.ip.ecn.value());
    let ecn = DECAPSULATED_ECN[usize::from(fields.0)][usize::from(fields.1)];
    let ecn = ecn.ok_or("the pair of ECN fields asks for a drop")?;
    one_hop_on(inner, &arrived, ecn)
}

fn redirected(visit: &Visit, world: &World, got: &[u8]) -> Result<(), String> {
    let sent = Packet::read(&visit.frame)?;
    sent.is_plain(&visit.frame)?;
    from_itself(visit, world, &sent)?;
    let pod = world
        .pods
        .get(&sent.ip.destination)
        .ok_or("there is no such pod")?;
    demand(
        sent.ethernet.destination == pod.mac,
        "it was not for the pod's MAC address",
    )?;
    demand(
        got == visit.frame,
        "it is changed on the way to a neighbour",
    )
}

/// Checks that a pod sends from the pod's own addresses.
fn from_itself(visit: &Visit, world: &World, sent: &Packet<'_>) -> Result<(), String> {
    let endpoint = world.endpoints.get(&visit.ifindex);
    let endpoint = endpoint.ok_or("the interface has no pod")?;
    demand(
        endpoint.addresses.contains(&sent.ip.source),
        "the pod sent from another address",
    )?;
    demand(
        sent.ethernet.source == endpoint.mac,
        "the pod sent from another MAC address",
    )
}

/// Checks that nothing forged goes on by the kernel, and nothing honest is dropped for forging its
/// source.
fn unforged(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    verdict: Verdict,
) -> Result<(), String> {
    let (Hook::PodIn, Some(endpoint)) = (visit.hook, world.endpoints.get(&visit.ifindex)) else {
        return Ok(());
    };
    let Ok(packet) = Packet::read(&visit.frame) else {
        return Ok(());
    };
    let in_network =
        number(packet.ip.source) & number(config.network_mask) == number(config.network);
    let of_same_container = world
        .pods
        .get(&packet.ip.source)
        .is_some_and(|pod| endpoint.owner != 0 && pod.owner == endpoint.owner);
    let forged =
        in_network && !endpoint.addresses.contains(&packet.ip.source) && !of_same_container;
    // A tag beside the packet makes it another network's.
    if forged && visit.vlan.is_none() && verdict.kind() != Kind::Refused {
        return Err(format!(
            "a forged source, {}, is let through",
            Ipv4Addr::from(packet.ip.source)
        ));
    }
    demand(
        forged || verdict != Verdict::SpoofedSource,
        "an honest source is refused",
    )
}

/// Checks that a packet is the same one, one hop further on.
fn one_hop_on(before: &Packet<'_>, after: &Packet<'_>, ecn: u8) -> Result<(), String> {
    let mut expected = before.ip.clone();
    expected.time_to_live -= 1;
    expected.ecn = ecn.try_into().map_err(|_| "an ECN field of two bits")?;
    expected.header_checksum = after.ip.header_checksum;
    if expected != after.ip {
        return Err(format!(
            "the IP header is {:?} instead of {expected:?}",
            after.ip
        ));
    }
    demand(before.body == after.body, "the payload is changed")
}

/// A frame with an IPv4 packet.
struct Packet<'a> {
    ethernet: Ethernet2Header,
    ip: Ipv4Header,
    /// The IP header as bytes.
    header: &'a [u8],
    /// Behind the IP header.
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    fn read(frame: &'a [u8]) -> Result<Self, String> {
        let read = |error: &dyn std::fmt::Display| format!("it is no IPv4 packet: {error}");
        let (ethernet, rest) = Ethernet2Header::from_slice(frame).map_err(|error| read(&error))?;
        demand(
            ethernet.ether_type == EtherType::IPV4,
            "it is no IPv4 packet",
        )?;
        let (ip, body) = Ipv4Header::from_slice(rest).map_err(|error| read(&error))?;
        let header = &rest[..rest.len() - body.len()];
        Ok(Self {
            ethernet,
            ip,
            header,
            body,
        })
    }

    /// Checks that lengths and checksum are right, and that nothing is odd about the packet.
    fn is_plain(&self, frame: &[u8]) -> Result<(), String> {
        demand(self.header.len() == 20, "there are IP options")?;
        demand(!self.ip.is_fragmenting_payload(), "it is a fragment")?;
        demand(
            usize::from(self.ip.total_len) + ETHERNET_LEN == frame.len(),
            "the length of IP is not that of the frame",
        )?;
        demand(
            ones_complement_sum(self.header) == 0xffff,
            "the checksum of IP is wrong",
        )
    }
}

/// A packet in VXLAN.
struct Tunnel<'a> {
    frame: &'a [u8],
    outer: Packet<'a>,
    udp: UdpHeader,
    vxlan: &'a [u8],
    inner: Packet<'a>,
    inner_frame: &'a [u8],
}

impl<'a> Tunnel<'a> {
    fn read(frame: &'a [u8]) -> Result<Self, String> {
        let outer = Packet::read(frame)?;
        demand(outer.ip.protocol == IpNumber::UDP, "it is no UDP")?;
        let (udp, payload) =
            UdpHeader::from_slice(outer.body).map_err(|error| format!("it is no UDP: {error}"))?;
        let (vxlan, inner_frame) = payload
            .split_at_checked(VXLAN_LEN)
            .ok_or("it is no VXLAN")?;
        Ok(Self {
            frame,
            inner: Packet::read(inner_frame)?,
            outer,
            udp,
            vxlan,
            inner_frame,
        })
    }

    fn is_right(&self, config: &Config<V4>) -> Result<(), String> {
        self.outer.is_plain(self.frame)?;
        self.inner.is_plain(self.inner_frame)?;
        demand(
            self.udp.destination_port == config.port,
            "it is for another port",
        )?;
        demand(
            usize::from(self.udp.length) == self.outer.body.len(),
            "the length of UDP is not that of the packet",
        )?;
        let [_, a, b, c] = config.vni.to_be_bytes();
        demand(
            self.vxlan == [8, 0, 0, 0, a, b, c, 0],
            "the VXLAN header is wrong",
        )
    }
}

/// The checksum of RFC 1071 by its definition: 0xffff over what holds its own checksum.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

fn number(address: [u8; 4]) -> u32 {
    Ipv4Addr::from(address).to_bits()
}

fn demand(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}
