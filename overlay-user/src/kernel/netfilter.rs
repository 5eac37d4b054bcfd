//! Dumps from netfilter's part of netlink.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::timeout;

use super::Error;

/// How long the kernel may be silent during a dump.
const SILENCE: Duration = Duration::from_secs(10);
/// How often to begin again where something was changed under a dump.
const ATTEMPTS: usize = 3;

/// Sends `request` and returns what the kernel dumps, in the network namespace of the thread. `call` and `object`
/// are for errors.
pub(super) async fn dump(
    family: NetfilterProtoFamily,
    request: impl Into<NetfilterMessageInner>,
    call: &'static str,
    object: &str,
) -> Result<Vec<NetfilterMessageInner>, Error> {
    let refused = |source| Error::Refused {
        call,
        object: object.to_owned(),
        source,
    };
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
    socket.socket_mut().bind_auto().map_err(Error::Socket)?;
    let request = dump_request(family, request.into());
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        socket
            .send_to(&request, &SocketAddr::new(0, 0))
            .await
            .map_err(refused)?;
        found.clear();
        let mut whole = true;
        let mut done = false;
        while !done {
            let mut datagram = Vec::with_capacity(64 << 10);
            timeout(SILENCE, socket.recv_from(&mut datagram))
                .await
                .map_err(|_| Error::Deadline {
                    call,
                    object: object.to_owned(),
                })?
                .map_err(refused)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(|error| {
                        Error::Answer {
                            call,
                            object: object.to_owned(),
                            reason: error.to_string(),
                        }
                    })?;
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                    NetlinkPayload::Overrun(_) => {
                        return Err(refused(io::Error::from_raw_os_error(nix::libc::ENOBUFS)));
                    }
                    NetlinkPayload::InnerMessage(message) => found.push(message.inner),
                    _ => {}
                }
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest
                    .get(length.next_multiple_of(4).max(16)..)
                    .unwrap_or_default();
            }
        }
        if whole {
            return Ok(found);
        }
    }
    Err(refused(io::Error::from_raw_os_error(nix::libc::EINTR)))
}

fn dump_request(family: NetfilterProtoFamily, inner: NetfilterMessageInner) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
