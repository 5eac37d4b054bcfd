//! Whether the IP stack translated a packet that was handed over to it: told by a mark that goes
//! with the packet.
//!
//! The stack does translate plain traffic: connection tracking gives a new connection another
//! source port where its own clashes with one that it knows, and a Service may have an address
//! inside the overlay's network.

use super::{Family, Fragment, Ip, Packet};

/// Set in every mark: zero is the kernel's for a packet without one.
const IS_MARK: u16 = 0x8000;

/// The mark of a plain packet whose IP header starts at `ip_offset`; zero where there is none.
///
/// The mark is a hash of all that translation changes: protocol, addresses, and the first word
/// behind the IP header, which has the ports, or the checksum of ICMP and so its identifier. One
/// translation in 32,768 leaves it as it is.
#[inline(always)]
pub fn mark<F: Family, P: Packet>(packet: &P, ip_offset: u32) -> u16 {
    F::parse(packet, ip_offset).map_or(0, |ip| of(packet, &ip, ip_offset))
}

/// The mark of a packet with this IP header.
#[inline(always)]
pub(super) fn of<F: Family, P: Packet>(packet: &P, ip: &Ip<F>, ip_offset: u32) -> u16 {
    // An odd number of 64 bits, about half of them set: 2^64 divided by the golden ratio.
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    // A fragmented datagram that the stack puts together, and may take apart again, has the mark of
    // its first part. The others are never compared.
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
