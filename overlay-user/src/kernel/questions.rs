//! Many requests to rtnetlink in one system call, because a thousand single requests take a hundred
//! times as long.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::timeout;

use super::{Error, NETLINK_DEADLINE};

/// Larger than any datagram of answers.
const DATAGRAM: usize = 64 << 10;

/// A socket for requests that have one answer each.
pub(super) struct Questions {
    socket: TokioSocket,
    /// The message's name, for errors.
    call: &'static str,
    sequence: u32,
}

impl Questions {
    /// Opens a socket in the network namespace of the thread.
    pub fn open(call: &'static str) -> Result<Self, Error> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        socket.socket_mut().bind_auto().map_err(Error::Socket)?;
        Ok(Self {
            socket,
            call,
            sequence: 0,
        })
    }

    /// Sends all of `messages` at once; the answers have the order of the messages, with `None` for
    /// a request that the kernel refuses.
    pub async fn ask(
        &mut self,
        messages: Vec<RouteNetlinkMessage>,
    ) -> Result<Vec<Option<RouteNetlinkMessage>>, Error> {
        let count = messages.len();
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut bytes, self.sequence, message);
        }
        let (call, object) = (self.call, || format!("{count} questions"));
        match timeout(NETLINK_DEADLINE, self.exchange(&bytes, first, count)).await {
            Ok(Ok(mut answers)) => Ok((0..count).map(|place| answers.remove(&place)).collect()),
            Ok(Err(source)) => Err(Error::Refused {
                call,
                object: object(),
                source,
            }),
            Err(_) => Err(Error::Deadline {
                call,
                object: object(),
            }),
        }
    }

    async fn exchange(
        &mut self,
        bytes: &[u8],
        first: u32,
        count: usize,
    ) -> io::Result<BTreeMap<usize, RouteNetlinkMessage>> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0)).await?;
        let mut answers = BTreeMap::new();
        let mut open = count;
        while open > 0 {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv_from(&mut datagram).await?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::other(error.to_string()))?;
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                // A late answer to an earlier request belongs to none of these messages.
                if place < count {
                    open -= 1;
                    if let NetlinkPayload::InnerMessage(answer) = message.payload {
                        answers.insert(place, answer);
                    }
                }
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest
                    .get(length.next_multiple_of(4).max(16)..)
                    .unwrap_or_default();
            }
        }
        Ok(answers)
    }
}

fn append(bytes: &mut Vec<u8>, sequence: u32, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}
