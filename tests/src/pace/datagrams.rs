//! Numbered datagrams in one direction.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::RATE;
use crate::traffic::Endpoint;
use crate::wait::{allowed, slowness};

/// Bytes of a datagram: an eight-byte number and padding.
const DATAGRAM: usize = 200;
/// Longest time until the last datagrams count as lost.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// Size of the receive buffer: ten seconds of datagrams, because a receiver that the machine does
/// not let run must not lose the waiting ones.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The file with the number of dropped datagrams of each socket, in the last column.
const UDP_SOCKETS: &str = "/proc/thread-self/net/udp";

/// The losses of datagrams in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
    /// Datagrams that arrived when the receiver's buffer was full, because the machine did not let
    /// the receiver run. They do not count as lost.
    pub overrun: u64,
    /// Datagrams that arrived more than once.
    pub repeated: u64,
    /// The longest time without an arrival, including the time from the last arrival to the end of
    /// sending.
    pub silence: Duration,
}

/// Datagrams that are being sent and received.
pub(super) struct Flow {
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Loss>>,
}

/// The end of sending.
struct End {
    at: Instant,
    sent: u64,
}

impl Flow {
    /// Starts to send and to receive; sends until `stop`.
    pub(super) fn start(from: &Endpoint, to: &Endpoint, stop: &Arc<AtomicBool>) -> Result<Self> {
        let client = open(from)?;
        let receiver = Receiver {
            socket: open(to)?,
            sockets: (to.namespace.inside(|| File::open(UDP_SOCKETS))?)
                .with_context(|| format!("open {UDP_SOCKETS}"))?,
            end: Arc::new(OnceLock::new()),
        };
        let target = receiver.socket.local_addr()?;
        let (stop, end) = (Arc::clone(stop), Arc::clone(&receiver.end));
        Ok(Self {
            receiver: thread::spawn(move || receiver.run()),
            sender: thread::spawn(move || {
                let sent = send(&client, target, &stop);
                let told = sent.as_ref().copied().unwrap_or_default();
                // No other code sets the option.
                let _ = end.set(End {
                    at: Instant::now(),
                    sent: told,
                });
                sent.map(drop)
            }),
        })
    }

    /// Waits for the last datagrams and reports the losses. The sender has been stopped before.
    pub(super) fn finish(self) -> Result<Loss> {
        let sent = self.sender.join();
        let loss = self.receiver.join();
        sent.map_err(|_| anyhow!("the sender panicked"))??;
        loss.map_err(|_| anyhow!("the receiver panicked"))?
    }
}

fn open(endpoint: &Endpoint) -> Result<UdpSocket> {
    let address = endpoint.address;
    let socket = (endpoint.namespace).inside(|| UdpSocket::bind((address, 0)))??;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

/// Sends at [`RATE`], or less on a slow machine, until stopped; a datagram that the kernel refuses
/// counts as sent, and lost.
fn send(socket: &UdpSocket, target: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let begin = Instant::now();
    let mut datagram = [0; DATAGRAM];
    let every = Duration::from_secs(1) / RATE * slowness();
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return Ok(number);
        }
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        // Errors such as "no route" end with the fault that causes them.
        let _ = socket.send_to(&datagram, target);
        let next = begin + every * u32::try_from(number + 1)?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(u64::MAX)
}

struct Receiver {
    socket: UdpSocket,
    /// [`UDP_SOCKETS`] of the socket's namespace.
    sockets: File,
    end: Arc<OnceLock<End>>,
}

/// The datagrams that have arrived so far.
#[derive(Default)]
struct Arrivals {
    seen: Vec<bool>,
    count: u64,
    repeated: u64,
}

impl Arrivals {
    fn note(&mut self, number: usize) {
        if self.seen.len() <= number {
            self.seen.resize(number + 1, false);
        }
        if self.seen[number] {
            self.repeated += 1;
        } else {
            self.seen[number] = true;
            self.count += 1;
        }
    }
}

impl Receiver {
    /// Receives until all datagrams have arrived and none follows, or the wait for the last ones is
    /// over.
    fn run(self) -> Result<Loss> {
        let mut arrivals = Arrivals::default();
        let mut silence = Duration::ZERO;
        let mut last = Instant::now();
        let mut buffer = [0; DATAGRAM + 1];
        loop {
            // Datagrams that have arrived by then are all read.
            let over = self.end.get().filter(|end| {
                arrivals.count >= end.sent || end.at.elapsed() >= allowed(STRAGGLERS)
            });
            match (self.socket.recv(&mut buffer), over) {
                (Ok(DATAGRAM), _) => {}
                (Ok(length), _) => return Err(anyhow!("a datagram of {length} bytes arrived")),
                (Err(error), Some(end)) if is_late(&error) => {
                    let overrun = self.overrun()?;
                    return Ok(Loss {
                        sent: end.sent,
                        lost: end.sent.saturating_sub(arrivals.count + overrun),
                        overrun,
                        repeated: arrivals.repeated,
                        silence: silence.max(end.at.saturating_duration_since(last)),
                    });
                }
                // The kernel returns this to a process that was frozen for some time.
                (Err(error), _) if is_late(&error) || error.kind() == ErrorKind::Interrupted => {
                    continue;
                }
                (Err(error), _) => return Err(error).context("receive"),
            }
            silence = silence.max(last.elapsed());
            last = Instant::now();
            arrivals.note(usize::try_from(u64::from_be_bytes(
                buffer[..8].try_into()?,
            ))?);
        }
    }

    /// The number of datagrams that arrived when the buffer was full.
    fn overrun(&self) -> Result<u64> {
        let mut table = String::new();
        let mut sockets = &self.sockets;
        sockets.rewind()?;
        sockets
            .read_to_string(&mut table)
            .with_context(|| format!("read {UDP_SOCKETS}"))?;
        let port = format!(":{:04X}", self.socket.local_addr()?.port());
        let is_ours =
            |line: &&str| (line.split_whitespace().nth(1)).is_some_and(|it| it.ends_with(&port));
        let line = table.lines().find(is_ours);
        let drops = line.and_then(|line| line.split_whitespace().last());
        let drops = drops.with_context(|| format!("no socket {port} in {UDP_SOCKETS}"))?;
        drops.parse().context("the socket's count of drops")
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_the_buffer_full_is_no_loss_of_the_network() {
        const SENT: u64 = 5000;
        let open = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let (client, socket) = (open(), open());
        let wait = Some(Duration::from_millis(50));
        socket.set_read_timeout(wait).expect("a timeout");
        let receiver = Receiver {
            socket,
            sockets: File::open(UDP_SOCKETS).expect("the table of sockets"),
            end: Arc::new(OnceLock::new()),
        };
        let target = receiver.socket.local_addr().expect("an address");
        let mut datagram = [0; DATAGRAM];
        for number in 0..SENT {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            client.send_to(&datagram, target).expect("sent");
        }
        let (at, end) = (Instant::now() - STRAGGLERS, &receiver.end);
        assert!(end.set(End { at, sent: SENT }).is_ok());
        let loss = receiver.run().expect("a count");
        assert!(loss.overrun > 0 && loss.lost == 0, "{loss:?}");
    }
}
