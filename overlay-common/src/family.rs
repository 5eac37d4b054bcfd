//! The address family as a type: all code for overlay packets is written once, generic over the
//! family.

use core::fmt::Debug;
use core::hash::Hash;

use bytemuck::Pod;

use crate::packet::{IcmpKind, Packet};
use crate::vxlan::{self, Tunnel};

mod v4;
mod v6;

pub use v4::V4;
pub use v6::V6;

/// An address family: of pods, of the underlay, or of both.
pub trait Family: Copy + Debug + Eq + Hash + 'static {
    /// An address, bytes in network order.
    type Addr: Pod + Eq + Ord + Hash + Debug;
    /// The fixed part of the IP header, as 32-bit words in memory order.
    type Header: Pod + Debug;
    /// An address as a number, which is compared in one step, whereas a byte array needs a loop.
    type Number: Ord;
    /// All headers in front of an inner IP packet where this is the family of the underlay: see
    /// [`vxlan`].
    type Front: Pod + Eq + Debug + AsRef<[u8]> + AsMut<[u8]>;

    /// The Ethernet type of the family's packets.
    const ETHERTYPE: u16;
    /// Length of the fixed IP header in bytes.
    const HEADER_LEN: u32;
    /// Length of outer IP, UDP, VXLAN and inner Ethernet headers in bytes, by which a VXLAN device
    /// reduces the MTU of an underlay of this family.
    const VXLAN_OVERHEAD: u32 = vxlan::overhead(Self::HEADER_LEN);
    /// The protocol of the family's control messages (`IPPROTO_*`).
    const ICMP: u8;
    /// `BPF_F_ADJ_ROOM_ENCAP_L3_*` of include/uapi/linux/bpf.h: announces to the kernel a header of
    /// this family in front of a packet.
    const ENCAP_L3: u64;

    /// The address as a number, in the same order.
    fn number(address: Self::Addr) -> Self::Number;
    /// The address as a number for a hash; the order of addresses is not kept.
    fn word(address: Self::Addr) -> u64;
    /// The network part of an address.
    fn mask(address: Self::Addr, mask: Self::Addr) -> Self::Addr;
    /// Whether two addresses are the same one.
    fn same(a: Self::Addr, b: Self::Addr) -> bool;

    /// Reads the IP header at `offset`; `None` where there is no whole header of this family's
    /// version.
    fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Ip<Self>>;
    /// The kind of a control message of this type.
    fn icmp_kind(message_type: u8) -> IcmpKind;
    /// The address that a message of neighbour resolution behind an Ethernet header claims for its
    /// sender, if the pods' stacks would accept the message. `ip` is the packet's IP header, where
    /// the header is one of this family.
    fn claimed<P: Packet>(packet: &P, ethertype: u16, ip: Option<&Ip<Self>>) -> Option<Self::Addr>;
    /// Whether a packet may claim any address, because a claim may be behind more headers than are
    /// read.
    fn hides_claim(ip: &Ip<Self>) -> bool;
    /// The header after one hop more: time to live reduced by one, checksum adjusted.
    fn forwarded(header: Self::Header) -> Self::Header;
    /// The header with its ECN field set to "congestion experienced" (RFC 3168). The field must be
    /// ECT(0) or ECT(1).
    fn congested(header: Self::Header) -> Self::Header;
    /// The identification in a header (RFC 6864); 0 where the family has none.
    fn identification(header: &Self::Header) -> u16;

    /// For the underlay's family: the header of every packet through a tunnel that carries packets
    /// of the Ethernet type `inner`, except the fields that [`Family::stamp`] sets.
    ///
    /// The outer UDP checksum stays zero, which IPv4 permits, and IPv6 for tunnels (RFC 6936), and
    /// which segmentation in the kernel needs here.
    fn prepare(tunnel: &Tunnel<Self::Addr>, inner: u16) -> Self::Front;
    /// For the underlay's family: sets the fields that differ from packet to packet.
    ///
    /// `inner_len` is the length of the inner IP packet, with which the outer lengths must fit 16
    /// bits. `ecn` is the ECN field of the inner header. `id` returns the outer identification, and
    /// is called where the family has one.
    fn stamp(
        front: &mut Self::Front,
        inner_len: u32,
        ecn: u8,
        id: impl FnOnce() -> u16,
        source_port: u16,
    );
}

/// An address as one of another family: unchanged, or `None` where the families differ.
#[inline(always)]
pub fn same_family<F: Family, O: Family>(address: F::Addr) -> Option<O::Addr> {
    if F::ETHERTYPE == O::ETHERTYPE {
        bytemuck::try_cast(address).ok()
    } else {
        None
    }
}

/// The parts of an IP header that the decision needs.
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
    /// The packet's place in a fragmented datagram.
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
    /// The header as one of another family: unchanged, or `None` where the families differ.
    #[inline(always)]
    pub fn of_family<G: Family>(&self) -> Option<Ip<G>> {
        if F::ETHERTYPE != G::ETHERTYPE {
            return None;
        }
        Some(Ip {
            header: bytemuck::try_cast(self.header).ok()?,
            source: same_family::<F, G>(self.source)?,
            destination: same_family::<F, G>(self.destination)?,
            protocol: self.protocol,
            ttl: self.ttl,
            ecn: self.ecn,
            header_len: self.header_len,
            total_len: self.total_len,
            fragment: self.fragment,
            checksum_ok: self.checksum_ok,
        })
    }

    /// Whether options stand between the fixed header and the payload.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.header_len != F::HEADER_LEN
    }
}
