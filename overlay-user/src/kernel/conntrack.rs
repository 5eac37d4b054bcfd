//! Connections that netfilter translated.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple as TupleAttribute,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::timeout;

use super::Error;

const CALL: &str = "IPCTNL_MSG_CT_GET";
const OBJECT: &str = "all connections";

/// How long the kernel may be silent during a dump.
const SILENCE: Duration = Duration::from_secs(10);

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
    /// The tuple of packets in the other direction when nobody translates them.
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

/// A connection whose replies do not mirror its requests: somebody translates addresses or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translated {
    /// IP protocol number.
    pub protocol: u8,
    /// As its initiator sends it.
    pub original: Tuple,
    /// As its responder answers.
    pub reply: Tuple,
}

/// Dumps the translated connections in the address family of `network`, of the thread's network
/// namespace.
///
/// # Errors
/// What netlink says; `EINVAL` when the kernel has no connection tracking to ask (`nf_conntrack_netlink`).
pub async fn translated(network: IpNet) -> Result<Vec<Translated>, Error> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
    socket.socket_mut().bind_auto().map_err(Error::Socket)?;
    let family = match network {
        IpNet::V4(_) => NetfilterProtoFamily::IPv4,
        IpNet::V6(_) => NetfilterProtoFamily::IPv6,
    };
    let refused = |source| Error::Refused {
        call: CALL,
        object: OBJECT.to_owned(),
        source,
    };
    socket
        .send_to(&dump_request(family), &SocketAddr::new(0, 0))
        .await
        .map_err(refused)?;

    let mut found = Vec::new();
    loop {
        let mut datagram = Vec::with_capacity(64 << 10);
        timeout(SILENCE, socket.recv_from(&mut datagram))
            .await
            .map_err(|_| Error::Deadline {
                call: CALL,
                object: OBJECT.to_owned(),
            })?
            .map_err(refused)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(|error| {
                    Error::Answer {
                        call: CALL,
                        object: OBJECT.to_owned(),
                        reason: error.to_string(),
                    }
                })?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                NetlinkPayload::Overrun(_) => {
                    return Err(refused(io::Error::from_raw_os_error(nix::libc::ENOBUFS)));
                }
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => found.extend(connection(&attributes)),
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest
                .get(length.next_multiple_of(4).max(16)..)
                .unwrap_or_default();
        }
    }
}

fn dump_request(family: NetfilterProtoFamily) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let get = ConntrackMessage::Get(Vec::new());
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), get);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
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
