//! Builds frames, correct and wrong ones.

use std::net::Ipv4Addr;

use etherparse::{TcpHeader, UdpHeader};

/// Ethernet types (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;
/// For experiments (IEEE 802 local experimental 1).
pub const EXPERIMENT: u16 = 0x88b5;
/// Protocols above IPv4.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// Flags of the fragment field.
pub const DF: u16 = 0x4000;
pub const MF: u16 = 0x2000;

pub const BROADCAST: [u8; 6] = [0xff; 6];
/// A MAC address that no device has.
pub const NOBODY: [u8; 6] = [2, 0xaa, 0, 0, 0, 9];

/// An IPv4 packet. The lengths and the checksum are correct unless a field changes them.
#[derive(Clone, Debug)]
pub struct Ip {
    pub tos: u8,
    pub id: u16,
    /// Flags and, in units of 8 bytes, the offset.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// A multiple of 4 bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// The error of the total length, in bytes.
    pub length_off_by: i16,
    /// The error of the checksum.
    pub checksum_off_by: u16,
    /// Version and header length, where they differ from this packet's.
    pub version_and_length: Option<u8>,
}

impl Ip {
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            tos: 0,
            id: 0,
            fragment: 0,
            ttl: 64,
            protocol,
            source,
            destination,
            options: Vec::new(),
            payload,
            length_off_by: 0,
            checksum_off_by: 0,
            version_and_length: None,
        }
    }

    /// A UDP datagram with `length` bytes of payload.
    pub fn udp(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> Self {
        let payload = udp(source, destination, 4001, 4002, length);
        Self::new(source, destination, UDP, payload)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let length = (header_len + self.payload.len()) as u16;
        let length = length.wrapping_add_signed(self.length_off_by);
        let first = 0x40 | (header_len / 4) as u8;
        let mut bytes = vec![self.version_and_length.unwrap_or(first), self.tos];
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes).wrapping_add(self.checksum_off_by);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// The checksum of RFC 1071 over bytes whose checksum field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What follows an Ethernet type of [`VLAN`].
pub fn tagged(tag: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The shortest frame of a wire, padded with zeros.
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The header of a UDP datagram.
fn udp_header(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> UdpHeader {
    let length = payload.len() as u16 + 8;
    let mut header = UdpHeader {
        source_port: from.1,
        destination_port: to.1,
        length,
        checksum: 0,
    };
    header.checksum = header
        .calc_checksum_ipv4_raw(from.0.octets(), to.0.octets(), payload)
        .expect("a datagram that fits");
    header
}

pub fn udp(from: Ipv4Addr, to: Ipv4Addr, source: u16, destination: u16, length: usize) -> Vec<u8> {
    let payload = overlay_tests::traffic::pattern(length);
    let header = udp_header((from, source), (to, destination), &payload);
    [&header.to_bytes()[..], &payload].concat()
}

pub fn tcp(
    from: Ipv4Addr,
    to: Ipv4Addr,
    change: impl Fn(&mut TcpHeader),
    length: usize,
) -> Vec<u8> {
    let payload = overlay_tests::traffic::pattern(length);
    let mut header = TcpHeader::new(4003, 4004, 1_000_000, 64000);
    change(&mut header);
    header.checksum = header
        .calc_checksum_ipv4_raw(from.octets(), to.octets(), &payload)
        .expect("a segment that fits");
    [&header.to_bytes()[..], &payload].concat()
}

/// An ICMP message: type, code, the four bytes after the checksum, and what follows.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(payload);
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An ARP packet (RFC 826) for Ethernet and IPv4.
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(address.octets());
    }
    bytes
}

/// A packet in VXLAN (RFC 7348) over UDP, to be put into [`Ip`].
#[derive(Clone, Debug)]
pub struct Vxlan {
    pub flags: [u8; 4],
    pub vni: u32,
    /// The last byte of the header.
    pub reserved: u8,
    pub inner: Vec<u8>,
    pub udp_length_off_by: i16,
    pub udp_checksum: UdpChecksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpChecksum {
    Zero,
    Right,
}

impl Vxlan {
    pub fn of(inner: Vec<u8>) -> Self {
        Self {
            flags: [8, 0, 0, 0],
            vni: 1,
            reserved: 0,
            inner,
            udp_length_off_by: 0,
            udp_checksum: UdpChecksum::Zero,
        }
    }

    /// The whole UDP datagram.
    pub fn datagram(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut payload = self.flags.to_vec();
        payload.extend((self.vni << 8 | u32::from(self.reserved)).to_be_bytes());
        payload.extend(&self.inner);
        let mut header = udp_header((from, 50_000), (to, 8472), &payload);
        match self.udp_checksum {
            UdpChecksum::Zero => header.checksum = 0,
            UdpChecksum::Right => {}
        }
        header.length = header.length.wrapping_add_signed(self.udp_length_off_by);
        [&header.to_bytes()[..], &payload].concat()
    }
}
