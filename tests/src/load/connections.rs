//! Repeats: connect, send one byte there and back, close.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

use super::round_trips::RoundTrips;
use super::{Cores, Server, joined, pin};
use crate::traffic::{Endpoint, PATIENCE};

/// Number of connections before the measurement.
const WARM_UP: usize = 100;
/// Option to close at once, because ports that linger for a minute would leave none for the next
/// connections.
const ABORT: libc::linger = libc::linger {
    l_onoff: 1,
    l_linger: 0,
};

/// Opens connections one after the other; a round trip is a whole connection.
///
/// # Errors
/// When a connection cannot be made or breaks.
pub fn tcp(from: &Endpoint, to: &Server, cores: Cores, duration: Duration) -> Result<RoundTrips> {
    let listener = to.listen()?;
    let here = listener.local_addr().context("ask for the port")?;
    let target = to.dialled(Ok(here))?;
    let done = AtomicBool::new(false);
    let done = &done;
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<()> {
            pin(cores.server)?;
            loop {
                let (stream, _) = listener.accept().context("accept")?;
                if done.load(Ordering::Acquire) {
                    return Ok(());
                }
                // A client that fails reports the cause itself.
                let _ = answer(stream);
            }
        });
        let asked = from.namespace.inside(|| -> Result<RoundTrips> {
            pin(cores.client)?;
            for _ in 0..WARM_UP {
                connect(target)?;
            }
            let mut times = Vec::with_capacity(1 << 16);
            let begin = Instant::now();
            let mut start = begin;
            while start - begin < duration {
                connect(target)?;
                let end = Instant::now();
                times.push(end - start);
                start = end;
            }
            RoundTrips::of(times, start - begin)
        });
        done.store(true, Ordering::Release);
        // This wakes the server, from the server's own namespace, where no other part can block the
        // packet.
        let woken = to
            .endpoint
            .namespace
            .inside(|| TcpStream::connect_timeout(&here, PATIENCE));
        woken?.context("end the server")?;
        joined(server)?;
        asked?
    })
}

fn connect(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    setsockopt(&stream, Linger, &ABORT).context("set SO_LINGER")?;
    let mut byte = [7];
    stream.write_all(&byte).context("ask")?;
    stream.read_exact(&mut byte).context("no answer")
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    // This read lasts until the client closes.
    stream.read(&mut byte).map(drop)
}
