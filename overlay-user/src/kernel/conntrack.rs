//! Connections that netfilter translated.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple as TupleAttribute,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::Error;
use super::dump::{Request, dump};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port, host byte order; the identifier for ICMP.
    pub source_port: u16,
    /// Destination port, host byte order; the identifier for ICMP.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of packets in the other direction when they are not translated.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A connection whose addresses or ports netfilter translates, so that its replies do not mirror
/// its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translated {
    /// IP protocol number.
    pub protocol: u8,
    /// As its initiator sends it.
    pub original: Tuple,
    /// As its responder answers.
    pub reply: Tuple,
}

/// Dumps the connections in the address family of `network`, of the thread's network namespace, and
/// returns the results of `pick` on those that are translated.
///
/// # Errors
/// What netlink says; see [`is_absent`].
pub async fn translated<T>(
    network: IpNet,
    mut pick: impl FnMut(Translated) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let family = match network {
        IpNet::V4(_) => NetfilterProtoFamily::IPv4,
        IpNet::V6(_) => NetfilterProtoFamily::IPv6,
    };
    let all = ConntrackMessage::Get(Vec::new());
    let request = Request {
        protocol: NETLINK_NETFILTER,
        message: NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), all),
        call: "IPCTNL_MSG_CT_GET",
        object: "all connections",
    };
    let picked = dump(request, |answer: NetfilterMessage| match answer.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
            connection(&attributes).and_then(&mut pick)
        }
        _ => None,
    });
    picked.await
}

/// Whether an error of [`translated`] means that the kernel has no connection tracking:
/// `nf_conntrack_netlink` is missing (`EINVAL`), or netfilter's netlink as a whole.
#[must_use]
pub fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EINVAL | libc::EPROTONOSUPPORT))
}

/// A connection, if it is translated.
#[must_use]
pub fn connection(attributes: &[ConntrackAttribute]) -> Option<Translated> {
    let (mut original, mut reply) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = tuple(parts),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    (reply != original.reversed()).then_some(Translated {
        protocol,
        original,
        reply,
    })
}

/// Protocol and addresses of one direction.
fn tuple(parts: &[TupleAttribute]) -> Option<(u8, Tuple)> {
    /// `CTA_PROTO_ICMP_ID` and `CTA_PROTO_ICMPV6_ID` of `linux/netfilter/nfnetlink_conntrack.h`.
    const ICMP_IDS: [u16; 2] = [4, 7];
    let (mut source, mut destination, mut protocol) = (None, None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for part in parts {
        match part {
            TupleAttribute::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            TupleAttribute::Proto(fields) => {
                for field in fields {
                    match field {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        ProtoTuple::Other(field) => {
                            if let Some(id) = icmp_id(field, ICMP_IDS) {
                                (source_port, destination_port) = (id, id);
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (source, destination) = (source?, destination?);
    Some((
        protocol?,
        Tuple {
            source,
            destination,
            source_port,
            destination_port,
        },
    ))
}

/// The identifier of an ICMP conversation, if this is the attribute that holds it.
fn icmp_id(field: &netlink_packet_core::DefaultNla, kinds: [u16; 2]) -> Option<u16> {
    use netlink_packet_core::Nla;
    let mut value = [0; 2];
    if !kinds.contains(&field.kind()) || field.value_len() != value.len() {
        return None;
    }
    field.emit_value(&mut value);
    Some(u16::from_be_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_without_connection_tracking_has_none() {
        let refused = |errno| Error::Refused {
            call: "IPCTNL_MSG_CT_GET",
            object: "all connections".into(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        assert!(is_absent(&refused(libc::EINVAL)));
        let socket = std::io::Error::from_raw_os_error(libc::EPROTONOSUPPORT);
        assert!(is_absent(&Error::Socket(socket)));
        for lost in [libc::ENOBUFS, libc::EINTR, libc::EPERM, libc::ENOMEM] {
            assert!(!is_absent(&refused(lost)), "errno {lost}");
        }
        assert!(!is_absent(&Error::Deadline {
            call: "IPCTNL_MSG_CT_GET",
            object: "all connections".into(),
        }));
    }
}
