//! Small UDP packets at the highest possible rate.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};

use super::{Cores, Server, Volume, joined, pin, udp_socket, watch};
use crate::traffic::Endpoint;

/// Number of packets per system call.
const BATCH: usize = 64;
/// Room for packets that wait for the receiver.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Interval of the receiver's checks for the end of the flood.
const LOOK: Duration = Duration::from_millis(20);

/// Sends datagrams with `payload` bytes for `duration`; the volume is in packets that arrived.
///
/// # Errors
/// When packets cannot be sent.
pub fn udp(
    from: &Endpoint,
    to: &Server,
    cores: Cores,
    payload: usize,
    duration: Duration,
) -> Result<Volume> {
    let receiver = udp_socket(&to.endpoint, to.port)?;
    receiver
        .set_read_timeout(Some(LOOK))
        .context("set a timeout")?;
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("set SO_RCVBUFFORCE")?;
    let sender = udp_socket(from, 0)?;
    sender
        .connect(to.dialled(receiver.local_addr())?)
        .context("connect")?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (arrived, stop) = (&arrived, &stop);
    thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<()> {
            pin(cores.server)?;
            let mut buffers = vec![vec![0; payload]; BATCH];
            let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
            while !stop.load(Ordering::Relaxed) {
                let mut slices: Vec<_> = buffers
                    .iter_mut()
                    .map(|buffer| [IoSliceMut::new(buffer)])
                    .collect();
                let flags = MsgFlags::MSG_WAITFORONE;
                let fd = receiver.as_raw_fd();
                match recvmmsg(fd, &mut headers, slices.iter_mut(), flags, None) {
                    Ok(messages) => {
                        arrived.fetch_add(messages.count() as u64, Ordering::Relaxed);
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => return Err(error).context("recvmmsg"),
                }
            }
            Ok(())
        });
        let sending = scope.spawn(move || -> Result<()> {
            pin(cores.client)?;
            let buffer = vec![7; payload];
            let slices = [[IoSlice::new(&buffer)]; BATCH];
            let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
            while !stop.load(Ordering::Relaxed) {
                let fd = sender.as_raw_fd();
                match sendmmsg(
                    fd,
                    &mut headers,
                    slices.iter(),
                    [None; BATCH],
                    [],
                    MsgFlags::empty(),
                ) {
                    // A packet that a full queue refuses is lost, like one that it drops.
                    Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                    Err(error) => return Err(error).context("sendmmsg"),
                }
            }
            Ok(())
        });
        let volume = watch(duration, || arrived.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        let sent = joined(sending);
        joined(receiving).and(sent).and(volume)
    })
}
