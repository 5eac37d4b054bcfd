//! Traffic that runs during another action, and reports the losses afterwards.
//!
//! A paced sender numbers its datagrams, so that each missing one is known. A TCP connection
//! carries bytes that differ at every place, so that each byte is known to be the right one.

mod datagrams;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

pub use datagrams::Loss;

use crate::traffic::Endpoint;
use datagrams::Flow;

/// Datagrams per second and direction on a usual machine.
pub const RATE: u32 = 1000;
/// Time without progress after which a connection counts as broken.
const BROKEN: Duration = Duration::from_secs(5);
/// Time without progress after which a connection counts as broken where the wire is cut, because
/// TCP doubles its wait before every further attempt.
const BROKEN_BY_A_CUT: Duration = Duration::from_secs(30);

/// Traffic between two endpoints: numbered datagrams both ways, and a TCP connection.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    there: Flow,
    back: Flow,
    stream: JoinHandle<Result<u64>>,
}

/// The result of [`Traffic`].
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The losses of datagrams, there and back.
    pub datagrams: [Loss; 2],
    /// Bytes that the TCP connection carried in the right order.
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
            "lost {} of {} and {} of {} datagrams (and {} overran the receiver), longest silence \
            {} ms; TCP went on, {} bytes",
            there.lost,
            there.sent,
            back.lost,
            back.sent,
            there.overrun + back.overrun,
            there.silence.max(back.silence).as_millis(),
            self.bytes
        )
    }
}

impl Traffic {
    /// Starts the traffic. The TCP connection is open at the return, and counts as broken after
    /// five seconds without progress.
    ///
    /// # Errors
    /// When a socket cannot be opened, or the two do not connect.
    pub fn start(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        Self::start_patiently(from, to, BROKEN)
    }

    /// Starts the traffic before the wire is cut: the TCP connection has enough time to notice that
    /// the wire is connected again.
    ///
    /// # Errors
    /// As [`Traffic::start`].
    pub fn start_before_a_cut(from: &Endpoint, to: &Endpoint) -> Result<Self> {
        Self::start_patiently(from, to, BROKEN_BY_A_CUT)
    }

    fn start_patiently(from: &Endpoint, to: &Endpoint, patience: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self {
            there: Flow::start(from, to, &stop)?,
            back: Flow::start(to, from, &stop)?,
            stream: stream::stream(from, to, &stop, patience)?,
            stop,
        })
    }

    /// Stops the traffic and reports the losses.
    ///
    /// # Errors
    /// When the TCP connection broke or carried wrong bytes.
    pub fn finish(self) -> Result<Outcome> {
        let (datagrams, bytes) = self.end()?;
        let bytes = bytes.with_context(|| format!("TCP broke; datagrams: {datagrams:?}"))?;
        Ok(Outcome { datagrams, bytes })
    }

    /// Stops the traffic and reports the losses, there and back, and the result of the TCP
    /// connection: the number of its bytes, or the cause of its end.
    ///
    /// # Errors
    /// When a changed datagram arrived.
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
