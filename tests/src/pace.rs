//! Traffic that runs while something else happens, and tells afterwards what was lost.
//!
//! A paced sender numbers its datagrams, so that each one that does not arrive is known; a TCP connection
//! carries bytes that differ at every place, so that it is known to go on where it was.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::traffic::{Endpoint, PATIENCE};
use crate::wait::{allowed, slowness};

/// Datagrams per second and direction on a usual machine.
pub const RATE: u32 = 1000;
/// Bytes of a datagram: an eight-byte number and padding.
const DATAGRAM: usize = 200;
/// Bytes that the TCP connection sends at a time, and how often.
const CHUNK: usize = 1024;
const CHUNK_EVERY: Duration = Duration::from_millis(5);
/// How long the last packets may still be on their way.
const STRAGGLERS: Duration = Duration::from_millis(300);
/// A connection that moves nothing for so long is broken.
const BROKEN: Duration = Duration::from_secs(30);
/// A receiver that the machine does not let run must not lose what waits for it.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Traffic between two endpoints: numbered datagrams both ways, and a TCP connection.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    there: Flow,
    back: Flow,
    stream: JoinHandle<Result<u64>>,
}

/// What came of the datagrams of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
    /// Datagrams that arrived more than once.
    pub repeated: u64,
    /// The longest time without an arrival.
    pub silence: Duration,
}

/// What came of [`Traffic`].
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The datagrams, there and back.
    pub datagrams: [Loss; 2],
    /// Bytes that the TCP connection carried, each in its place.
    pub bytes: u64,
}

impl Outcome {
    /// Datagrams lost in both directions.
    pub fn lost(&self) -> u64 {
        self.datagrams.iter().map(|loss| loss.lost).sum()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [there, back] = &self.datagrams;
        write!(
            f,
            "lost {} of {} and {} of {} datagrams, longest silence {} ms; TCP went on, {} bytes",
            there.lost,
            there.sent,
            back.lost,
            back.sent,
            there.silence.max(back.silence).as_millis(),
            self.bytes
        )
    }
}

impl Traffic {
    /// Starts it and waits until every part of it flows.
    ///
    /// # Errors
    /// When nothing arrives.
    pub fn start(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self {
            there: Flow::start(from, to, &stop)?,
            back: Flow::start(to, from, &stop)?,
            stream: stream(from, to, &stop)?,
            stop,
        })
    }

    /// Stops it and tells what was lost.
    ///
    /// # Errors
    /// When the TCP connection broke or carried something else than was sent.
    pub fn finish(self) -> Result<Outcome> {
        let (datagrams, bytes) = self.end()?;
        let bytes = bytes.with_context(|| format!("TCP broke; datagrams: {datagrams:?}"))?;
        Ok(Outcome { datagrams, bytes })
    }

    /// Stops it and tells what was lost, there and back, and what came of the TCP connection: the bytes that it
    /// carried, or how it broke.
    ///
    /// # Errors
    /// When a datagram arrived changed.
    pub fn end(self) -> Result<([Loss; 2], Result<u64>)> {
        self.stop.store(true, Ordering::SeqCst);
        let datagrams = [self.there.finish()?, self.back.finish()?];
        let bytes = self
            .stream
            .join()
            .map_err(|_| anyhow!("the TCP connection's thread panicked"))?;
        Ok((datagrams, bytes))
    }
}

/// Numbered datagrams in one direction.
struct Flow {
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Received>>,
    /// Tells the receiver that nothing more is sent.
    sent_all: Arc<AtomicBool>,
}

#[derive(Default)]
struct Received {
    /// Whether each number arrived.
    seen: Vec<bool>,
    repeated: u64,
    silence: Duration,
}

