//! Made-up frames.

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, TcpHeader, UdpHeader,
};

/// An IPv4 packet in an Ethernet frame. Lengths and header checksum are made to fit when it becomes
/// bytes.
#[derive(Clone, Debug)]
pub struct Ipv4Frame {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub ip: Ipv4Header,
    /// Transport header and payload.
    pub body: Vec<u8>,
}

/// An end of a flow: address and port.
pub type End = ([u8; 4], u16);

impl Ipv4Frame {
    fn new(source: [u8; 4], destination: [u8; 4], protocol: IpNumber, body: Vec<u8>) -> Self {
        let ip = Ipv4Header::new(0, 64, protocol, source, destination).expect("no payload yet");
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            ip,
            body,
        }
    }

    /// UDP, without checksum.
    pub fn udp(source: End, destination: End, payload: &[u8]) -> Self {
        let mut header = UdpHeader::without_ipv4_checksum(source.1, destination.1, payload.len())
            .expect("a payload that fits")
            .to_bytes()
            .to_vec();
        header.extend(payload);
        Self::new(source.0, destination.0, IpNumber::UDP, header)
    }

    /// TCP without options.
    pub fn tcp(source: End, destination: End, payload: &[u8]) -> Self {
        let mut body = TcpHeader::new(source.1, destination.1, 1, 1024)
            .to_bytes()
            .to_vec();
        body.extend(payload);
        Self::new(source.0, destination.0, IpNumber::TCP, body)
    }

    /// ICMP.
    pub fn icmp(source: [u8; 4], destination: [u8; 4], message: Icmpv4Type) -> Self {
        let body = Icmpv4Header::with_checksum(message, &[])
            .to_bytes()
            .to_vec();
        Self::new(source, destination, IpNumber::ICMP, body)
    }

    /// Any other protocol.
    pub fn protocol(source: [u8; 4], destination: [u8; 4], protocol: u8, body: Vec<u8>) -> Self {
        Self::new(source, destination, IpNumber(protocol), body)
    }

    pub fn sent_by(mut self, mac: [u8; 6]) -> Self {
        self.source_mac = mac;
        self
    }

    pub fn sent_to(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Ipv4Header)) -> Self {
        change(&mut self.ip);
        self
    }

    /// Makes it the part of a fragmented datagram that starts at `offset` (in units of 8 bytes).
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        self.with(|ip| {
            ip.more_fragments = more;
            ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        })
    }

    /// Puts "no operation" options into the header.
    pub fn options(self) -> Self {
        self.with(|ip| ip.options = Ipv4Options::from([1, 1, 1, 0]))
    }

    /// The frame as it is on the wire, without padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        ip.set_payload_len(self.body.len())
            .expect("a body that fits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = ethernet(
            self.source_mac,
            self.destination_mac,
            EtherType::IPV4.0,
            &ip.to_bytes(),
        );
        bytes.extend(&self.body);
        bytes
    }
}

/// A frame with so much payload that its length does not fit the IP header, which leaves the field
/// empty.
pub fn big(frame: &Ipv4Frame) -> Vec<u8> {
    without_length(frame, 100_000)
}

/// A frame of `len` bytes whose IP header leaves the length empty.
pub fn without_length(frame: &Ipv4Frame, len: usize) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let header = &mut bytes[14..34];
    header[2..4].fill(0);
    header[10..12].fill(0);
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes.resize(len, 0);
    bytes
}

/// A frame of any type.
pub fn ethernet(source: [u8; 6], destination: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type: EtherType(ether_type),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

/// An ARP request (RFC 826) that claims `sender` for the MAC address it comes from.
pub fn arp(source: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
    payload.extend(source);
    payload.extend(sender);
    payload.extend([0; 6]);
    payload.extend(target);
    ethernet(source, [0xff; 6], EtherType::ARP.0, &payload)
}

/// VXLAN header (RFC 7348) and inner frame.
pub fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(inner);
    bytes
}

/// Puts a VLAN tag behind the addresses.
pub fn tagged(mut frame: Vec<u8>, tag: u16) -> Vec<u8> {
    let [hi, lo] = tag.to_be_bytes();
    frame.splice(12..12, [0x81, 0x00, hi, lo]);
    frame
}
