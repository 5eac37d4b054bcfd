//! A case of IPv4 told again in other families: the same packet between the same ends has to end
//! the same way.

use etherparse::{EtherType, IpNumber, Ipv4Header};
use overlay_common::decide::mark;
use overlay_common::packet::{ETHERNET_LEN, Frame};
use overlay_common::schema::{
    ABI_VERSION, CONFIG_DIRECT, Config, Endpoint, FlowKey, PeerEntry, PodEntry,
};
use overlay_common::snapshot::Snapshot;
use overlay_common::visit::{Outcome, Visit};
use overlay_common::vxlan::Tunnel;
use overlay_common::{Family, Hook, V4, V6, Verdict};

use crate::cases::Case;
use crate::frames::ethernet;
use crate::world::World;

const IPV4: u16 = EtherType::IPV4.0;
const IPV6: u16 = EtherType::IPV6.0;
const ARP: u16 = EtherType::ARP.0;

/// A family that IPv4's packets and addresses can be told in.
pub trait Translated: Family {
    fn address(address: [u8; 4]) -> Self::Addr;
    fn mask_of(mask: [u8; 4]) -> Self::Addr;
    /// The packet; `None` for what is odd in a way of IPv4's own.
    fn packet(packet: &[u8]) -> Option<Vec<u8>>;
    /// A claim to an address as one that the family's stacks believe.
    fn claim(arp: &[u8]) -> Option<Vec<u8>>;
    fn protocol(protocol: u32) -> u32;
}

impl Translated for V4 {
    fn address(address: [u8; 4]) -> [u8; 4] {
        address
    }

    fn mask_of(mask: [u8; 4]) -> [u8; 4] {
        mask
    }

    fn packet(packet: &[u8]) -> Option<Vec<u8>> {
        Some(packet.to_vec())
    }

    fn claim(arp: &[u8]) -> Option<Vec<u8>> {
        Some(arp.to_vec())
    }

    fn protocol(protocol: u32) -> u32 {
        protocol
    }
}

impl Translated for V6 {
    fn address([a, b, c, d]: [u8; 4]) -> [u8; 16] {
        [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
    }

    fn mask_of([a, b, c, d]: [u8; 4]) -> [u8; 16] {
        let mut mask = [0xff; 16];
        mask[12..].copy_from_slice(&[a, b, c, d]);
        mask
    }

    fn packet(packet: &[u8]) -> Option<Vec<u8>> {
        let (header, body) = Ipv4Header::from_slice(packet).ok()?;
        let is_whole = usize::from(header.total_len) == packet.len();
        is_whole.then(|| ipv6(&header, body))?
    }

    fn claim(arp: &[u8]) -> Option<Vec<u8>> {
        let sender: [u8; 4] = arp.get(28..32)?.try_into().ok()?;
        let mac: [u8; 6] = arp.get(6..12)?.try_into().ok()?;
        // An advertisement (RFC 4861): from the pod's own address, unasked, to all nodes.
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, IpNumber::IPV6_ICMP.0, 255];
        packet.extend(Self::address(crate::world::POD_A));
        packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
        packet.extend(Self::address(sender));
        Some(ethernet(mac, [0x33, 0x33, 0, 0, 0, 1], IPV6, &packet))
    }

    fn protocol(protocol: u32) -> u32 {
        if protocol == u32::from(V4::ICMP) {
            V6::ICMP.into()
        } else {
            protocol
        }
    }
}

/// An IPv4 packet, or the beginning of one, as IPv6.
fn ipv6(header: &Ipv4Header, body: &[u8]) -> Option<Vec<u8>> {
    let is_plain =
        header.options.is_empty() && header.header_checksum == header.calc_header_checksum();
    if !is_plain {
        return None;
    }
    let protocol = V6::protocol(header.protocol.0.into()) as u8;
    // What follows an IPv4 header as a payload is a header there.
    let is_header = [0, 43, 44, 58, 60].contains(&header.protocol.0);
    if is_header {
        return None;
    }
    let mut next = protocol;
    let mut grown = match (header.protocol, header.fragment_offset.value()) {
        (IpNumber::ICMP, 0) => icmpv6(body)?,
        _ => body.to_vec(),
    };
    if header.is_fragmenting_payload() {
        let place = header.fragment_offset.value() << 3 | u16::from(header.more_fragments);
        let [hi, lo] = place.to_be_bytes();
        grown.splice(0..0, [protocol, 0, hi, lo, 0, 0, 0, 7]);
        next = IpNumber::IPV6_FRAGMENTATION_HEADER.0;
    }
    let len = usize::from(header.total_len.checked_sub(20)?) + grown.len() - body.len();
    let class = header.dscp.value() << 2 | header.ecn.value();
    let mut packet = vec![0x60 | class >> 4, class << 4, 0, 0];
    packet.extend(u16::try_from(len).ok()?.to_be_bytes());
    packet.extend([next, header.time_to_live]);
    packet.extend(V6::address(header.source));
    packet.extend(V6::address(header.destination));
    packet.extend(grown);
    Some(packet)
}

