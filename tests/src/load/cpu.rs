//! Processor time of the machine, and the part of it that other processes used.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Jiffies per second in `/proc`, whatever the kernel's own unit (`USER_HZ` of
/// asm-generic/param.h).
const JIFFIES_PER_SECOND: f64 = 100.0;

/// Counters at one time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    at: Instant,
    machine: Machine,
    /// User time of this process, in jiffies.
    own_user: u64,
}

/// The first line of `/proc/stat`, in jiffies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    user: u64,
    system: u64,
    irq: u64,
    softirq: u64,
    steal: u64,
}

/// Processor time between two moments, in jiffies (hundredths of a second).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Wall-clock time.
    pub seconds: f64,
    /// Time in soft interrupts, in which packets are received and forwarded.
    pub softirq: f64,
    /// All time that was not idle.
    pub busy: f64,
    /// User time of other processes and time that the hypervisor used, as a share of one core.
    pub foreign: f64,
}

impl Moment {
    /// Reads the counters.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let own = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
        Ok(Self {
            at: Instant::now(),
            machine: machine(&stat).context("understand /proc/stat")?,
            own_user: own_user(&own).context("understand /proc/self/stat")?,
        })
    }

    /// The time between `earlier` and this moment.
    pub fn since(&self, earlier: &Self) -> Span {
        let (new, old) = (&self.machine, &earlier.machine);
        let diff = |new: u64, old: u64| new.saturating_sub(old) as f64;
        let seconds = (self.at - earlier.at).as_secs_f64();
        let user = diff(new.user, old.user);
        let system = diff(new.system, old.system);
        let softirq = diff(new.softirq, old.softirq);
        // System time is not included, because it contains both the packets' path and others'
        // calls.
        let others = (user - diff(self.own_user, earlier.own_user)).max(0.0);
        let stolen = diff(new.steal, old.steal);
        Span {
            seconds,
            softirq,
            busy: user + system + diff(new.irq, old.irq) + softirq,
            foreign: (others + stolen) / (seconds * JIFFIES_PER_SECOND),
        }
    }
}

fn machine(stat: &str) -> Option<Machine> {
    let mut fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, nice, system, _idle, _iowait, irq, softirq, steal) = (
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
    );
    Some(Machine {
        user: user + nice,
        system,
        irq,
        softirq,
        steal,
    })
}

/// Field 14 of `/proc/PID/stat`; the second field is a name in parentheses that may contain any
/// character.
fn own_user(stat: &str) -> Option<u64> {
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    after_name.split_whitespace().nth(11)?.parse().ok()
}

/// Number of turns of a fixed loop that the calling thread makes in 5 ms. A lower number than
/// before means that the core is slower than before, for any reason.
pub fn spin() -> u64 {
    const TIME: Duration = Duration::from_millis(5);
    const TURNS: u64 = 1000;
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < TIME {
        for turn in 0..TURNS {
            std::hint::black_box(turn);
        }
        turns += TURNS;
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let stat = "cpu  10 1 20 300 5 2 7 4 0 0\ncpu0 1 2 3\n";
        let expected = Machine {
            user: 11,
            system: 20,
            irq: 2,
            softirq: 7,
            steal: 4,
        };
        assert_eq!(machine(stat), Some(expected));
        let own = "42 (a ) name) R 1 1 1 0 -1 0 1 2 3 4 55 66 0 0";
        assert_eq!(own_user(own), Some(55));
    }

    #[test]
    fn our_own_work_is_not_foreign() {
        let at = Instant::now();
        let machine = Machine {
            user: 100,
            system: 50,
            irq: 0,
            softirq: 10,
            steal: 0,
        };
        let start = Moment {
            at,
            machine,
            own_user: 20,
        };
        let end = Moment {
            at: at + Duration::from_secs(1),
            machine: Machine {
                user: 180,
                softirq: 40,
                ..machine
            },
            own_user: 80,
        };
        let span = end.since(&start);
        assert_eq!((span.softirq, span.busy), (30.0, 110.0));
        assert!((span.foreign - 20.0 / JIFFIES_PER_SECOND).abs() < 1e-9);
    }
}
