//! ICMP echo (RFC 792) out of one device, to find the hosts that answer behind the device.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket as StdSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, sendto,
    setsockopt, socket,
};
use nix::{libc, setsockopt_impl, sockopt_impl};
use tokio::net::UdpSocket;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// `SOL_RAW` and `ICMP_FILTER` of `linux/socket.h` and `linux/icmp.h`.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;

sockopt_impl!(
    /// The ICMP types that a raw socket does not get, one bit each.
    IcmpFilter,
    SetOnly,
    SOL_RAW,
    ICMP_FILTER,
    u32
);

/// Why there is no socket to send echo requests by.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a raw socket nor one for echo alone is permitted.
    #[error(
        "echo requests are not permitted; give the agent CAP_NET_RAW, or its group a place in \
         net.ipv4.ping_group_range"
    )]
    NotPermitted,
    /// A call failed, perhaps because the device does not exist yet.
    #[error("{call}: {source}")]
    Failed {
        /// The call, with its object.
        call: String,
        /// The errno.
        source: io::Error,
    },
}

/// A socket that sends echo requests out of one device and hears the replies to them.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
    /// The identifier of the requests, and so of the replies. The kernel chooses the identifier for
    /// a socket for echo alone.
    identifier: u16,
    /// Whether a received message begins with an IP header.
    raw: bool,
}

impl Echo {
    /// Opens a socket on `device` that sends from `source`.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], or the call that failed.
    pub fn open(device: &str, source: Ipv4Addr) -> Result<Self, Error> {
        let failed = |call: String| |source: io::Error| Error::Failed { call, source };
        let (fd, raw) = open()?;
        setsockopt(&fd, BindToDevice, &device.into())
            .map_err(io::Error::from)
            .map_err(failed(format!("bind a socket to {device}")))?;
        let address = SockaddrIn::from(SocketAddrV4::new(source, 0));
        bind(fd.as_raw_fd(), &address)
            .map_err(io::Error::from)
            .map_err(failed(format!("bind a socket to {source}")))?;
        // Addresses and calls are those of UDP; only the messages differ.
        let socket = UdpSocket::from_std(StdSocket::from(fd))
            .map_err(failed("register a socket".to_owned()))?;
        Ok(Self {
            socket,
            identifier: rand::random(),
            raw,
        })
    }

    /// Sends a request, without waiting for room.
    ///
    /// # Errors
    /// The kernel's refusal: the device may not exist any more, or a packet filter may drop the
    /// request.
    pub fn send(&self, to: Ipv4Addr, sequence: u16) -> io::Result<()> {
        let message = request(self.identifier, sequence);
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        let flags = MsgFlags::MSG_DONTWAIT;
        sendto(self.socket.as_raw_fd(), &message, &to, flags)?;
        Ok(())
    }

    /// Waits for a reply to any request, and returns the sender.
    ///
    /// # Errors
    /// The kernel's error: the device may not exist any more.
    pub async fn hear(&self) -> io::Result<Ipv4Addr> {
        let mut message = [0; 128];
        loop {
            let (len, from) = self.socket.recv_from(&mut message).await?;
            let IpAddr::V4(from) = from.ip() else {
                continue;
            };
            let identifier = self.raw.then_some(self.identifier);
            if is_reply(&message[..len], identifier) {
                return Ok(from);
            }
        }
    }
}

/// Whether the error means that the socket's device does not exist any more; the device may have
/// been made anew, under another index.
#[must_use]
pub fn is_device_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENODEV | Errno::ENXIO))
}

/// A socket for echo alone where the group may have one, because such a socket receives nothing
/// else; else a raw one. Returns whether the socket is raw.
fn open() -> Result<(OwnedFd, bool), Error> {
    let open = |kind| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Inet, kind, flags, SockProtocol::Icmp)
    };
    let failed = |source: Errno| Error::Failed {
        call: "open a socket for ICMP".to_owned(),
        source: source.into(),
    };
    match open(SockType::Datagram) {
        Ok(fd) => return Ok((fd, false)),
        Err(Errno::EACCES | Errno::EPERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    match open(SockType::Raw) {
        Ok(fd) => {
            setsockopt(&fd, IcmpFilter, &!(1 << ECHO_REPLY)).map_err(failed)?;
            Ok((fd, true))
        }
        Err(Errno::EACCES | Errno::EPERM) => Err(Error::NotPermitted),
        Err(errno) => Err(failed(errno)),
    }
}

fn request(identifier: u16, sequence: u16) -> [u8; 8] {
    let [a, b] = identifier.to_be_bytes();
    let [c, d] = sequence.to_be_bytes();
    // The ones' complement of the ones' complement sum (RFC 1071) of three 16-bit words.
    let sum = u32::from(ECHO_REQUEST) << 8;
    let sum = sum + u32::from(identifier) + u32::from(sequence);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [e, f] = (!(sum as u16)).to_be_bytes();
    [ECHO_REQUEST, 0, e, f, a, b, c, d]
}

/// Whether this is an echo reply; with an `identifier`, behind an IP header and to a request of
/// ours.
fn is_reply(message: &[u8], identifier: Option<u16>) -> bool {
    let header = match (identifier, message.first()) {
        (None, _) => 0,
        (Some(_), Some(first)) => usize::from(first & 0xf) * 4,
        (Some(_), None) => return false,
    };
    let Some(&[kind, code, _, _, a, b, ..]) = message.get(header..) else {
        return false;
    };
    let ours = identifier.is_none_or(|identifier| identifier.to_be_bytes() == [a, b]);
    (kind, code) == (ECHO_REPLY, 0) && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_adds_up() {
        for (identifier, sequence) in [(0, 0), (1, 2), (0xffff, 0xffff), (0xf7ff, 0)] {
            let words = request(identifier, sequence);
            let sum: u32 = words
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{words:x?}");
        }
    }

    #[test]
    fn only_replies_to_us_count() {
        let mut reply = request(7, 1);
        assert!(!is_reply(&reply, None), "a request");
        reply[0] = ECHO_REPLY;
        assert!(is_reply(&reply, None));
        let mut packet = vec![0x46; 24];
        packet.extend(reply);
        assert!(is_reply(&packet, Some(7)));
        assert!(!is_reply(&packet, Some(8)), "another program's");
        assert!(!is_reply(&packet[..29], Some(7)) && !is_reply(&[], Some(7)));
    }
}
