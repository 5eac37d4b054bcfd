//! Raw frames: sends any bytes from an interface, and receives the bytes that pass one.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind,
    recvmsg, sendmmsg, sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;

/// The largest frame of an interface: 64 KiB of IP, and room for headers.
const LARGEST: usize = 1 << 17;
/// Room in bytes for frames that wait to be read.
const BUFFER: usize = 16 << 20;
/// The type of an interface's own packets in `sll_pkttype` (linux/if_packet.h).
const PACKET_OUTGOING: u8 = 4;

/// A frame that passed an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The bytes from the Ethernet header on, without checksum. The kernel has removed an outer
    /// VLAN tag.
    pub bytes: Vec<u8>,
    /// Whether the namespace sent the frame; otherwise the namespace received the frame.
    pub outgoing: bool,
}

/// A raw socket on one interface, in which frames wait from [`RawSocket::open`] on.
pub struct RawSocket {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl RawSocket {
    /// Opens `interface` in `namespace`.
    ///
    /// # Errors
    /// When the namespace has no such interface, or without root.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace
            .inside(|| open(interface))?
            .with_context(|| format!("open {interface} in {}", namespace.name()))
    }

    /// Sends a frame, from its Ethernet header on.
    ///
    /// # Errors
    /// When the interface is down or refuses the frame (longer than its MTU).
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let bytes = [IoSlice::new(frame)];
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &bytes,
            &[],
            MsgFlags::empty(),
            Some(&self.interface),
        );
        sent.with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// Opens `interface` for sending only, so that frames which pass the interface are not queued
    /// here, and cost nothing.
    ///
    /// # Errors
    /// As for [`RawSocket::open`].
    pub fn open_for_sending(namespace: &Namespace, interface: &str) -> Result<Self> {
        let open = || -> Result<Self> {
            Ok(Self {
                socket: raw_socket(None)?,
                interface: link_address(interface)?,
            })
        };
        namespace
            .inside(open)?
            .with_context(|| format!("open {interface} in {}", namespace.name()))
    }

    /// Sends frames by one system call; returns how many the kernel accepted. A frame that a full
    /// queue refuses is lost, as on a wire.
    ///
    /// # Errors
    /// When the interface is down or refuses a frame.
    pub fn send_batch(&self, frames: &[Vec<u8>]) -> Result<usize> {
        let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let addresses = vec![Some(self.interface); frames.len()];
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(frames.len(), None);
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::empty();
        match sendmmsg(fd, &mut headers, slices.iter(), addresses, [], flags) {
            Ok(sent) => Ok(sent.count()),
            Err(Errno::ENOBUFS | Errno::EINTR) => Ok(0),
            Err(error) => Err(error).context("send frames"),
        }
    }

    /// The next frame that passes within `limit`.
    ///
    /// # Errors
    /// When the interface no longer exists.
    pub fn receive(&self, limit: Duration) -> Result<Option<Frame>> {
        let micros = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&self.socket, ReceiveTimeout, &TimeVal::microseconds(micros))
            .context("set the receive timeout of a raw socket")?;
        let mut buffer = vec![0; LARGEST];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut slices,
            None,
            MsgFlags::empty(),
        );
        let (length, outgoing) = match received {
            Ok(message) => {
                let outgoing = message
                    .address
                    .is_some_and(|from| from.pkttype() == PACKET_OUTGOING);
                (message.bytes, outgoing)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error).context("receive from a raw socket"),
        };
        buffer.truncate(length);
        Ok(Some(Frame {
            bytes: buffer,
            outgoing,
        }))
    }

    /// Every frame that has passed and still passes, until there is none for `quiet`.
    ///
    /// # Errors
    /// When the interface no longer exists.
    pub fn drain(&self, quiet: Duration) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive(quiet)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// The bytes of every received frame that `wanted` accepts, until there is none for `quiet`.
    ///
    /// # Errors
    /// When the interface no longer exists.
    pub fn incoming(
        &self,
        quiet: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            match self.receive(quiet)? {
                Some(frame) if !frame.outgoing && wanted(&frame.bytes) => {
                    found.push(frame.bytes);
                    last = Instant::now();
                }
                Some(_) | None => {}
            }
        }
        Ok(found)
    }
}

/// The kernel fills in the interface's index, which is the only part of an address that a raw
/// socket needs.
fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()
        .context("list interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .context("no such interface")
}

/// A socket without a protocol receives nothing.
fn raw_socket(protocol: impl Into<Option<SockProtocol>>) -> Result<OwnedFd> {
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).context("open a raw socket (needs root)")
}

fn open(interface: &str) -> Result<RawSocket> {
    let address = link_address(interface)?;
    let socket = raw_socket(SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("enlarge the buffer of a raw socket")?;
    bind(socket.as_raw_fd(), &address).context("bind a raw socket")?;
    let raw = RawSocket {
        socket,
        interface: address,
    };
    // Between open and bind the socket has received from every interface.
    while raw.receive(Duration::from_micros(1))?.is_some() {}
    Ok(raw)
}
