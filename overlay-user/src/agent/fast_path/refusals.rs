//! Who is refused: what the programs tell of it, passed on to the agent's log (`--log-refused`).

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::datapath::Error;
use crate::datapath::events::{Events, Told};
use crate::datapath::pins::Pins;

/// Lines in a second: enough to see who it is, and no flood of the journal.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);
/// How long to wait for events before looking whether anybody still wants them, in milliseconds.
const PAUSE_MS: u16 = 500;

/// Passes on what the programs tell until it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
}

impl Reader {
    /// Starts to read, on a thread of its own: a flood may keep it busy.
    ///
    /// # Errors
    /// [`Error::Map`] where the pinned ring cannot be opened.
    pub fn start(pins: &Pins) -> Result<Self, Error> {
        let mut events = Events::open(pins)?;
        let mut lost = events.lost()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut budget = Budget::new(Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                wait(&events);
                for told in events.by_ref() {
                    budget.unsaid += 1;
                    if !budget.spend(Instant::now()) {
                        continue;
                    }
                    say(&told, budget.unsaid - 1);
                    budget.unsaid = 0;
                }
                let now = events.lost().unwrap_or(lost);
                budget.unsaid += now.wrapping_sub(lost);
                lost = now;
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits for events, but not for ever.
fn wait(events: &Events) {
    let mut ring = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ring, PollTimeout::from(PAUSE_MS)).is_err() {
        thread::sleep(Duration::from_millis(PAUSE_MS.into()));
    }
}

fn say(told: &Told, unsaid: u64) {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
    tracing::warn!(
        hook = told.hook.name(),
        reason = told.verdict.name(),
        interface = told.interface(),
        from = text(told.source),
        to = text(told.destination),
        unsaid,
        "refused a packet"
    );
}

/// How much may still be said in this second.
struct Budget {
    second: Instant,
    said: u32,
    /// Events that found no place in the log or in the ring since the last line.
    unsaid: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            second: now,
            said: 0,
            unsaid: 0,
        }
    }

    /// Takes a line, if there is one left.
    fn spend(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= SECOND {
            self.second = now;
            self.said = 0;
        }
        let is_left = self.said < LINES;
        self.said += u32::from(is_left);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_some_lines_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let said = |budget: &mut Budget, now| (0..100).filter(|_| budget.spend(now)).count();
        assert_eq!(said(&mut budget, start), LINES as usize);
        assert_eq!(said(&mut budget, start + SECOND / 2), 0);
        assert_eq!(said(&mut budget, start + SECOND * 2), LINES as usize);
    }
}
