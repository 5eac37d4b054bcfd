//! VXLAN on the wire (RFC 7348) as flannel and the kernel use it.
//!
//! The headers in front of an inner IP packet have 64 bytes over IPv4, 84 over IPv6:
//!
//! | over IPv4 | over IPv6 | header | known from the lease | set per packet |
//! |---|---|---|---|---|
//! | 0..14 | 0..14 | outer Ethernet | all, while the agent follows the neighbour table | |
//! | 14..34 | 14..54 | outer IP | all else | length, ECN; of IPv4 identification, checksum |
//! | 34..42 | 54..62 | outer UDP | destination port | source port, length |
//! | 42..50 | 62..70 | VXLAN | all | |
//! | 50..64 | 70..84 | inner Ethernet | all | |
//!
//! `Family::prepare` and `Family::stamp` write the outer family's header; only the last two bytes
//! depend on the inner family.

use network_types::eth::EthHdr;
use network_types::udp::UdpHdr;
use network_types::vxlan::VxlanHdr;

/// The fields of the header of every packet through a tunnel; the addresses are of the outer
/// family.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<A> {
    /// This node's underlay address.
    pub source: A,
    /// The peer's underlay address.
    pub destination: A,
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

/// Bytes of outer IP, UDP, VXLAN and inner Ethernet, for an outer IP header of `ip_len` bytes.
#[must_use]
pub const fn overhead(ip_len: u32) -> u32 {
    ip_len + (UdpHdr::LEN + VxlanHdr::LEN + EthHdr::LEN) as u32
}

/// Flags of the VXLAN header with a valid VNI and nothing else, because the kernel drops packets
/// with further flags.
pub const FLAGS: [u8; 4] = [0x08, 0, 0, 0];
/// The kernel's default UDP port, which flannel uses; IANA's is 4789.
pub const DEFAULT_PORT: u16 = 8472;
/// Time to live of the outer header: the kernel's default hop limit.
pub(crate) const OUTER_TTL: u8 = 64;

/// Fills in the headers before and behind the outer IP header, which ends at `udp` and has the
/// Ethernet type `outer`.
pub(crate) fn prepare_around<A>(
    front: &mut [u8],
    udp: usize,
    outer: u16,
    tunnel: &Tunnel<A>,
    inner: u16,
) {
    let vxlan = udp + UdpHdr::LEN;
    let ethernet = vxlan + VxlanHdr::LEN;
    front[..6].copy_from_slice(&tunnel.outer_macs.0);
    front[6..12].copy_from_slice(&tunnel.outer_macs.1);
    front[12..EthHdr::LEN].copy_from_slice(&outer.to_be_bytes());
    front[udp + 2..udp + 4].copy_from_slice(&tunnel.port.to_be_bytes());
    front[vxlan..vxlan + 4].copy_from_slice(&FLAGS);
    front[vxlan + 4..ethernet].copy_from_slice(&(tunnel.vni << 8).to_be_bytes());
    front[ethernet..ethernet + 6].copy_from_slice(&tunnel.destination_mac);
    front[ethernet + 6..ethernet + 12].copy_from_slice(&tunnel.source_mac);
    front[ethernet + 12..].copy_from_slice(&inner.to_be_bytes());
}

/// ECN of the outer header, as in `INET_ECN_encapsulate()` of include/net/inet_ecn.h: an inner
/// "congestion experienced" becomes an outer ECT(0).
#[inline(always)]
pub fn encapsulated_ecn(inner: u8) -> u8 {
    if inner == 0b11 { 0b10 } else { inner }
}

/// Changes of the inner ECN field on decapsulation (RFC 6040, figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecapsulatedEcn {
    /// The inner ECN field stays.
    Keep,
    /// The inner ECN field becomes "congestion experienced".
    Congested,
    /// A pair that our peers do not send, and that kernels treat differently.
    Unusual,
}

/// See [`DecapsulatedEcn`].
#[inline(always)]
pub fn decapsulated_ecn(outer: u8, inner: u8) -> DecapsulatedEcn {
    // No router has marked the outer field, or both fields are marked already.
    if outer == encapsulated_ecn(inner) || outer == 0b11 && inner == 0b11 {
        DecapsulatedEcn::Keep
    } else if outer == 0b11 && inner != 0 {
        DecapsulatedEcn::Congested
    } else {
        DecapsulatedEcn::Unusual
    }
}