/// An ICMP message (RFC 792) as one of ICMPv6 (RFC 4443); checksums are the receiver's business.
fn icmpv6(message: &[u8]) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    let kind = message.first_mut()?;
    *kind = match *kind {
        8 => 128,
        0 => 129,
        3 => 1,
        11 => 3,
        12 => 4,
        // Source quench and redirects are other things there, or none.
        4 | 5 => return None,
        _ => 200,
    };
    if *kind < 128
        && let Some(quoted) = message.get(8..)
        && let Ok((header, body)) = Ipv4Header::from_slice(quoted)
    {
        let quoted = ipv6(&header, body)?;
        message.truncate(8);
        message.extend(quoted);
    }
    Some(message)
}

/// A case of IPv4 with pods of family `F` over an underlay of family `O`; `None` for what has no
/// like there.
pub fn translate<F: Translated, O: Translated>(
    case: &Case,
) -> Option<(Snapshot<F, O>, Visit, Outcome<F>)> {
    /// Near the longest that a length field can tell, the longer headers count.
    const LONG: usize = 60_000;
    if case.visit.frame.len() > LONG {
        return None;
    }
    let visit = Visit {
        frame: frame::<F, O>(&case.visit, &case.world.config?)?,
        ..case.visit.clone()
    };
    let handed_over = mark::<V4, _>(&Frame::new(&case.visit.frame), ETHERNET_LEN);
    let visit = Visit {
        handed_over: if visit.handed_over == handed_over {
            mark::<F, _>(&Frame::new(&visit.frame), ETHERNET_LEN)
        } else {
            visit.handed_over
        },
        ..visit
    };
    let is_claim = case.visit.hook == Hook::PodIn
        && ethertype(&case.visit.frame) == Some(ARP)
        && F::ETHERTYPE == V6::ETHERTYPE;
    let want = match case.want {
        // A claim is a packet of the family there, for all neighbours.
        Outcome::Pass(Verdict::NotIp) if is_claim => Outcome::Pass(Verdict::Group),
        Outcome::Fast(verdict) => Outcome::Fast(verdict),
        Outcome::Pass(verdict) => Outcome::Pass(verdict),
        Outcome::PassPlain(verdict) => Outcome::PassPlain(verdict),
        Outcome::HandIn(verdict) => Outcome::HandIn(verdict),
        Outcome::Refuse(verdict) => Outcome::Refuse(verdict),
        Outcome::Remember(key) => Outcome::Remember(flow(&key)),
        Outcome::Send(key) => Outcome::Send(key.as_ref().map(flow)),
    };
    // A pod cannot send VXLAN to a node that the pod cannot reach.
    let is_out_of_reach =
        F::ETHERTYPE != O::ETHERTYPE && want == Outcome::Refuse(Verdict::PodVxlan);
    (!is_out_of_reach).then(|| (world(&case.world), visit, want))
}

fn ethertype(frame: &[u8]) -> Option<u16> {
    let bytes = frame.get(12..14)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn frame<F: Translated, O: Translated>(visit: &Visit, config: &Config<V4>) -> Option<Vec<u8>> {
    let frame = &visit.frame;
    let is_outer = matches!(visit.hook, Hook::NetIn | Hook::NetXdp);
    match ethertype(frame)? {
        ARP if visit.hook == Hook::PodIn => F::claim(frame),
        // A frame of one family is another thing to the other.
        // What comes without encapsulation is a packet of the pods' family.
        IPV4 if is_outer && !is_routed(frame, config) => carried::<F, O>(frame, config.port),
        IPV4 => packet::<F>(frame),
        IPV6 => None,
        _ => Some(frame.clone()),
    }
}

/// Whether a pod's packet came without encapsulation.
fn is_routed(frame: &[u8], config: &Config<V4>) -> bool {
    let source = frame.get(26..30).and_then(|it| it.try_into().ok());
    config.flags & CONFIG_DIRECT != 0
        && source.is_some_and(|it| V4::mask(it, config.network_mask) == config.network)
}

/// The frame with its packet in another family.
fn packet<F: Translated>(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, packet) = frame.split_at_checked(ETHERNET_LEN as usize)?;
    let packet = F::packet(packet)?;
    Some([&header[..12], &F::ETHERTYPE.to_be_bytes(), &packet].concat())
}

