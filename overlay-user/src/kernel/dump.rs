//! Dumps and single requests in the netlink protocols that the crate rtnetlink does not have.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::timeout;

use super::Error;

/// Longest silence of the kernel during a dump.
const SILENCE: Duration = Duration::from_secs(10);
/// Number of attempts where the kernel's state changes during a dump.
const ATTEMPTS: usize = 3;

/// A request.
pub(super) struct Request<M> {
    /// The netlink protocol, `NETLINK_*`.
    pub protocol: isize,
    /// The message of the request.
    pub message: M,
    /// The message's name, for errors.
    pub call: &'static str,
    /// The object of the request, for errors.
    pub object: &'static str,
}

/// Sends a dump request in the network namespace of the thread, and returns the results of `pick`
/// on the answers. The answers themselves are not kept, because connection tracking may dump
/// hundreds of thousands.
pub(super) async fn dump<M, T>(
    request: Request<M>,
    pick: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, Error>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    exchange(request, NLM_F_DUMP, false, pick).await
}

/// As [`dump`], where the request's own fields choose what is dumped: the kernel looks at them only
/// on sockets with `NETLINK_GET_STRICT_CHK` (Linux 4.20).
pub(super) async fn dump_strictly<M, T>(
    request: Request<M>,
    pick: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, Error>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    exchange(request, NLM_F_DUMP, true, pick).await
}

/// As [`dump`], for a question with one answer.
pub(super) async fn ask<M, T>(
    request: Request<M>,
    pick: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, Error>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    exchange(request, NLM_F_ACK, false, pick).await
}

async fn exchange<M, T>(
    request: Request<M>,
    flags: u16,
    strictly: bool,
    mut pick: impl FnMut(M) -> Option<T>,
) -> Result<Vec<T>, Error>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let Request {
        protocol,
        message,
        call,
        object,
    } = request;
    let refused = |source| Error::Refused {
        call,
        object: object.to_owned(),
        source,
    };
    let mut socket = TokioSocket::new(protocol).map_err(Error::Socket)?;
    socket.socket_mut().bind_auto().map_err(Error::Socket)?;
    if strictly {
        let set = socket.socket_ref().set_netlink_get_strict_chk(true);
        set.map_err(Error::Socket)?;
    }
    let bytes = serialize(message, flags);
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        socket
            .send_to(&bytes, &SocketAddr::new(0, 0))
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
                    NetlinkMessage::<M>::deserialize(rest).map_err(|error| Error::Answer {
                        call,
                        object: object.to_owned(),
                        reason: error.to_string(),
                    })?;
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) if error.code.is_none() => done = true,
                    NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                    NetlinkPayload::Overrun(_) => {
                        return Err(refused(io::Error::from_raw_os_error(nix::libc::ENOBUFS)));
                    }
                    NetlinkPayload::InnerMessage(message) => found.extend(pick(message)),
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

fn serialize(message: impl NetlinkSerializable, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
