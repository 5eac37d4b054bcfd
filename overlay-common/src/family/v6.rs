//! IPv6.

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{IpProto, Ipv6Hdr};

use super::{Family, Fragment, Ip};
use crate::packet::{IcmpKind, Packet, UDP};
use crate::vxlan::{self, Tunnel};

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V6;

const IP: usize = EthHdr::LEN;
const AFTER_IP: usize = IP + Ipv6Hdr::LEN;
const FRONT_LEN: usize = IP + V6::VXLAN_OVERHEAD as usize;
const HEADER_LEN: u32 = Ipv6Hdr::LEN as u32;

/// Extension headers that are read to find the payload. A packet with any takes the kernel's path.
const MAX_EXTENSIONS: u32 = 2;
const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;

/// Neighbour advertisement (RFC 4861, section 4.4): the advertised address is 8 bytes behind the
/// start.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// The hop limit that every valid message of neighbour discovery has (RFC 4861, section 7.1).
const NEIGHBOUR_HOP_LIMIT: u8 = 255;

impl Family for V6 {
    type Addr = [u8; 16];
    type Header = [u32; 10];
    type Number = u128;
    type Front = [u8; FRONT_LEN];

    const ETHERTYPE: u16 = u16::from_be(EtherType::Ipv6 as u16);
    const HEADER_LEN: u32 = HEADER_LEN;
    const ICMP: u8 = IpProto::Ipv6Icmp as u8;
    const ENCAP_L3: u64 = 1 << 2;

    #[inline(always)]
    fn number(address: [u8; 16]) -> u128 {
        u128::from_be_bytes(address)
    }

    #[inline(always)]
    fn word(address: [u8; 16]) -> u64 {
        let [a, b, c, d] = words(address);
        u64::from(a ^ c) << 32 | u64::from(b ^ d)
    }

    #[inline(always)]
    fn mask(address: [u8; 16], mask: [u8; 16]) -> [u8; 16] {
        let (address, mask) = (words(address), words(mask));
        bytemuck::cast([
            address[0] & mask[0],
            address[1] & mask[1],
            address[2] & mask[2],
            address[3] & mask[3],
        ])
    }

