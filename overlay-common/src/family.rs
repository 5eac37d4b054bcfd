//! The address family as a type: everything that handles overlay packets is written once, generic over it.

use core::fmt::Debug;
use core::hash::Hash;

use bytemuck::Pod;
use network_types::eth::EtherType;
use network_types::ip::Ipv4Hdr;

use crate::checksum;
use crate::packet::{ETHERTYPE_ARP, Packet};

/// An address family of the overlay.
pub trait Family: Copy + Debug + Eq + Hash + 'static {
    /// An address, bytes in network order.
    type Addr: Pod + Eq + Ord + Hash + Debug;
    /// The fixed part of the IP header, as 32-bit words in memory order.
    type Header: Pod + Debug;
    /// An address as a number, which compares in one step; a byte array takes a loop.
    type Number: Ord;

    /// The Ethernet type of the family's packets.
    const ETHERTYPE: u16;
    /// Length of the fixed IP header in bytes.
    const HEADER_LEN: u32;

    /// The address as a number, in the same order.
    fn number(address: Self::Addr) -> Self::Number;
    /// The address as a number to make a hash of; nothing is told of its order.
    fn word(address: Self::Addr) -> u64;
    /// The network part of an address.
    fn mask(address: Self::Addr, mask: Self::Addr) -> Self::Addr;
    /// Reads the IP header at `offset`; `None` where there is no whole header of this family's version.
    fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Ip<Self>>;
    /// The address that a packet of the link layer's own protocol (ARP, RFC 826) claims for its sender.
    fn announced<P: Packet>(packet: &P, ethertype: u16, offset: u32) -> Option<Self::Addr>;
    /// The header of a packet one hop further on: time to live less one, checksum to match.
    fn forwarded(header: Self::Header) -> Self::Header;
    /// The header with its ECN field set to "congestion experienced" (RFC 3168). The field must be ECT(0) or
    /// ECT(1).
    fn congested(header: Self::Header) -> Self::Header;
}

/// What the decision needs to know of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip<F: Family> {
    /// The fixed header as it stands in the packet.
    pub header: F::Header,
    /// Sender.
    pub source: F::Addr,
    /// Receiver.
    pub destination: F::Addr,
    /// The protocol of the payload (`IPPROTO_*`).
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// The ECN field, two bits (RFC 3168).
    pub ecn: u8,
    /// Length of the header with options, in bytes.
    pub header_len: u32,
    /// Length of header and payload, in bytes.
    pub total_len: u32,
    /// Where this packet stands in a fragmented datagram.
    pub fragment: Fragment,
    /// Whether the header's own checksum is right.
    pub checksum_ok: bool,
}

/// A packet's place in a fragmented datagram (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole datagram.
    No,
    /// The first part: the transport header is in it.
    First,
    /// A later part: no transport header.
    Later,
}

impl<F: Family> Ip<F> {
    /// Whether options stand between the fixed header and the payload.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.header_len != F::HEADER_LEN
    }
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V4;

/// Shortest IPv4 header, in bytes.
const V4_HEADER_LEN: u32 = Ipv4Hdr::LEN as u32;
/// "More fragments" in the flags and offset field.
const V4_MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in the flags and offset field, in units of 8 bytes.
const V4_FRAGMENT_OFFSET: u16 = 0x1fff;

impl Family for V4 {
    type Addr = [u8; 4];
    type Header = [u32; 5];
    type Number = u32;

    const ETHERTYPE: u16 = u16::from_be(EtherType::Ipv4 as u16);
    const HEADER_LEN: u32 = V4_HEADER_LEN;

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
    fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Ip<Self>> {
        let header: [u32; 5] = packet.load(offset)?;
        let [version_ihl, tos, len_hi, len_lo] = header[0].to_ne_bytes();
        let [_, _, frag_hi, frag_lo] = header[1].to_ne_bytes();
        let [ttl, protocol, _, _] = header[2].to_ne_bytes();
        let header_len = u32::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || header_len < V4_HEADER_LEN {
            return None;
        }
        let flags = u16::from_be_bytes([frag_hi, frag_lo]);
        let fragment = if flags & V4_FRAGMENT_OFFSET != 0 {
            Fragment::Later
        } else if flags & V4_MORE_FRAGMENTS != 0 {
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
    fn announced<P: Packet>(packet: &P, ethertype: u16, offset: u32) -> Option<[u8; 4]> {
        if ethertype != ETHERTYPE_ARP {
            return None;
        }
        // The sender's protocol address follows 8 bytes of fixed fields and its MAC address.
        let [sender] = packet.load(offset + 14)?;
        Some(sender.to_ne_bytes())
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
