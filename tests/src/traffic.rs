//! Small conversations between namespaces, each with a deadline.
//!
//! A socket belongs to the namespace in which it was opened, so sockets are opened inside and used
//! from the caller's namespace.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::wait::allowed;
use crate::{Namespace, Pod};

/// Longest wait for a single answer on a usual machine.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Time before a datagram without an answer is sent again.
const RETRY: Duration = Duration::from_millis(200);
/// Largest IP packet.
const LARGEST: usize = 65_535;

/// One side of a conversation.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name of the endpoint in reports.
    pub name: String,
    /// The namespace in which the endpoint's sockets are opened.
    pub namespace: Namespace,
    /// The address of the endpoint.
    pub address: Ipv4Addr,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self {
            name: pod.name().to_owned(),
            namespace: pod.namespace(),
            address: pod.address(),
        }
    }
}

/// Bytes that differ from place to place and from size to size.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(31) ^ length) as u8)
        .collect()
}

/// Sends `length` bytes there and back over TCP. Returns the client's address as the server sees
/// it.
///
/// # Errors
/// When no connection is established or the bytes do not return unchanged.
pub fn tcp(from: &Endpoint, to: &Endpoint, length: usize) -> Result<IpAddr> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let listener = to
        .namespace
        .inside(|| TcpListener::bind(any))?
        .context("listen")?;
    let port = listener.local_addr().context("ask for the port")?.port();
    let target = SocketAddr::from((to.address, port));
    let mut client = from
        .namespace
        .inside(|| TcpStream::connect_timeout(&target, allowed(PATIENCE)))?
        .with_context(|| format!("connect to {target}"))?;
    // A client that is connected is in the queue of the server already, so this does not wait.
    let (mut server, peer) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream
            .set_read_timeout(Some(allowed(PATIENCE)))
            .context("set a timeout")?;
        stream
            .set_write_timeout(Some(allowed(PATIENCE)))
            .context("set a timeout")?;
    }
    let sent = pattern(length);
    let mut received = vec![0; length];
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut buffer = vec![0; length];
            server
                .read_exact(&mut buffer)
                .context("the server's read")?;
            server.write_all(&buffer).context("the server's write")
        });
        client.write_all(&sent).context("the client's write")?;
        client
            .read_exact(&mut received)
            .context("the client's read")?;
        echo.join().map_err(|_| anyhow!("the server panicked"))?
    })?;
    ensure!(sent == received, "{length} bytes came back changed");
    Ok(peer.ip())
}

/// Number of times that an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Every datagram must arrive.
    Once,
    /// One may be lost, because the way back is narrower than its first link, and path-MTU
    /// discovery (RFC 1191) loses the first long datagram.
    Twice,
}

/// Sends a datagram of `length` bytes there and back. Returns the client's address as the server
/// sees it.
///
/// # Errors
/// When the datagram does not arrive unchanged.
pub fn udp(from: &Endpoint, to: &Endpoint, length: usize, answers: Answers) -> Result<IpAddr> {
    let open = |address: Ipv4Addr| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(allowed(PATIENCE)))?;
        Ok(socket)
    };
    // Bound to the endpoint's address, so that answers come from this address and not from that of
    // the nearest interface.
    let server = to
        .namespace
        .inside(|| open(to.address))?
        .context("open the server's socket")?;
    let client = from
        .namespace
        .inside(|| open(Ipv4Addr::UNSPECIFIED))?
        .context("open the client's socket")?;
    let sent = pattern(length);
    let mut buffer = vec![0; LARGEST];
    client
        .send_to(&sent, server.local_addr()?)
        .context("send")?;
    let (there, peer) = server
        .recv_from(&mut buffer)
        .map_err(|_| silence("datagram"))?;
    ensure!(buffer[..there] == sent, "{length} bytes arrived changed");
    let patience = allowed(PATIENCE);
    let limits: &[Duration] = match answers {
        Answers::Once => &[patience],
        Answers::Twice => &[RETRY, patience],
    };
    for limit in limits {
        client
            .set_read_timeout(Some(*limit))
            .context("set a timeout")?;
        server.send_to(&sent, peer).context("answer")?;
        if let Ok((back, _)) = client.recv_from(&mut buffer) {
            ensure!(buffer[..back] == sent, "{length} bytes came back changed");
            return Ok(peer.ip());
        }
    }
    Err(silence("answer"))
}