/// The outer identification (RFC 6864), for the inner header's, which is 0 where there is none.
///
/// The outer identification increases with the inner one, from another start for each flow. GRO
/// merges packets of a tunnel only where the outer identifications are consecutive (since Linux
/// 6.18), as they are in segments of a super-packet anyway. Where the inner one does not increase,
/// a random value keeps the packets apart.
#[inline(always)]
pub fn identification(inner: u16, hash: u32, random: impl FnOnce() -> u32) -> u16 {
    match inner {
        0 => random() as u16,
        id => id.wrapping_add(hash as u16),
    }
}

/// The source port of a flow, chosen as by `udp_flow_src_port()` in include/net/udp.h, so that a
/// flow keeps its place in ECMP and RSS when the flow moves between the paths.
#[inline(always)]
pub fn source_port(hash: u32, min: u16, count: u16) -> u16 {
    let hash = hash ^ (hash << 16);
    min.wrapping_add(((u64::from(hash) * u64::from(count)) >> 32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family as _, V4, V6};
    use crate::packet::{Ethernet, Frame};

    const TUNNEL: Tunnel<[u8; 4]> = Tunnel {
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
            let mut header = V4::prepare(&TUNNEL, V4::ETHERTYPE);
            V4::stamp(&mut header, inner_len, ecn, || id, 40000);
            let ip = V4::parse(&Frame::new(&header), 14).expect("a whole header");
            assert!(ip.checksum_ok, "{inner_len} {ecn} {id}");
            assert_eq!(ip.total_len, inner_len + V4::VXLAN_OVERHEAD);
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
        let mut frame = V4::prepare(&TUNNEL, V6::ETHERTYPE).to_vec();
        frame.extend([0x45, 0]);
        let inner = Ethernet::parse(&Frame::new(&frame), 50).expect("a whole header");
        assert_eq!(
            (inner.source, inner.destination),
            (TUNNEL.source_mac, TUNNEL.destination_mac)
        );
        assert_eq!(inner.ethertype, 0x86dd);
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
        let of = |id, hash| identification(id, hash, || 0x1_2345);
        assert_eq!(of(8, 0xabcd_1234), of(7, 0xabcd_1234).wrapping_add(1));
        assert_eq!(of(0xffff, 0xffff_ffff), 0xfffe);
        assert_ne!(of(7, 1), of(7, 2));
        assert_eq!(of(0, 7), 0x2345);
    }

    #[test]
    fn a_header_over_ipv6_reads_back() {
        let [source, destination] = [1, 2].map(|last| {
            let mut address = [0; 16];
            (address[0], address[15]) = (0xfd, last);
            address
        });
        let tunnel = Tunnel {
            source,
            destination,
            port: DEFAULT_PORT,
            vni: 1,
            source_mac: TUNNEL.source_mac,
            destination_mac: TUNNEL.destination_mac,
            outer_macs: TUNNEL.outer_macs,
        };
        for (inner_len, ecn) in [(84, 0), (1430, 3), (65465, 1)] {
            let mut header = V6::prepare(&tunnel, V4::ETHERTYPE);
            V6::stamp(&mut header, inner_len, ecn, || unreachable!(), 40000);
            let ip = V6::parse(&Frame::new(&header), 14).expect("a whole header");
            assert_eq!((ip.source, ip.destination), (source, destination));
            assert_eq!(
                (ip.protocol, ip.ttl, ip.ecn),
                (17, 64, encapsulated_ecn(ecn))
            );
            assert_eq!(ip.total_len, inner_len + V6::VXLAN_OVERHEAD);
            assert_eq!(
                u32::from(u16::from_be_bytes([header[58], header[59]])),
                inner_len + 30
            );
            assert_eq!(header[54..58], [0x9c, 0x40, 0x21, 0x18]);
            assert_eq!(header[60..70], [0, 0, 8, 0, 0, 0, 0, 0, 1, 0]);
            let inner = Ethernet::parse(&Frame::new(&[&header[..], &[0; 2]].concat()), 70);
            assert_eq!(inner.map(|inner| inner.ethertype), Some(0x0800));
        }
    }

    #[test]
    fn source_ports_stay_in_range() {
        for hash in [0, 1, 0x8000_0000, u32::MAX] {
            let port = source_port(hash, 32768, 28231);
            assert!((32768..32768 + 28231).contains(&port));
        }
    }
}
