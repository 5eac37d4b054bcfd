//! The fields that distinguish flows between two addresses: ports, or an ICMP echo's identifier.

use network_types::ip::IpProto;

use crate::family::Family;
use crate::packet::{IcmpKind, Packet, TCP, UDP};

/// Length in bytes of the ICMP header of an error, in front of the quoted packet.
const ICMP_ERROR_LEN: u32 = 8;
/// Protocols whose ports are at the same place as in TCP (RFC 4340, RFC 9260, RFC 3828).
const OTHERS_WITH_PORTS: [u8; 3] = [
    IpProto::Dccp as u8,
    IpProto::Sctp as u8,
    IpProto::UdpLite as u8,
];

/// The fields that distinguish flows between two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Ports, or the identifier of an ICMP echo in both places, or zeros for protocols without
    /// ports.
    Ports {
        /// Sender's port.
        source: u16,
        /// Receiver's port.
        destination: u16,
    },
    /// An ICMP error, which quotes the beginning of a packet at this offset.
    IcmpError {
        /// Offset from the start of the frame, in bytes.
        quoted: u32,
    },
    /// Any other ICMP message.
    IcmpOther,
    /// The packet ends before the ports.
    Truncated,
}

impl Transport {
    /// Reads the transport header of a packet that is not a later fragment.
    #[inline(always)]
    pub fn parse<F: Family, P: Packet>(packet: &P, offset: u32, protocol: u8) -> Self {
        if protocol == F::ICMP {
            let Some([kind, id]) = packet.load::<2>(offset) else {
                return Self::Truncated;
            };
            match F::icmp_kind(kind.to_ne_bytes()[0]) {
                // Both directions have the same identifier.
                IcmpKind::Echo => {}
                IcmpKind::Error => {
                    return Self::IcmpError {
                        quoted: offset + ICMP_ERROR_LEN,
                    };
                }
                IcmpKind::Other => return Self::IcmpOther,
            }
            let [hi, lo, _, _] = id.to_ne_bytes();
            let id = u16::from_be_bytes([hi, lo]);
            return Self::Ports {
                source: id,
                destination: id,
            };
        }
        let [first, second, third] = OTHERS_WITH_PORTS;
        if protocol != TCP
            && protocol != UDP
            && protocol != first
            && protocol != second
            && protocol != third
        {
            return Self::Ports {
                source: 0,
                destination: 0,
            };
        }
        let Some([ports]) = packet.load::<1>(offset) else {
            return Self::Truncated;
        };
        let [s0, s1, d0, d1] = ports.to_ne_bytes();
        Self::Ports {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
        }
    }
}
