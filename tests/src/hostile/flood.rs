//! Frames at a rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Kind, Origin, Scene};
use crate::load::pin;
use crate::packet::RawSocket;
use crate::{Lab, Namespace};

/// Number of frames per system call.
const BATCH: usize = 32;

/// The rate of a flood, and the core of its sender.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Frames per second; `None` for the highest possible rate.
    pub rate: Option<u32>,
    /// The core of the sending thread. On a veth pair the receiver's softirq runs there, too.
    pub core: Option<usize>,
}

/// A stream that continues until it is finished, or dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
    begin: Instant,
}

/// The result of a flood.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that were sent.
    pub frames: u64,
    /// The flood's duration.
    pub time: Duration,
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.time.as_secs_f64()
    }
}

impl Flood {
    /// Starts a stream at the origin of its kind.
    ///
    /// # Errors
    /// When the interface cannot be opened.
    pub fn start(lab: &Lab, scene: &Scene, kind: Kind, pace: Pace) -> Result<Self> {
        let namespace: Namespace = match kind.origin() {
            Origin::Stranger => lab.namespace("outside")?,
            Origin::Peer => lab.node(2).namespace(),
            Origin::Pod => lab.pod(1, 1).namespace(),
        };
        let socket = RawSocket::open_for_sending(&namespace, "eth0")?;
        let frames = kind.frames(scene);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || send(&socket, &frames, pace, &stop)
        });
        Ok(Self {
            stop,
            thread: Some(thread),
            begin: Instant::now(),
        })
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// When the frames could not be sent.
    pub fn finish(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let time = self.begin.elapsed();
        let thread = self.thread.take();
        let frames = thread
            .map_or(Ok(Ok(0)), JoinHandle::join)
            .map_err(|_| anyhow!("the flood panicked"))??;
        Ok(Sent { frames, time })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(socket: &RawSocket, frames: &[Vec<u8>], pace: Pace, stop: &AtomicBool) -> Result<u64> {
    if let Some(core) = pace.core {
        pin(core)?;
    }
    let begin = Instant::now();
    let mut sent = 0_u64;
    for batch in frames.chunks(BATCH).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sent += socket.send_batch(batch)? as u64;
        if let Some(rate) = pace.rate {
            let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
    }
    Ok(sent)
}
