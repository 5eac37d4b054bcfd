//! IPv4.

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{IpProto, Ipv4Hdr};

use super::{Family, Fragment, Ip};
use crate::checksum;
use crate::packet::{ETHERNET_LEN, ETHERTYPE_ARP, IcmpKind, Packet, UDP};
use crate::vxlan::{self, Tunnel};

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V4;

/// Start, end and length of the outer IP header in the headers in front of an inner packet.
const IP: usize = EthHdr::LEN;
const AFTER_IP: usize = IP + Ipv4Hdr::LEN;
const FRONT_LEN: usize = IP + V4::VXLAN_OVERHEAD as usize;
/// Shortest IPv4 header, in bytes.
const HEADER_LEN: u32 = Ipv4Hdr::LEN as u32;
/// "More fragments" in the flags and offset field.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in the flags and offset field, in units of 8 bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Family for V4 {
    type Addr = [u8; 4];
    type Header = [u32; 5];
    type Number = u32;
    type Front = [u8; FRONT_LEN];

    const ETHERTYPE: u16 = u16::from_be(EtherType::Ipv4 as u16);
    const HEADER_LEN: u32 = HEADER_LEN;
    const ICMP: u8 = IpProto::Icmp as u8;
    const ENCAP_L3: u64 = 1 << 1;

    #[inline(always)]
    fn number(address: [u8; 4]) -> u32 {
        u32::from_be_bytes(address)
    }

    #[inline(always)]
    fn word(address: [u8; 4]) -> u64 {
        u64::from(u32::from_ne_bytes(address))
    }

    #[inline(always)]
    fn mask(address: [u8; 4], mask: [u8; 4]) -> [u8; 4] {
        (u32::from_ne_bytes(address) & u32::from_ne_bytes(mask)).to_ne_bytes()
    }

    #[inline(always)]
    fn same(a: [u8; 4], b: [u8; 4]) -> bool {
        a == b
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Ip<Self>> {
        let header: [u32; 5] = packet.load(offset)?;
        let [version_ihl, tos, len_hi, len_lo] = header[0].to_ne_bytes();
        let [_, _, frag_hi, frag_lo] = header[1].to_ne_bytes();
        let [ttl, protocol, _, _] = header[2].to_ne_bytes();
        let header_len = u32::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || header_len < HEADER_LEN {
            return None;
        }
        let flags = u16::from_be_bytes([frag_hi, frag_lo]);
        let fragment = if flags & FRAGMENT_OFFSET != 0 {
            Fragment::Later
        } else if flags & MORE_FRAGMENTS != 0 {
            Fragment::First
        } else {
            Fragment::No
        };
        Some(Ip {
            header,
            source: header[3].to_ne_bytes(),
            destination: header[4].to_ne_bytes(),
            protocol,
            ttl,
            ecn: tos & 0b11,
            header_len,
            total_len: u32::from(u16::from_be_bytes([len_hi, len_lo])),
            fragment,
            checksum_ok: cfg!(feature = "without-header-checksums") || checksum::is_valid(&header),
        })
    }

    #[inline(always)]
    fn icmp_kind(message_type: u8) -> IcmpKind {
        match message_type {
            // Echo request and reply.
            0 | 8 => IcmpKind::Echo,
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
            _ => IcmpKind::Other,
        }
    }

    /// By ARP (RFC 826), requests and replies alike.
    #[inline(always)]
    fn claimed<P: Packet>(packet: &P, ethertype: u16, _: Option<&Ip<Self>>) -> Option<[u8; 4]> {
        if ethertype != ETHERTYPE_ARP {
            return None;
        }
        // The sender's protocol address follows 8 bytes of fixed fields and its MAC address.
        let [sender] = packet.load(ETHERNET_LEN + 14)?;
        Some(sender.to_ne_bytes())
    }

    /// ARP is not IP.
    #[inline(always)]
    fn hides_claim(_: &Ip<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn forwarded(mut header: [u32; 5]) -> [u32; 5] {
        let [ttl, protocol, sum_hi, sum_lo] = header[2].to_ne_bytes();
        // As ip_decrease_ttl() in include/net/ip.h: the result must match the kernel's to the bit.
        let sum = u32::from(u16::from_be_bytes([sum_hi, sum_lo])) + 0x0100;
        let [sum_hi, sum_lo] = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
        header[2] = u32::from_ne_bytes([ttl.wrapping_sub(1), protocol, sum_hi, sum_lo]);
        header
    }

    #[inline(always)]
    fn congested(mut header: [u32; 5]) -> [u32; 5] {
        let [version_ihl, tos, len_hi, len_lo] = header[0].to_ne_bytes();
        let [ttl, protocol, sum_hi, sum_lo] = header[2].to_ne_bytes();
        // As IP_ECN_set_ce() in include/net/inet_ecn.h: ECT(1) adds 0xfffd, ECT(0) adds 0xfffe.
        let step = 0xfffb_u32 + ((u32::from(tos) + 1) & 0b11);
        let sum = u32::from(u16::from_be_bytes([sum_hi, sum_lo])) + step;
        let [sum_hi, sum_lo] = (((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
        header[0] = u32::from_ne_bytes([version_ihl, tos | 0b11, len_hi, len_lo]);
        header[2] = u32::from_ne_bytes([ttl, protocol, sum_hi, sum_lo]);
        header
    }

    #[inline(always)]
    fn identification(header: &[u32; 5]) -> u16 {
        let [hi, lo, _, _] = header[1].to_ne_bytes();
        u16::from_be_bytes([hi, lo])
    }

    /// The outer checksum is that of the returned header, so that [`Family::stamp`] only has to
    /// adjust the checksum.
    fn prepare(tunnel: &Tunnel<Self::Addr>, inner: u16) -> Self::Front {
        let mut front = [0; FRONT_LEN];
        vxlan::prepare_around(&mut front, AFTER_IP, Self::ETHERTYPE, tunnel, inner);
        front[IP] = 0x45;
        front[IP + 8] = vxlan::OUTER_TTL;
        front[IP + 9] = UDP;
        front[IP + 12..IP + 16].copy_from_slice(&tunnel.source);
        front[IP + 16..AFTER_IP].copy_from_slice(&tunnel.destination);
        let mut words = [0_u32; 5];
        for (word, chunk) in words.iter_mut().zip(front[IP..AFTER_IP].chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        front[IP + 10..IP + 12].copy_from_slice(&checksum::of(&words).to_ne_bytes());
        front
    }

    #[inline(always)]
    fn stamp(
        front: &mut Self::Front,
        inner_len: u32,
        ecn: u8,
        id: impl FnOnce() -> u16,
        source_port: u16,
    ) {
        let tos = vxlan::encapsulated_ecn(ecn);
        let total_len = ((inner_len + Self::VXLAN_OVERHEAD) as u16).to_be_bytes();
        let id = id().to_be_bytes();
        let udp_len = ((inner_len + Self::VXLAN_OVERHEAD - HEADER_LEN) as u16).to_be_bytes();
        let sum = checksum::adjust(
            u16::from_ne_bytes([front[IP + 10], front[IP + 11]]),
            [
                u16::from_ne_bytes([0, tos]),
                u16::from_ne_bytes(total_len),
                u16::from_ne_bytes(id),
            ],
        )
        .to_ne_bytes();
        front[IP + 1] = tos;
        [front[IP + 2], front[IP + 3]] = total_len;
        [front[IP + 4], front[IP + 5]] = id;
        [front[IP + 10], front[IP + 11]] = sum;
        [front[AFTER_IP], front[AFTER_IP + 1]] = source_port.to_be_bytes();
        [front[AFTER_IP + 4], front[AFTER_IP + 5]] = udp_len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    /// A header with a right checksum: 10.244.1.2 to 10.244.2.3, UDP, TTL 64, ECN as given.
    fn header(tos: u8) -> [u8; 20] {
        let mut bytes = [
            0x45, tos, 0, 28, 0x12, 0x34, 0, 0, 64, 17, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3,
        ];
        let sum = checksum::of(&words(bytes)).to_ne_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes
    }

    fn words(bytes: [u8; 20]) -> [u32; 5] {
        bytemuck::cast(bytes)
    }

    #[test]
    fn header_fields_are_read() {
        let mut frame = [0_u8; 42];
        frame[14..34].copy_from_slice(&header(0x02));
        let ip = V4::parse(&Frame::new(&frame), 14).expect("a whole header");
        assert_eq!(ip.source, [10, 244, 1, 2]);
        assert_eq!(ip.destination, [10, 244, 2, 3]);
        assert_eq!((ip.protocol, ip.ttl, ip.ecn, ip.total_len), (17, 64, 2, 28));
        assert_eq!(ip.fragment, Fragment::No);
        assert!(ip.checksum_ok && !ip.has_options());
    }

    #[test]
    fn truncated_or_foreign_headers_are_none() {
        let mut frame = [0_u8; 34];
        frame[14..34].copy_from_slice(&header(0));
        assert!(V4::parse(&Frame::new(&frame[..33]), 14).is_none());
        frame[14] = 0x65;
        assert!(V4::parse(&Frame::new(&frame), 14).is_none());
        frame[14] = 0x44;
        assert!(V4::parse(&Frame::new(&frame), 14).is_none());
    }

    #[test]
    fn forwarding_keeps_the_checksum_right() {
        for id in 0..=u16::MAX {
            let mut bytes = header(0);
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            bytes[10..12].fill(0);
            let sum = checksum::of(&words(bytes)).to_ne_bytes();
            bytes[10..12].copy_from_slice(&sum);
            let forwarded = V4::forwarded(words(bytes));
            assert!(checksum::is_valid(&forwarded), "id {id:#x}");
            assert_eq!(forwarded[2].to_ne_bytes()[0], 63);
        }
    }

    #[test]
    fn congestion_mark_keeps_the_checksum_right() {
        for tos in [0x01, 0x02, 0xb9, 0xba] {
            let marked = V4::congested(words(header(tos)));
            assert_eq!(marked[0].to_ne_bytes()[1], tos | 0b11);
            assert!(checksum::is_valid(&marked), "tos {tos:#x}");
        }
    }
}