impl Flow {
    fn start(from: &Endpoint, to: &Endpoint, stop: &Arc<AtomicBool>) -> Result<Self> {
        let open = |endpoint: &Endpoint| -> Result<UdpSocket> {
            let address = endpoint.address;
            let socket = endpoint
                .namespace
                .inside(|| UdpSocket::bind((address, 0)))??;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        };
        let (client, server) = (open(from)?, open(to)?);
        let target = server.local_addr()?;
        let sent_all = Arc::new(AtomicBool::new(false));
        let receiver = thread::spawn({
            let sent_all = Arc::clone(&sent_all);
            move || receive(&server, &sent_all)
        });
        let sender = thread::spawn({
            let (stop, sent_all) = (Arc::clone(stop), Arc::clone(&sent_all));
            move || {
                let sent = send(&client, target, &stop);
                thread::sleep(allowed(STRAGGLERS));
                sent_all.store(true, Ordering::SeqCst);
                sent
            }
        });
        Ok(Self {
            sender,
            receiver,
            sent_all,
        })
    }

    fn finish(self) -> Result<Loss> {
        let sent = self
            .sender
            .join()
            .map_err(|_| anyhow!("the sender panicked"))?;
        self.sent_all.store(true, Ordering::SeqCst);
        let received = self
            .receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        let sent = sent?;
        let arrived = received.seen.iter().filter(|seen| **seen).count() as u64;
        Ok(Loss {
            sent,
            lost: sent - arrived,
            repeated: received.repeated,
            silence: received.silence,
        })
    }
}

/// Sends at [`RATE`], or less on a slow machine, until told to stop; a datagram that the kernel refuses counts as sent, and lost.
fn send(socket: &UdpSocket, target: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let begin = Instant::now();
    let mut datagram = [0; DATAGRAM];
    let every = Duration::from_secs(1) / RATE * slowness();
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return Ok(number);
        }
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        // Errors such as "no route" pass with the fault that they come from.
        let _ = socket.send_to(&datagram, target);
        let next = begin + every * u32::try_from(number + 1)?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(u64::MAX)
}

fn receive(socket: &UdpSocket, sent_all: &AtomicBool) -> Result<Received> {
    let mut received = Received::default();
    let mut last = Instant::now();
    let mut buffer = [0; DATAGRAM + 1];
    loop {
        // What has arrived by then is read to the last.
        let is_last = sent_all.load(Ordering::SeqCst);
        match socket.recv(&mut buffer) {
            Ok(DATAGRAM) => {}
            Ok(length) => return Err(anyhow!("a datagram of {length} bytes arrived")),
            Err(error) if is_last && is_late(&error) => return Ok(received),
            // A process that was frozen for a while is told so.
            Err(error) if is_late(&error) || error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("receive"),
        }
        received.silence = received.silence.max(last.elapsed());
        last = Instant::now();
        let number = usize::try_from(u64::from_be_bytes(buffer[..8].try_into()?))?;
        if received.seen.len() <= number {
            received.seen.resize(number + 1, false);
        }
        received.repeated += u64::from(received.seen[number]);
        received.seen[number] = true;
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The byte at a place of the TCP connection.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// A connection that sends a chunk now and then and gets it back; returns how many bytes came back in place.
fn stream(
    from: &Endpoint,
    to: &Endpoint,
    stop: &Arc<AtomicBool>,
) -> Result<JoinHandle<Result<u64>>> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let listener = to
        .namespace
        .inside(|| TcpListener::bind(any))?
        .context("listen")?;
    let target = SocketAddr::from((to.address, listener.local_addr()?.port()));
    let mut client = from
        .namespace
        .inside(|| TcpStream::connect_timeout(&target, allowed(PATIENCE)))?
        .with_context(|| format!("connect to {target}"))?;
    let (mut server, _) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(allowed(BROKEN)))?;
        stream.set_write_timeout(Some(allowed(BROKEN)))?;
    }
    thread::spawn(move || {
        let mut buffer = [0; CHUNK];
        while let Ok(length @ 1..) = server.read(&mut buffer) {
            if server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
    let stop = Arc::clone(stop);
    Ok(thread::spawn(move || {
        let mut place = 0;
        let mut back = [0; CHUNK];
        while !stop.load(Ordering::SeqCst) {
            let chunk: Vec<u8> = (place..).take(CHUNK).map(byte_at).collect();
            client.write_all(&chunk).context("send over TCP")?;
            client.read_exact(&mut back).context("receive over TCP")?;
            ensure!(
                back == *chunk,
                "other bytes came back over TCP after byte {place}"
            );
            place += CHUNK as u64;
            thread::sleep(allowed(CHUNK_EVERY));
        }
        Ok(place)
    }))
}
