//! VXLAN on the wire (RFC 7348) as flannel and the kernel speak it, over IPv4.
//!
//! In front of an inner IPv4 packet stand 64 bytes:
//!
//! | bytes | header | known from the lease | set per packet |
//! |---|---|---|---|
//! | 0..14 | outer Ethernet | all, while the agent follows the neighbour table | |
//! | 14..34 | outer IPv4 | all else | total length, identification, ECN, checksum |
//! | 34..42 | outer UDP | destination port | source port, length |
//! | 42..50 | VXLAN | all | |
//! | 50..64 | inner Ethernet | all | |

use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;
use network_types::udp::UdpHdr;
use network_types::vxlan::VxlanHdr;

use crate::checksum;
use crate::family::{Family, V4};
use crate::packet;

/// Outer IPv4, UDP, VXLAN and inner Ethernet: what a VXLAN device takes off the underlay's MTU.
pub const OVERHEAD: u32 = (HEADER_LEN - EthHdr::LEN) as u32;
/// Outer Ethernet and [`OVERHEAD`].
pub const HEADER_LEN: usize = INNER + EthHdr::LEN;
/// Flags of the VXLAN header with a valid VNI and nothing else; the kernel drops what has more.
pub const FLAGS: [u8; 4] = [0x08, 0, 0, 0];
/// The kernel's default UDP port, which flannel uses; IANA's is 4789.
pub const DEFAULT_PORT: u16 = 8472;
/// Time to live of the outer header: the kernel's default hop limit.
const OUTER_TTL: u8 = 64;

/// Where the parts start.
const IP: usize = EthHdr::LEN;
const UDP: usize = IP + Ipv4Hdr::LEN;
const VXLAN: usize = UDP + UdpHdr::LEN;
const INNER: usize = VXLAN + VxlanHdr::LEN;

/// What a prepared header is made from.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// This node's underlay address.
    pub source: [u8; 4],
    /// The peer's underlay address.
    pub destination: [u8; 4],
    /// UDP port of VXLAN.
    pub port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// MAC address of this node's VXLAN device.
    pub source_mac: [u8; 6],
    /// MAC address of the peer's VXLAN device; a kernel peer drops frames to any other.
    pub destination_mac: [u8; 6],
    /// MAC addresses of the next hop and of the NIC, zeros where the kernel looks them up.
    pub outer_macs: ([u8; 6], [u8; 6]),
}

/// The header of every packet through a tunnel, but for what differs from packet to packet.
///
/// The outer checksum is that of the header as returned, so that [`stamp`] only has to adjust it. The
/// outer UDP checksum stays zero, which IPv4 permits and which segmentation in the kernel needs here.
pub fn prepare(tunnel: &Tunnel) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..6].copy_from_slice(&tunnel.outer_macs.0);
    header[6..12].copy_from_slice(&tunnel.outer_macs.1);
    header[12..IP].copy_from_slice(&V4::ETHERTYPE.to_be_bytes());
    header[IP] = 0x45;
    header[IP + 8] = OUTER_TTL;
    header[IP + 9] = packet::UDP;
    header[IP + 12..IP + 16].copy_from_slice(&tunnel.source);
    header[IP + 16..UDP].copy_from_slice(&tunnel.destination);
    let mut words = [0_u32; 5];
    for (word, chunk) in words.iter_mut().zip(header[IP..UDP].chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    header[IP + 10..IP + 12].copy_from_slice(&checksum::of(&words).to_ne_bytes());
    header[UDP + 2..UDP + 4].copy_from_slice(&tunnel.port.to_be_bytes());
    header[VXLAN..VXLAN + 4].copy_from_slice(&FLAGS);
    header[VXLAN + 4..INNER].copy_from_slice(&(tunnel.vni << 8).to_be_bytes());
    header[INNER..INNER + 6].copy_from_slice(&tunnel.destination_mac);
    header[INNER + 6..INNER + 12].copy_from_slice(&tunnel.source_mac);
    header[INNER + 12..].copy_from_slice(&V4::ETHERTYPE.to_be_bytes());
    header
}

/// Sets what differs from packet to packet.
///
/// `inner_len` is the length of the inner IP packet, at most 65,485; `ecn` that of the inner header.
#[inline(always)]
pub fn stamp(header: &mut [u8; HEADER_LEN], inner_len: u32, ecn: u8, id: u16, source_port: u16) {
    let tos = encapsulated_ecn(ecn);
    let total_len = ((inner_len + OVERHEAD) as u16).to_be_bytes();
    let id = id.to_be_bytes();
    let udp_len = ((inner_len + OVERHEAD - V4::HEADER_LEN) as u16).to_be_bytes();
    let sum = checksum::adjust(
        u16::from_ne_bytes([header[IP + 10], header[IP + 11]]),
        [
            u16::from_ne_bytes([0, tos]),
            u16::from_ne_bytes(total_len),
            u16::from_ne_bytes(id),
        ],
    )
    .to_ne_bytes();
    header[IP + 1] = tos;
    [header[IP + 2], header[IP + 3]] = total_len;
    [header[IP + 4], header[IP + 5]] = id;
    [header[IP + 10], header[IP + 11]] = sum;
    [header[UDP], header[UDP + 1]] = source_port.to_be_bytes();
    [header[UDP + 4], header[UDP + 5]] = udp_len;
}

