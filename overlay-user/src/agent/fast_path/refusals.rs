//! Refused senders: the programs' events about them, passed on to the agent's log
//! (`--log-refused`).

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlay_common::{Hook, Verdict};

use crate::datapath::Error;
use crate::datapath::events::{Events, PacketEvent};
use crate::datapath::pins::Pins;

/// Most lines in a second: enough to identify the sender without a flood of the journal.
const LINES: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Events between two checks of the number of lost events, and of whether the reader was dropped.
const BATCH: usize = 1024;
/// Longest wait for events before a check whether the reader was dropped, in milliseconds.
const PAUSE_MS: u16 = 500;

/// Passes the programs' events on until dropped.
#[derive(Debug)]
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
}

impl Reader {
    /// Starts to read, on a separate thread, because a flood may keep the thread busy.
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
                for told in events.by_ref().take(BATCH) {
                    budget.unsaid += 1;
                    if !budget.spend(Culprit::of(&told), Instant::now()) {
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

/// Waits for events, for a limited time.
fn wait(events: &Events) {
    let mut ring = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ring, PollTimeout::from(PAUSE_MS)).is_err() {
        thread::sleep(Duration::from_millis(PAUSE_MS.into()));
    }
}

fn say(told: &PacketEvent, unsaid: u64) {
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

/// A refused sender, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Culprit {
    verdict: Verdict,
    ifindex: u32,
    /// `None` at a pod's interface, where every source is that pod.
    source: Option<IpAddr>,
}

impl Culprit {
    fn of(told: &PacketEvent) -> Self {
        Self {
            verdict: told.verdict,
            ifindex: told.ifindex,
            source: told.source.filter(|_| told.hook != Hook::PodIn),
        }
    }
}

/// The lines that are left for this second. Each sender is named once, so that a flood from one
/// does not hide a single packet from another.
struct Budget {
    second: Instant,
    said: Vec<Culprit>,
    /// Events since the last line that exceeded the limit of the log or the room in the ring.
    unsaid: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            second: now,
            said: Vec::new(),
            unsaid: 0,
        }
    }

    /// Uses a line for this sender, if there is one left.
    fn spend(&mut self, culprit: Culprit, now: Instant) -> bool {
        if now.duration_since(self.second) >= SECOND {
            self.second = now;
            self.said.clear();
        }
        let is_left = self.said.len() < LINES && !self.said.contains(&culprit);
        if is_left {
            self.said.push(culprit);
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::event::Event;

    use super::*;

    fn stranger(number: u8) -> Culprit {
        Culprit {
            verdict: Verdict::UnknownVtep,
            ifindex: 2,
            source: Some([192, 0, 2, number].into()),
        }
    }

    #[test]
    fn a_culprit_gets_a_line_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let said =
            |budget: &mut Budget, now| (0..100).filter(|_| budget.spend(stranger(1), now)).count();
        assert_eq!(said(&mut budget, start), 1);
        assert_eq!(said(&mut budget, start + SECOND / 2), 0);
        assert!(budget.spend(stranger(2), start + SECOND / 2));
        assert_eq!(said(&mut budget, start + SECOND), 1);
        assert_eq!(said(&mut budget, start + SECOND * 2), 1);
    }

    #[test]
    fn many_culprits_share_some_lines_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let said = |budget: &mut Budget, now| {
            let culprits = (0..100).map(stranger);
            culprits
                .filter(|culprit| budget.spend(*culprit, now))
                .count()
        };
        assert_eq!(said(&mut budget, start), LINES);
        assert_eq!(said(&mut budget, start + SECOND / 2), 0);
        assert_eq!(said(&mut budget, start + SECOND), LINES);
    }

    #[test]
    fn a_pod_is_one_culprit_whatever_it_forges() {
        let mut told = PacketEvent {
            hook: Hook::PodIn,
            verdict: Verdict::SpoofedSource,
            ifindex: 7,
            source: Some([10, 244, 2, 1].into()),
            destination: None,
            event: Event::read(&[0; size_of::<Event>()]).expect("a record"),
        };
        let pod = Culprit::of(&told);
        told.source = Some([10, 244, 2, 2].into());
        assert_eq!(Culprit::of(&told), pod);
        told.hook = Hook::NetIn;
        assert_ne!(Culprit::of(&told), pod);
    }
}