/// A frame of the underlay, with what it carries in VXLAN.
fn carried<F: Translated, O: Translated>(frame: &[u8], port: u16) -> Option<Vec<u8>> {
    /// Where UDP starts, what it carries, and the carried frame, behind a plain IPv4 header.
    const UDP: usize = 34;
    const VXLAN: usize = UDP + 8;
    const INNER: usize = VXLAN + 8;
    let is_plain = frame.get(14) == Some(&0x45);
    // What is behind outer options would stay as it is.
    if !is_plain && F::ETHERTYPE != V4::ETHERTYPE {
        return None;
    }
    let is_vxlan = is_plain
        && frame.get(23) == Some(&IpNumber::UDP.0)
        && frame.get(UDP + 2..UDP + 4) == Some(&port.to_be_bytes());
    let inner = frame.get(INNER..).unwrap_or_default();
    if !is_vxlan || ethertype(inner) != Some(IPV4) {
        // Another family's packet inside would be this one's.
        let is_other = is_vxlan && ethertype(inner) == Some(IPV6);
        return (!is_other).then(|| packet::<O>(frame))?;
    }
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).ok()?;
    if header.header_checksum != header.calc_header_checksum() {
        return None;
    }
    let inner_packet = packet::<F>(inner)?;
    // The lengths grow, right or wrong.
    let by = u16::try_from(inner_packet.len() - inner.len()).ok()?;
    let mut frame = [&frame[..INNER], &inner_packet].concat();
    for at in [16, UDP + 4] {
        let len = u16::from_be_bytes([frame[at], frame[at + 1]]).checked_add(by)?;
        frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
    }
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).ok()?;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    packet::<O>(&frame)
}

fn flow<F: Translated>(key: &FlowKey<V4>) -> FlowKey<F> {
    FlowKey {
        low: F::address(key.low),
        high: F::address(key.high),
        low_port: key.low_port,
        high_port: key.high_port,
        protocol: F::protocol(key.protocol),
    }
}

/// The tables: addresses and masks in the other family, and room for its longer headers.
fn world<F: Translated, O: Translated>(world: &World) -> Snapshot<F, O> {
    let mtu = |mtu: u32| mtu.saturating_add(F::HEADER_LEN - V4::HEADER_LEN);
    let endpoint = |endpoint: &Endpoint<V4>| Endpoint {
        addresses: endpoint.addresses.map(F::address),
        mac: endpoint.mac,
        flags: endpoint.flags,
        owner: endpoint.owner,
    };
    let mac = |bytes: &[u8]| <[u8; 6]>::try_from(bytes).expect("six bytes");
    let peer = |peer: &PeerEntry<V4>| {
        let header = &peer.header;
        let tunnel = Tunnel {
            source: O::address([header[26], header[27], header[28], header[29]]),
            destination: O::address(peer.vtep),
            port: u16::from_be_bytes([header[36], header[37]]),
            vni: u32::from_be_bytes([0, header[46], header[47], header[48]]),
            source_mac: mac(&header[56..62]),
            destination_mac: mac(&header[50..56]),
            outer_macs: (mac(&header[..6]), mac(&header[6..12])),
        };
        PeerEntry {
            header: O::prepare(&tunnel, F::ETHERTYPE),
            vtep: O::address(peer.vtep),
            mtu: mtu(peer.mtu),
            flags: peer.flags,
        }
    };
    let config = |config: &Config<V4>| Config {
        abi: ABI_VERSION,
        flags: config.flags,
        underlay_ifindex: config.underlay_ifindex,
        vtep_ifindex: config.vtep_ifindex,
        vni: config.vni,
        network: F::address(config.network),
        network_mask: F::mask_of(config.network_mask),
        subnet: F::address(config.subnet),
        subnet_mask: F::mask_of(config.subnet_mask),
        gateway: F::address(config.gateway),
        peer_mask: F::mask_of(config.peer_mask),
        vtep: O::address(config.vtep),
        vtep_mac: config.vtep_mac,
        bridge_mac: config.bridge_mac,
        port: config.port,
        source_port_min: config.source_port_min,
        source_port_count: config.source_port_count,
        underlay_mac: config.underlay_mac,
    };
    let pod = |pod: &PodEntry| PodEntry {
        mtu: mtu(pod.mtu),
        ..*pod
    };
    let (endpoints, pods) = (world.endpoints.iter(), world.pods.iter());
    let (peers, vteps) = (world.peers.iter(), world.vteps.iter());
    Snapshot {
        config: world.config.as_ref().map(config),
        endpoints: endpoints.map(|(key, it)| (*key, endpoint(it))).collect(),
        pods: pods.map(|(key, it)| (F::address(*key), pod(it))).collect(),
        peers: peers
            .map(|(key, it)| (F::address(*key), peer(it)))
            .collect(),
        vteps: vteps.map(|(key, it)| (O::address(*key), *it)).collect(),
        flows: world.flows.iter().map(flow).collect(),
        leases_are_stale: world.leases_are_stale,
    }
}
