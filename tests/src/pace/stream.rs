//! A TCP connection on which every byte depends on its place.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::traffic::{Endpoint, PATIENCE};
use crate::wait::allowed;

/// Size of a chunk in bytes, and the interval of chunks.
const CHUNK: usize = 1024;
const CHUNK_EVERY: Duration = Duration::from_millis(5);

/// The byte at a place of the TCP connection.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// A connection that sends a chunk at intervals and receives it back; returns how many bytes
/// returned in order. The connection counts as broken after `patience` without progress.
pub(super) fn stream(
    from: &Endpoint,
    to: &Endpoint,
    stop: &Arc<AtomicBool>,
    patience: Duration,
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
        stream.set_read_timeout(Some(allowed(patience)))?;
        stream.set_write_timeout(Some(allowed(patience)))?;
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
