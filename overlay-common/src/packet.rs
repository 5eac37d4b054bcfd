//! The decision's view of a packet: a few loads and the kernel's metadata.

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::IpProto;

/// A frame, starting at its Ethernet header.
pub trait Packet {
    /// `N` 32-bit words from byte `offset` on, in memory order; `None` beyond the end.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// Length of the frame in bytes; of a super-packet, the whole length.
    fn frame_len(&self) -> u32;
    /// Payload bytes of each segment of a super-packet, 0 for an ordinary packet.
    fn gso_size(&self) -> u32;
    /// The VLAN tag (802.1Q tag control information) that the kernel removed from the frame.
    fn vlan(&self) -> Option<u16>;
    /// Whether the frame was sent to this host's own MAC address.
    fn to_this_host(&self) -> bool;
    /// The interface that the program is attached to.
    fn ifindex(&self) -> u32;
}

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: u32 = EthHdr::LEN as u32;
/// The Ethernet type of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = u16::from_be(EtherType::Arp as u16);
/// The Ethernet type of a VLAN tag (802.1Q).
pub const ETHERTYPE_VLAN: u16 = u16::from_be(EtherType::Ieee8021q as u16);
/// The Ethernet type of a service VLAN tag (802.1ad).
pub const ETHERTYPE_SERVICE_VLAN: u16 = u16::from_be(EtherType::Ieee8021ad as u16);

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Receiver.
    pub destination: [u8; 6],
    /// Sender.
    pub source: [u8; 6],
    /// The Ethernet type of the payload.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header at `offset`.
    ///
    /// Two bytes of payload are read as well, so a frame without payload gives `None`; no check
    /// needs such a frame.
    #[inline(always)]
    pub fn parse<P: Packet>(packet: &P, offset: u32) -> Option<Self> {
        let words: [u32; 4] = packet.load(offset)?;
        let [d0, d1, d2, d3] = words[0].to_ne_bytes();
        let [d4, d5, s0, s1] = words[1].to_ne_bytes();
        let [s2, s3, s4, s5] = words[2].to_ne_bytes();
        let [type_hi, type_lo, _, _] = words[3].to_ne_bytes();
        Some(Self {
            destination: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            ethertype: u16::from_be_bytes([type_hi, type_lo]),
        })
    }

    /// Whether a VLAN tag follows the addresses.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        matches!(self.ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN)
    }
}

/// Compares MAC addresses in two steps instead of six.
#[inline(always)]
pub fn same_mac(a: [u8; 6], b: [u8; 6]) -> bool {
    u32::from_ne_bytes([a[0], a[1], a[2], a[3]]) == u32::from_ne_bytes([b[0], b[1], b[2], b[3]])
        && u16::from_ne_bytes([a[4], a[5]]) == u16::from_ne_bytes([b[4], b[5]])
}

/// TCP (RFC 9293).
pub const TCP: u8 = IpProto::Tcp as u8;
/// UDP (RFC 768).
pub const UDP: u8 = IpProto::Udp as u8;

/// The kinds of control messages (ICMP of either family).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// Echo request or reply.
    Echo,
    /// An error about a packet, with the beginning of that packet.
    Error,
    /// Anything else.
    Other,
}

/// Length of the headers that every segment of a super-packet repeats, from the IP header on.
///
/// `None` for protocols that are not segmented (or not by any known kernel).
#[inline(always)]
pub fn segment_header_len<P: Packet>(
    packet: &P,
    transport_offset: u32,
    ip_header_len: u32,
    protocol: u8,
) -> Option<u32> {
    match protocol {
        TCP => {
            let [word] = packet.load::<1>(transport_offset + 12)?;
            Some(ip_header_len + u32::from(word.to_ne_bytes()[0] >> 4) * 4)
        }
        UDP => Some(ip_header_len + 8),
        _ => None,
    }
}

/// A frame in memory, for tools and tests.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    /// See [`Packet::gso_size`].
    pub gso_size: u32,
    /// See [`Packet::vlan`].
    pub vlan: Option<u16>,
    /// See [`Packet::to_this_host`].
    pub to_this_host: bool,
    /// See [`Packet::ifindex`].
    pub ifindex: u32,
}

impl<'a> Frame<'a> {
    /// An ordinary untagged frame, sent to this host.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            gso_size: 0,
            vlan: None,
            to_this_host: true,
            ifindex: 0,
        }
    }
}

impl Packet for Frame<'_> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.bytes.get(start..start + N * 4)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Some(words)
    }

    fn frame_len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    fn to_this_host(&self) -> bool {
        self.to_this_host
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }
}
