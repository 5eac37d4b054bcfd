//! TCP streams at the highest possible rate.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::round_trips::connection;
use super::{Cores, Server, Volume, joined, pin, watch};
use crate::traffic::Endpoint;

/// Number of bytes per write.
const WRITE: usize = 128 << 10;
/// Most bytes per read.
const READ: usize = 256 << 10;

/// Sends bytes over `streams` connections for `duration`; the volume is in bytes.
///
/// # Errors
/// When a connection cannot be made or breaks.
pub fn tcp(
    from: &Endpoint,
    to: &Server,
    cores: Cores,
    streams: usize,
    duration: Duration,
) -> Result<Volume> {
    let connections = (0..streams)
        .map(|_| connection(from, to))
        .collect::<Result<Vec<_>>>()?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (arrived, stop) = (&arrived, &stop);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (mut client, mut server) in connections {
            threads.push(scope.spawn(move || -> Result<()> {
                pin(cores.server)?;
                let mut buffer = vec![0; READ];
                loop {
                    let length = server.read(&mut buffer).context("the receiver's read")?;
                    if length == 0 {
                        return Ok(());
                    }
                    arrived.fetch_add(length as u64, Ordering::Relaxed);
                }
            }));
            threads.push(scope.spawn(move || -> Result<()> {
                pin(cores.client)?;
                let buffer = vec![7; WRITE];
                while !stop.load(Ordering::Relaxed) {
                    client.write_all(&buffer).context("the sender's write")?;
                }
                client.shutdown(Shutdown::Write).context("end a stream")
            }));
        }
        let volume = watch(duration, || arrived.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        let ended: Result<Vec<()>> = threads.into_iter().map(joined).collect();
        ended.and(volume)
    })
}