fn silence(what: &str) -> anyhow::Error {
    anyhow!("no {what} arrives within {} s", allowed(PATIENCE).as_secs())
}

/// Sends an ICMP echo with `length` bytes of payload. Returns the sender's address as the receiver
/// sees it.
///
/// # Errors
/// When the echo does not arrive, or no answer with the same bytes returns.
pub fn icmp(from: &Endpoint, to: &Endpoint, length: usize) -> Result<IpAddr> {
    let receiver = to.namespace.inside(raw_icmp)??;
    let sender = from.namespace.inside(raw_icmp)??;
    // The number distinguishes the echo from all others, because several checks of one process run
    // at a time. The number is in the payload as well, because masquerading changes the identifier.
    let identifier = NEXT_ECHO.fetch_add(1, Ordering::Relaxed);
    let mut payload = pattern(length);
    for (byte, mark) in payload.iter_mut().zip(identifier.to_be_bytes()) {
        *byte = mark;
    }
    let request = echo_request(identifier, &payload);
    let target = SockaddrIn::from(SocketAddrV4::new(to.address, 0));
    sendto(sender.as_raw_fd(), &request, &target, MsgFlags::empty()).context("send an echo")?;
    let seen = await_echo(&receiver, ECHO_REQUEST, None, &payload).context("at the receiver")?;
    await_echo(&sender, ECHO_REPLY, Some(identifier), &payload).context("at the sender")?;
    Ok(IpAddr::V4(seen))
}

static NEXT_ECHO: AtomicU16 = AtomicU16::new(1);
/// ICMP types (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Bytes of an echo before its payload.
const ECHO_HEADER: usize = 8;

fn raw_icmp() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )
    .context("open a raw ICMP socket (needs root)")?;
    let patience = TimeVal::milliseconds(i64::try_from(allowed(PATIENCE).as_millis())?);
    setsockopt(&socket, ReceiveTimeout, &patience).context("set a timeout")?;
    Ok(socket)
}

/// An echo request (RFC 792) with sequence number 1.
fn echo_request(identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![ECHO_REQUEST, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    packet.extend(payload);
    let checksum = internet_checksum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The checksum of RFC 1071.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Waits for an echo with this payload, and this identifier if given, among all packets that raw
/// sockets receive.
fn await_echo(
    socket: &OwnedFd,
    kind: u8,
    identifier: Option<u16>,
    payload: &[u8],
) -> Result<Ipv4Addr> {
    let mut buffer = vec![0; LARGEST];
    let end = Instant::now() + allowed(PATIENCE);
    while Instant::now() < end {
        let Ok((length, source)) = recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer) else {
            break;
        };
        let packet = &buffer[..length];
        let header = packet
            .first()
            .map_or(0, |first| usize::from(first & 0x0f) * 4);
        let Some(message) = packet
            .get(header..)
            .filter(|message| message.len() >= ECHO_HEADER)
        else {
            continue;
        };
        let has_identifier = |wanted: u16| message[4..6] == wanted.to_be_bytes();
        if message[0] == kind
            && &message[ECHO_HEADER..] == payload
            && identifier.is_none_or(has_identifier)
        {
            return Ok(source.context("a packet without a source")?.ip());
        }
    }
    Err(silence("echo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_example_in_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&bytes), !0xddf2);
    }

    #[test]
    fn a_packet_with_its_checksum_sums_to_zero() {
        assert_eq!(internet_checksum(&echo_request(7, &pattern(33))), 0);
    }
}