/// ECN of the outer header, as `INET_ECN_encapsulate()` in include/net/inet_ecn.h: "congestion
/// experienced" inside becomes ECT(0) outside.
#[inline(always)]
pub fn encapsulated_ecn(inner: u8) -> u8 {
    if inner == 0b11 { 0b10 } else { inner }
}

/// What decapsulation does to the inner ECN field (RFC 6040, figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecapsulatedEcn {
    /// It stays.
    Keep,
    /// It becomes "congestion experienced".
    Congested,
    /// A pair that our peers do not send; what becomes of it differs between kernels.
    Unusual,
}

/// See [`DecapsulatedEcn`].
#[inline(always)]
pub fn decapsulated_ecn(outer: u8, inner: u8) -> DecapsulatedEcn {
    // What was marked twice, inside before the tunnel and outside in it, is marked already.
    if outer == encapsulated_ecn(inner) || outer == 0b11 && inner == 0b11 {
        DecapsulatedEcn::Keep
    } else if outer == 0b11 && inner != 0 {
        DecapsulatedEcn::Congested
    } else {
        DecapsulatedEcn::Unusual
    }
}

/// The outer identification (RFC 6864), for an inner IPv4 header.
///
/// It counts with the inner one, from another start for each flow: GRO merges packets of a tunnel only where
/// the outer identifications follow each other (since Linux 6.18), as segments of a super-packet do anyway.
/// Where the inner one does not count, chance keeps the packets apart.
#[inline(always)]
pub fn identification(inner: &[u32; 5], hash: u32, random: impl FnOnce() -> u32) -> u16 {
    let [hi, lo, _, _] = inner[1].to_ne_bytes();
    match u16::from_be_bytes([hi, lo]) {
        0 => random() as u16,
        id => id.wrapping_add(hash as u16),
    }
}

/// The source port for a flow, as `udp_flow_src_port()` in include/net/udp.h chooses it, so that a flow
/// keeps its place in ECMP and RSS when it moves between the paths.
#[inline(always)]
pub fn source_port(hash: u32, min: u16, count: u16) -> u16 {
    let hash = hash ^ (hash << 16);
    min.wrapping_add(((u64::from(hash) * u64::from(count)) >> 32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ethernet, Frame};

    const TUNNEL: Tunnel = Tunnel {
        source: [192, 168, 0, 1],
        destination: [192, 168, 0, 2],
        port: DEFAULT_PORT,
        vni: 1,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        outer_macs: ([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1]),
    };

    #[test]
    fn stamped_header_reads_back() {
        for (inner_len, ecn, id) in [(84, 0, 0), (1450, 3, 0xffff), (65485, 1, 0x8000)] {
            let mut header = prepare(&TUNNEL);
            stamp(&mut header, inner_len, ecn, id, 40000);
            let ip = V4::parse(&Frame::new(&header), 14).expect("a whole header");
            assert!(ip.checksum_ok, "{inner_len} {ecn} {id}");
            assert_eq!(ip.total_len, inner_len + OVERHEAD);
            assert_eq!(ip.ecn, encapsulated_ecn(ecn));
            assert_eq!(
                u16::from_be_bytes([header[38], header[39]]) as u32,
                inner_len + 30
            );
            assert_eq!(header[34..38], [0x9c, 0x40, 0x21, 0x18]);
            assert_eq!(header[42..50], [8, 0, 0, 0, 0, 0, 1, 0]);
        }
    }

    #[test]
    fn inner_frame_goes_from_device_to_device() {
        let mut frame = prepare(&TUNNEL).to_vec();
        frame.extend([0x45, 0]);
        let inner = Ethernet::parse(&Frame::new(&frame), 50).expect("a whole header");
        assert_eq!(
            (inner.source, inner.destination),
            (TUNNEL.source_mac, TUNNEL.destination_mac)
        );
        assert_eq!(inner.ethertype, 0x0800);
    }

    #[test]
    fn ecn_follows_rfc_6040() {
        use DecapsulatedEcn::{Congested, Keep, Unusual};
        let expected = [
            // inner:  Not-ECT  ECT(1)     ECT(0)     CE
            [Keep, Unusual, Unusual, Unusual],     // outer Not-ECT
            [Unusual, Keep, Unusual, Unusual],     // outer ECT(1)
            [Unusual, Unusual, Keep, Keep],        // outer ECT(0)
            [Unusual, Congested, Congested, Keep], // outer CE
        ];
        for (outer, row) in expected.iter().enumerate() {
            for (inner, want) in row.iter().enumerate() {
                assert_eq!(
                    decapsulated_ecn(outer as u8, inner as u8),
                    *want,
                    "{outer} {inner}"
                );
            }
        }
    }

    #[test]
    fn identifications_of_a_flow_follow_each_other() {
        let header = |id: u16| {
            let [hi, lo] = id.to_be_bytes();
            [0, u32::from_ne_bytes([hi, lo, 0x40, 0]), 0, 0, 0]
        };
        let of = |id, hash| identification(&header(id), hash, || 0x1_2345);
        assert_eq!(of(8, 0xabcd_1234), of(7, 0xabcd_1234).wrapping_add(1));
        assert_eq!(of(0xffff, 0xffff_ffff), 0xfffe);
        assert_ne!(of(7, 1), of(7, 2));
        assert_eq!(of(0, 7), 0x2345);
    }

    #[test]
    fn source_ports_stay_in_range() {
        for hash in [0, 1, 0x8000_0000, u32::MAX] {
            let port = source_port(hash, 32768, 28231);
            assert!((32768..32768 + 28231).contains(&port));
        }
    }
}