    #[inline(always)]
    fn same(a: [u8; 16], b: [u8; 16]) -> bool {
        let (a, b) = (words(a), words(b));
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Ip<Self>> {
        let header: [u32; 10] = packet.load(offset)?;
        let [version, class, _, _] = header[0].to_ne_bytes();
        let [len_hi, len_lo, mut protocol, ttl] = header[1].to_ne_bytes();
        if version >> 4 != 6 {
            return None;
        }
        let mut header_len = HEADER_LEN;
        let mut fragment = Fragment::No;
        let mut left = MAX_EXTENSIONS;
        // Behind the header of a later fragment there is only a part of the first one's payload.
        // Behind more extensions than are read there is a payload of unknown protocol, whose source
        // is checked nevertheless.
        while fragment != Fragment::Later && is_extension(protocol) && left > 0 {
            left -= 1;
            let [word] = packet.load::<1>(offset + header_len)?;
            let [next, len, place_hi, place_lo] = word.to_ne_bytes();
            if protocol == FRAGMENT {
                // The offset in the datagram has 13 bits. A fragment that is the only one also
                // takes the kernel's path.
                let is_first = u16::from_be_bytes([place_hi, place_lo]) & 0xfff8 == 0;
                fragment = if is_first {
                    Fragment::First
                } else {
                    Fragment::Later
                };
                header_len += 8;
            } else {
                header_len += (u32::from(len) + 1) * 8;
            }
            protocol = next;
        }
        Some(Ip {
            header,
            source: bytemuck::cast([header[2], header[3], header[4], header[5]]),
            destination: bytemuck::cast([header[6], header[7], header[8], header[9]]),
            protocol,
            ttl,
            ecn: class >> 4 & 0b11,
            header_len,
            // A jumbogram (RFC 2675) has a length of 0 and takes the kernel's path for that reason.
            total_len: u32::from(u16::from_be_bytes([len_hi, len_lo])) + HEADER_LEN,
            fragment,
            checksum_ok: true,
        })
    }

    #[inline(always)]
    fn icmp_kind(message_type: u8) -> IcmpKind {
        match message_type {
            128 | 129 => IcmpKind::Echo,
            // Unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
            1..=4 => IcmpKind::Error,
            _ => IcmpKind::Other,
        }
    }

    /// Claims are made by neighbour discovery (RFC 4861). A solicitation claims its source address,
    /// which is checked like every source.
    #[inline(always)]
    fn claimed<P: Packet>(packet: &P, _: u16, ip: Option<&Ip<Self>>) -> Option<[u8; 16]> {
        let ip = ip.filter(|ip| may_claim(ip))?;
        if ip.protocol != Self::ICMP {
            return None;
        }
        let message = IP as u32 + ip.header_len;
        let [kind] = packet.load::<1>(message)?;
        if kind.to_ne_bytes()[0] != NEIGHBOUR_ADVERTISEMENT {
            return None;
        }
        packet.load::<4>(message + 8).map(bytemuck::cast)
    }

    #[inline(always)]
    fn hides_claim(ip: &Ip<Self>) -> bool {
        may_claim(ip) && is_extension(ip.protocol)
    }

    #[inline(always)]
    fn forwarded(mut header: [u32; 10]) -> [u32; 10] {
        let [len_hi, len_lo, protocol, ttl] = header[1].to_ne_bytes();
        header[1] = u32::from_ne_bytes([len_hi, len_lo, protocol, ttl.wrapping_sub(1)]);
        header
    }

    #[inline(always)]
    fn congested(mut header: [u32; 10]) -> [u32; 10] {
        let [version, class, flow_hi, flow_lo] = header[0].to_ne_bytes();
        header[0] = u32::from_ne_bytes([version, class | 0b11 << 4, flow_hi, flow_lo]);
        header
    }

    /// Only fragments have an identification.
    #[inline(always)]
    fn identification(_: &[u32; 10]) -> u16 {
        0
    }

    fn prepare(tunnel: &Tunnel<Self::Addr>, inner: u16) -> Self::Front {
        let mut front = [0; FRONT_LEN];
        vxlan::prepare_around(&mut front, AFTER_IP, Self::ETHERTYPE, tunnel, inner);
        front[IP] = 0x60;
        front[IP + 6] = UDP;
        front[IP + 7] = vxlan::OUTER_TTL;
        front[IP + 8..IP + 24].copy_from_slice(&tunnel.source);
        front[IP + 24..AFTER_IP].copy_from_slice(&tunnel.destination);
        front
    }

    #[inline(always)]
    fn stamp(
        front: &mut Self::Front,
        inner_len: u32,
        ecn: u8,
        _: impl FnOnce() -> u16,
        source_port: u16,
    ) {
        let udp_len = ((inner_len + Self::VXLAN_OVERHEAD - HEADER_LEN) as u16).to_be_bytes();
        front[IP + 1] = vxlan::encapsulated_ecn(ecn) << 4;
        [front[IP + 4], front[IP + 5]] = udp_len;
        [front[AFTER_IP], front[AFTER_IP + 1]] = source_port.to_be_bytes();
        [front[AFTER_IP + 4], front[AFTER_IP + 5]] = udp_len;
    }
}

/// An address as words, in memory order.
#[inline(always)]
fn words(address: [u8; 16]) -> [u32; 4] {
    bytemuck::cast(address)
}

/// Whether hosts would accept a message of neighbour discovery in the packet.
#[inline(always)]
fn may_claim(ip: &Ip<V6>) -> bool {
    ip.ttl == NEIGHBOUR_HOP_LIMIT && ip.fragment != Fragment::Later
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;
    use std::vec::Vec;

    /// A packet from fd00::1 to fd00::2, hop limit 64, ECT(0), with `rest` behind the fixed header.
    fn frame(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = [[0; 14].as_slice(), &[0x60, 0x20, 0, 0]].concat();
        frame.extend((rest.len() as u16).to_be_bytes());
        frame.extend([next, 64]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        [&frame, rest].concat()
    }

    #[test]
    fn header_fields_are_read() {
        let frame = frame(UDP, &[0; 8]);
        let ip = V6::parse(&Frame::new(&frame), 14).expect("a whole header");
        assert_eq!((ip.source[15], ip.destination[15]), (1, 2));
        assert_eq!((ip.protocol, ip.ttl, ip.ecn, ip.total_len), (17, 64, 2, 48));
        assert_eq!((ip.fragment, ip.has_options()), (Fragment::No, false));
        assert!(V6::parse(&Frame::new(&frame[..53]), 14).is_none());
        assert_eq!(V6::forwarded(ip.header)[1].to_ne_bytes(), [0, 8, 17, 63]);
        assert_eq!(
            V6::congested(ip.header)[0].to_ne_bytes(),
            [0x60, 0x30, 0, 0]
        );
    }

    #[test]
    fn the_payload_is_found_behind_extension_headers() {
        let options = [FRAGMENT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, fragment) in [(0_u16, Fragment::First), (0x10, Fragment::Later)] {
            let [hi, lo] = place.to_be_bytes();
            let rest = [&options[..], &[UDP, 0, hi, lo, 0, 0, 0, 1], &[0; 8]].concat();
            let bytes = frame(HOP_BY_HOP, &rest);
            let ip = V6::parse(&Frame::new(&bytes), 14).expect("a whole header");
            assert_eq!((ip.protocol, ip.header_len), (UDP, 40 + 16 + 8));
            assert!(ip.has_options());
            assert_eq!(ip.fragment, fragment);
        }
    }

    /// RFC 4861, section 4.4: type, code, checksum, four bytes of flags, the target address.
    #[test]
    fn an_advertisement_claims_its_target() {
        let target: [u8; 16] = core::array::from_fn(|place| place as u8);
        let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target].concat();
        let told = |hop_limit, next, rest: &[u8]| {
            let mut bytes = frame(next, rest);
            bytes[21] = hop_limit;
            let packet = Frame::new(&bytes);
            let ip = V6::parse(&packet, 14).expect("a whole header");
            let claimed = V6::claimed(&packet, V6::ETHERTYPE, Some(&ip));
            (claimed, V6::hides_claim(&ip))
        };
        let (none, claimed) = ((None, false), (Some(target), false));
        assert_eq!(told(255, V6::ICMP, &message), claimed);
        assert_eq!(told(254, V6::ICMP, &message), none);
        assert_eq!(told(255, V6::ICMP, &message[..23]), none);
        let solicitation = [&[135], &message[1..]].concat();
        assert_eq!(told(255, V6::ICMP, &solicitation), none);
        assert_eq!(told(255, UDP, &message), none);
        let fragment = |place: u8| [&[V6::ICMP, 0, 0, place, 0, 0, 0, 1][..], &message].concat();
        assert_eq!(told(255, FRAGMENT, &fragment(1)), claimed, "the first");
        assert_eq!(told(255, FRAGMENT, &fragment(8)), none, "a later one");
        let behind = |next: u8| [&[next, 0, 0, 0, 0, 0, 0, 0][..], &message].concat();
        assert_eq!(told(255, HOP_BY_HOP, &behind(V6::ICMP)), claimed);
        let far = [
            &[DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(2)[..],
            &behind(V6::ICMP),
        ];
        assert_eq!(told(255, HOP_BY_HOP, &far.concat()), (None, true));
        assert_eq!(told(64, HOP_BY_HOP, &far.concat()), none);
    }

    #[test]
    fn a_chain_without_end_hides_no_sender() {
        let rest = [DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(9);
        let bytes = frame(DESTINATION_OPTIONS, &rest);
        let ip = V6::parse(&Frame::new(&bytes), 14).expect("a whole header");
        assert_eq!((ip.source[15], ip.destination[15]), (1, 2));
        assert_eq!(ip.protocol, DESTINATION_OPTIONS);
        assert!(ip.has_options());
    }
}
