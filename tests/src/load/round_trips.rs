//! Request and response of one byte, over one flow.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Cores, Server, joined, percentile, pin, udp_socket};
use crate::traffic::{Endpoint, PATIENCE};

/// Number of round trips before the measurement.
const WARM_UP: usize = 500;
/// The message that ends the UDP echo.
const END: &[u8] = b"end";

/// Many round trips, one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// Number of round trips per second.
    pub per_second: f64,
    /// Half of them took at most this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took at most this, in microseconds.
    pub p99_us: f64,
}

impl RoundTrips {
    pub(super) fn of(mut times: Vec<Duration>, took: Duration) -> Result<Self> {
        ensure!(!times.is_empty(), "no round trip in {took:?}");
        times.sort_unstable();
        Ok(Self {
            per_second: times.len() as f64 / took.as_secs_f64(),
            p50_us: percentile(&times, 50),
            p99_us: percentile(&times, 99),
        })
    }
}

/// Repeats an exchange for `duration`.
fn repeat(duration: Duration, mut exchange: impl FnMut() -> Result<()>) -> Result<RoundTrips> {
    for _ in 0..WARM_UP {
        exchange()?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let begin = Instant::now();
    let mut start = begin;
    while start - begin < duration {
        exchange()?;
        let end = Instant::now();
        times.push(end - start);
        start = end;
    }
    RoundTrips::of(times, start - begin)
}

/// Measures round trips over an open TCP connection.
///
/// # Errors
/// When the two cannot connect, or the connection breaks.
pub fn tcp(from: &Endpoint, to: &Server, cores: Cores, duration: Duration) -> Result<RoundTrips> {
    let (mut client, mut server) = connection(from, to)?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            pin(cores.server)?;
            let mut byte = [0];
            while server.read(&mut byte).context("the server's read")? == 1 {
                server.write_all(&byte).context("the server's write")?;
            }
            Ok(())
        });
        let ask = scope.spawn(move || {
            pin(cores.client)?;
            let mut byte = [7];
            repeat(duration, || {
                client.write_all(&byte).context("the client's write")?;
                client.read_exact(&mut byte).context("the client's read")
            })
        });
        let answer = joined(ask);
        joined(echo).and(answer)
    })
}

/// A connection without delays (`TCP_NODELAY`) on either end.
pub(super) fn connection(from: &Endpoint, to: &Server) -> Result<(TcpStream, TcpStream)> {
    let listener = to.listen()?;
    let target = to.dialled(listener.local_addr())?;
    let client = from
        .namespace
        .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
        .with_context(|| format!("connect to {target}"))?;
    let (server, _) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

/// Measures round trips over UDP.
///
/// # Errors
/// When a datagram is lost.
pub fn udp(from: &Endpoint, to: &Server, cores: Cores, duration: Duration) -> Result<RoundTrips> {
    with_udp_echo(to, cores, |target| {
        let socket = udp_socket(from, 0)?;
        socket.connect(target).context("connect")?;
        repeat(duration, || exchange(&socket))
    })
}

/// Round trips of first packets, and of packets of an old flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FirstPackets {
    /// Median of flows' first round trips, in microseconds.
    pub first_p50_us: f64,
    /// Median of one flow's round trips under the same circumstances, in microseconds.
    pub steady_p50_us: f64,
}

/// Alternates the first round trip of a new flow with one of an old flow. A new socket is opened
/// for both, so that the effect on caches is the same.
///
/// # Errors
/// When a datagram is lost.
pub fn first_packets(
    from: &Endpoint,
    to: &Server,
    cores: Cores,
    duration: Duration,
) -> Result<FirstPackets> {
    with_udp_echo(to, cores, |target| {
        let open = || -> Result<UdpSocket> {
            let socket = UdpSocket::bind((from.address, 0)).context("bind")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(target).context("connect")?;
            Ok(socket)
        };
        from.namespace.inside(|| -> Result<FirstPackets> {
            // The work in the namespace runs on a new thread.
            pin(cores.client)?;
            let timed = |socket: &UdpSocket| -> Result<Duration> {
                let start = Instant::now();
                exchange(socket)?;
                Ok(start.elapsed())
            };
            let old = open()?;
            for _ in 0..WARM_UP {
                exchange(&old)?;
            }
            let (mut first, mut steady) = (Vec::new(), Vec::new());
            let begin = Instant::now();
            while begin.elapsed() < duration {
                first.push(timed(&open()?)?);
                let unused = open()?;
                steady.push(timed(&old)?);
                drop(unused);
            }
            for times in [&mut first, &mut steady] {
                times.sort_unstable();
                ensure!(!times.is_empty(), "no round trip in {duration:?}");
            }
            Ok(FirstPackets {
                first_p50_us: percentile(&first, 50),
                steady_p50_us: percentile(&steady, 50),
            })
        })?
    })
}

fn exchange(socket: &UdpSocket) -> Result<()> {
    let mut byte = [7];
    socket.send(&byte).context("send")?;
    socket.recv(&mut byte).context("no answer")?;
    Ok(())
}

/// Runs `ask`, pinned, while an echo answers at the address that `ask` gets.
fn with_udp_echo<T: Send>(
    to: &Server,
    cores: Cores,
    ask: impl FnOnce(SocketAddr) -> Result<T> + Send,
) -> Result<T> {
    let server = udp_socket(&to.endpoint, to.port)?;
    let here = server.local_addr().context("ask for the port")?;
    let target = to.dialled(Ok(here))?;
    // The message for the end is sent from the server's own namespace, where no packet is lost.
    let ender = udp_socket(&to.endpoint, 0)?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            pin(cores.server)?;
            let mut buffer = [0; 16];
            loop {
                let Ok((length, peer)) = server.recv_from(&mut buffer) else {
                    // There was no request for a long time; the asking side reports the cause.
                    return Ok(());
                };
                if &buffer[..length] == END {
                    return Ok(());
                }
                server.send_to(&buffer[..length], peer).context("answer")?;
            }
        });
        let asker = scope.spawn(move || {
            pin(cores.client)?;
            ask(target)
        });
        let answer = joined(asker);
        ender.send_to(END, here).context("end the echo")?;
        joined(echo).and(answer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        let trips = RoundTrips::of(times, Duration::from_millis(10)).unwrap();
        assert!((trips.p50_us - 50.0).abs() < 1e-9, "{trips:?}");
        assert!((trips.p99_us - 99.0).abs() < 1e-9, "{trips:?}");
        assert!((trips.per_second - 10_000.0).abs() < 1e-6, "{trips:?}");
        assert!(RoundTrips::of(Vec::new(), Duration::from_secs(1)).is_err());
    }
}
