//! Frames built byte by byte, correct or with deliberate errors: Ethernet, ARP, IPv4, UDP, VXLAN.

use std::net::Ipv4Addr;

/// An Ethernet (MAC) address.
pub type Mac = [u8; 6];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// Ethernet types.
pub const IPV4: u16 = 0x0800;
/// See [`IPV4`].
pub const ARP: u16 = 0x0806;
/// See [`IPV4`]: a VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// See [`IPV4`]: a service VLAN tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;
/// IP protocols.
pub const UDP: u8 = 17;
/// UDP port of VXLAN in Linux and flannel.
pub const VXLAN_PORT: u16 = 8472;

/// A frame without tags or padding.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The same frame with VLAN tags (Ethernet type, tag control information), the first outermost.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let mut tagged = addresses.to_vec();
    for (kind, control) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(control.to_be_bytes());
    }
    tagged.extend(rest);
    tagged
}

/// An IPv4 packet, with fields to change.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Identification, which the fragments of one packet share.
    pub id: u16,
    /// Options; a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// The bytes behind the header.
    pub payload: Vec<u8>,
}

impl Ip {
    /// A UDP datagram from port 40000, without checksum, which IPv4 allows.
    pub fn udp(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
        let header = [40_000, port, length, 0].map(u16::to_be_bytes).concat();
        Self {
            source,
            destination,
            protocol: UDP,
            id: 1,
            options: Vec::new(),
            payload: [&header, payload].concat(),
        }
    }

    /// The packet in one piece.
    pub fn packet(&self) -> Vec<u8> {
        self.piece(0, self.payload.len())
    }

    /// The packet in fragments: the first with `first` bytes of payload (a multiple of 8), the
    /// second with the rest.
    pub fn fragments(&self, first: usize) -> [Vec<u8>; 2] {
        [self.piece(0, first), self.piece(first, self.payload.len())]
    }

    fn piece(&self, start: usize, end: usize) -> Vec<u8> {
        const MORE_FRAGMENTS: u16 = 0x2000;
        let header_len = 20 + self.options.len();
        let total = u16::try_from(header_len + end - start).unwrap_or(u16::MAX);
        let more = if end < self.payload.len() {
            MORE_FRAGMENTS
        } else {
            0
        };
        let offset = u16::try_from(start / 8).unwrap_or(u16::MAX) | more;
        let version_and_length = 0x40 | u8::try_from(header_len / 4).unwrap_or(0xf);
        let mut header = vec![version_and_length, 0];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend([64, self.protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(&self.options);
        let checksum = crate::traffic::internet_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header.extend(&self.payload[start..end]);
        header
    }
}

/// A VXLAN header (RFC 7348) and the frame in it: the payload of a UDP datagram.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(frame);
    payload
}

/// An ARP packet (RFC 826): operation 1 is a request, 2 a reply.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(address.octets());
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_add_up_to_the_packet() {
        let a = Ipv4Addr::new(10, 244, 1, 2);
        let mut ip = Ip::udp(a, Ipv4Addr::new(10, 244, 2, 3), 9, &[7; 40]);
        ip.options = vec![1; 4];
        let whole = ip.packet();
        assert_eq!(whole.len(), 24 + 8 + 40);
        assert_eq!(crate::traffic::internet_checksum(&whole[..24]), 0);
        let [first, second] = ip.fragments(16);
        assert_eq!(first[6..8], [0x20, 0]);
        assert_eq!(second[6..8], [0, 2]);
        assert_eq!([&first[24..], &second[24..]].concat(), ip.payload);
    }

    #[test]
    fn tags_stand_behind_the_addresses() {
        let frame = ethernet(BROADCAST, [2; 6], IPV4, &[1, 2]);
        let tagged = tagged(&frame, &[(SERVICE_VLAN, 0), (VLAN, 5)]);
        assert_eq!(tagged[12..20], [0x88, 0xa8, 0, 0, 0x81, 0, 0, 5]);
        assert_eq!(tagged[20..], [8, 0, 1, 2]);
    }
}
