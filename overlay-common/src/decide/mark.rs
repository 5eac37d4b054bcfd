//! A mark on each packet that is handed over to the IP stack, which shows afterwards whether the
//! stack translated the packet.
//!
//! The stack does translate plain traffic: connection tracking changes the source port of a new
//! connection that clashes with a known one, and a Service may have an address inside the overlay's
//! network.

use super::{Family, Fragment, Ip, Packet};

/// A bit of every mark, because the kernel uses zero for a packet without one.
const IS_MARK: u16 = 0x8000;

/// The mark of a plain packet whose IP header starts at `ip_offset`; zero where there is no such
/// header.
///
/// The mark is a hash of all fields that translation changes: protocol, addresses, and the first
/// word behind the IP header, which has the ports, or the checksum of ICMP, which depends on its
/// identifier. One translation in 32,768 does not change the mark.
#[inline(always)]
pub fn mark<F: Family, P: Packet>(packet: &P, ip_offset: u32) -> u16 {
    F::parse(packet, ip_offset).map_or(0, |ip| of(packet, &ip, ip_offset))
}

/// The mark of a packet with this IP header.
#[inline(always)]
pub(super) fn of<F: Family, P: Packet>(packet: &P, ip: &Ip<F>, ip_offset: u32) -> u16 {
    // An odd number of 64 bits, about half of them set: 2^64 divided by the golden ratio.
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    // A fragmented datagram that the stack reassembles, and may fragment again, has the mark of its
    // first part. The marks of later parts are never compared.
    let first = match ip.fragment {
        Fragment::Later => None,
        Fragment::No | Fragment::First => packet.load::<1>(ip_offset + ip.header_len),
    };
    let [first] = first.unwrap_or_default();
    let ends = F::word(ip.source) ^ F::word(ip.destination).rotate_left(32);
    let mixed = ends.wrapping_mul(MIX);
    let rest = u64::from(first) << 8 | u64::from(ip.protocol);
    let mixed = (mixed ^ mixed >> 32 ^ rest).wrapping_mul(MIX);
    IS_MARK | (mixed >> 49) as u16
}
