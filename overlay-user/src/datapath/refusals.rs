//! Who is refused: what the programs write to their log where the agent asks for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya_log::{EbpfLogger, Level};
use log::{Log, Metadata, Record};
use nix::net::if_::if_indextoname;
use overlay_common::{Hook, Verdict};

/// Lines in a second: enough to see who it is, and no flood of the journal.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);
/// How often the records are fetched. They wait in a ring of 128 KiB; what finds no room is lost, and counted all the same.
const PAUSE: Duration = Duration::from_millis(100);

/// What the programs are told to write, `AYA_LOG_LEVEL`.
#[must_use]
pub(super) fn level(wanted: bool) -> u8 {
    if wanted { Level::Warn as u8 } else { 0 }
}

/// Passes on what the programs write until it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
}

impl Reader {
    /// Starts to read, on a thread of its own: a flood may keep it busy.
    ///
    /// # Errors
    /// When the object has no log, or its map cannot be used.
    pub fn start(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        let mut records = EbpfLogger::init_with_logger(ebpf, Journal::default())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                records.flush();
                thread::sleep(PAUSE);
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

/// The agent's log, as a receiver of records.
#[derive(Default)]
struct Journal {
    budget: Mutex<Budget>,
}

impl Log for Journal {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let Some(refusal) = Refusal::parse(&text) else {
            return;
        };
        let Some(unsaid) = self.spend() else {
            return;
        };
        tracing::warn!(
            hook = refusal.hook.name(),
            reason = refusal.verdict.name(),
            interface = refusal.interface(),
            from = refusal.from,
            to = refusal.to,
            unsaid,
            "refused a packet"
        );
    }

    fn flush(&self) {}
}

impl Journal {
    fn spend(&self) -> Option<u64> {
        let budget = self.budget.lock();
        budget
            .unwrap_or_else(PoisonError::into_inner)
            .spend(Instant::now())
    }
}

/// How much may still be said in this second.
struct Budget {
    second: Instant,
    said: u32,
    unsaid: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            second: Instant::now(),
            said: 0,
            unsaid: 0,
        }
    }
}

impl Budget {
    /// Takes a line, and tells how many found no place before it.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.second) >= SECOND {
            self.second = now;
            self.said = 0;
        }
        if self.said == LINES {
            self.unsaid += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// A refused packet.
#[derive(Debug, PartialEq, Eq)]
struct Refusal<'a> {
    hook: Hook,
    verdict: Verdict,
    ifindex: u32,
    from: &'a str,
    to: &'a str,
}

impl<'a> Refusal<'a> {
    /// Reads a record of `overlay-ebpf`'s `refusal::tell`.
    fn parse(record: &'a str) -> Option<Self> {
        let mut words = record.split(' ');
        let hook: u32 = words.next()?.parse().ok()?;
        let verdict: u32 = words.next()?.parse().ok()?;
        Some(Self {
            hook: Hook::ALL.into_iter().find(|known| *known as u32 == hook)?,
            verdict: Verdict::from_number(verdict)?,
            ifindex: words.next()?.parse().ok()?,
            from: words.next()?,
            to: words.next()?,
        })
    }

    fn interface(&self) -> String {
        let name = if_indextoname(self.ifindex).ok();
        let name = name.and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| format!("number {}", self.ifindex))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_understood() {
        let record = format!(
            "{} {} 7 192.0.2.1 10.244.1.2",
            Hook::NetIn as u32,
            Verdict::UnknownVtep as u32
        );
        assert_eq!(
            Refusal::parse(&record),
            Some(Refusal {
                hook: Hook::NetIn,
                verdict: Verdict::UnknownVtep,
                ifindex: 7,
                from: "192.0.2.1",
                to: "10.244.1.2",
            })
        );
        assert_eq!(Refusal::parse("9999 1 7 192.0.2.1 10.244.1.2"), None);
        assert_eq!(Refusal::parse("1 1"), None);
    }

    #[test]
    fn a_flood_gets_some_lines_and_a_sum() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let said = (0..100).filter(|_| budget.spend(start).is_some()).count();
        assert_eq!(said, LINES as usize);
        assert_eq!(
            budget.spend(start + SECOND * 2),
            Some(100 - u64::from(LINES))
        );
    }
}
