//! Changes that are not in both paths yet.

use std::time::{Duration, Instant};

use anyhow::Result;
use overlay_tests::interrupt;
use overlay_tests::load::percentile;
use serde::Serialize;

use super::leases::LeaseChange;
use super::stage::Stage;

/// A change that the agent has to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A change of a lease.
    Lease(LeaseChange),
    /// A change of a router's MAC address.
    Router { number: u32, mac: [u8; 6] },
}

/// The durations of changes.
#[derive(Debug, PartialEq, Serialize)]
pub struct Times {
    pub count: usize,
    /// `None` where no change was followed.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub most_ms: Option<f64>,
    /// Number of changes that were given up; the other fields do not include them.
    pub missing: usize,
}

impl Times {
    /// The statistics of these durations, and of changes that were given up.
    pub fn of(mut took: Vec<Duration>, missing: usize) -> Self {
        took.sort_unstable();
        let at = |share| (!took.is_empty()).then(|| percentile(&took, share) / 1e3);
        Self {
            count: took.len(),
            p50_ms: at(50),
            p99_ms: at(99),
            most_ms: at(100),
            missing,
        }
    }
}

/// Changes that are waited for, with their times, and the durations of the completed ones.
#[derive(Default)]
pub struct Pending {
    waiting: Vec<(Sent, Instant)>,
    took: Vec<(Sent, Duration)>,
}

impl Pending {
    pub fn add(&mut self, sent: Sent, at: Instant) {
        self.waiting.push((sent, at));
    }

    /// Checks all changes once.
    pub fn look(&mut self, stage: &mut Stage) -> Result<()> {
        stage.look()?;
        for (sent, at) in std::mem::take(&mut self.waiting) {
            let done = match sent {
                Sent::Lease(change) => stage.is_done(change)?,
                Sent::Router { number, mac } => stage.leads_through(number, mac)?,
            };
            if done {
                self.took.push((sent, at.elapsed()));
            } else {
                self.waiting.push((sent, at));
            }
        }
        Ok(())
    }

    /// Waits until no change is left, at most for `limit`.
    pub fn wait(&mut self, stage: &mut Stage, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !self.waiting.is_empty() && Instant::now() < end {
            interrupt::check()?;
            self.look(stage)?;
        }
        Ok(())
    }

    /// The durations for leases.
    pub fn leases(&self) -> Times {
        self.times(|sent| matches!(sent, Sent::Lease(_)))
    }

    /// The durations for routers.
    pub fn routers(&self) -> Times {
        self.times(|sent| matches!(sent, Sent::Router { .. }))
    }

    fn times(&self, of: impl Fn(&Sent) -> bool) -> Times {
        let took = self.took.iter().filter(|(sent, _)| of(sent));
        let missing = self.waiting.iter().filter(|(sent, _)| of(sent)).count();
        Times::of(took.map(|(_, took)| *took).collect(), missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_is_told_and_routers_are_apart() {
        let router = Sent::Router {
            number: 1,
            mac: [2; 6],
        };
        let lease = |number| {
            Sent::Lease(LeaseChange::Gone(super::super::leases::Invented::new(
                number,
            )))
        };
        let ms = Duration::from_millis;
        let pending = Pending {
            waiting: vec![(lease(1), Instant::now())],
            took: vec![(lease(2), ms(30)), (router, ms(500)), (lease(3), ms(10))],
        };
        let expected = Times {
            count: 2,
            p50_ms: Some(10.0),
            p99_ms: Some(30.0),
            most_ms: Some(30.0),
            missing: 1,
        };
        assert_eq!(pending.leases(), expected);
        assert_eq!(pending.routers().p99_ms, Some(500.0));
        assert_eq!(Pending::default().leases().p50_ms, None);
    }
}
