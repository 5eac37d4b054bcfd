//! A long run: pods, nodes, leases and agents are added and removed under traffic, and the
//! remaining objects are counted.
//!
//! Three nodes. Node 1's agent is restarted, killed, switched and upgraded; node 2's runs without a
//! restart, so that its memory can be watched; node 3 leaves the cluster and joins it again. Every
//! round makes one [`Kind`] of change while numbered datagrams and a TCP connection run between
//! pods of nodes 1 and 2 and of node 1, none of whose packets may be lost; in addition, connections
//! through Services are kept open from the first round to the last. A round that fails while the
//! machine does not let this process run is repeated.
//!
//! At the end all objects of the rounds have been removed, and the rest is compared with the state
//! before.

mod inventory;
mod kind;
mod leases;
mod series;
mod stage;
mod stall;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

pub use kind::Kind;
pub use series::{Rule, Series, Verdict};

use crate::{interrupt, wait_until};
use series::Samples;
use stage::Stage;
use stall::Stalls;

/// Number of failed rounds after which the run ends, because more would give no new information.
const ENOUGH: usize = 10;
/// Number of attempts for a round that stalls of the machine spoil.
const ATTEMPTS: usize = 5;

/// The length of the run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds begin until this time is over; at least one of each kind is made.
    pub duration: Duration,
    /// The time at the end for objects that expire by themselves (connection tracking, flows).
    /// Quantities that need longer are counted and not judged.
    pub settle: Duration,
}

impl Plan {
    /// The time after which all expiring objects have expired.
    pub const SETTLED: Duration = Duration::from_secs(150);
}

/// The results of the run.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Duration of the run, settling included.
    pub seconds: u64,
    /// Rounds by kind.
    pub rounds: BTreeMap<Kind, Rounds>,
    /// Number of connections that were kept open during the run.
    pub connections: usize,
    /// Number of times that one of these connections broke and was opened again.
    pub broken: usize,
    /// Number and longest duration of stalls, in which the machine did not let this process run;
    /// rounds that fail in a stall are repeated.
    pub stalls: Stall,
    /// All counted quantities.
    pub series: Vec<Series>,
    /// The failures; empty after a good run.
    pub failures: Vec<String>,
}

/// Rounds of one kind.
#[derive(Debug, Default, Serialize)]
pub struct Rounds {
    /// Rounds that succeeded.
    pub done: usize,
    /// Rounds spoiled by a stall of the machine.
    pub disturbed: usize,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
    /// The longest time without an arrival in any of them, in milliseconds.
    pub silence_ms: u128,
}

/// Times in which the machine did not let this process run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stall {
    /// Number of stalls.
    pub count: usize,
    /// The longest stall, in milliseconds.
    pub longest_ms: u128,
}

/// Makes the run. `say` gets a line of progress for every lap of rounds.
///
/// # Errors
/// When the lab does not start, or the user interrupts; later failures are in the findings.
pub fn run(plan: &Plan, say: &dyn Fn(&str)) -> Result<Findings> {
    let begin = Instant::now();
    say("a lab of three nodes with two pods each, with Services");
    let mut stage = Stage::up()?;
    let stalls = Stalls::watch();
    let mut samples = Samples::default();
    // Entries of connection tracking from the start of the lab must not count.
    thread::sleep(plan.settle / 5);
    samples.begin(inventory::take(&stage)?);

    let end = Instant::now() + plan.duration;
    let mut rounds: BTreeMap<Kind, Rounds> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut broken = 0;
    for lap in 1.. {
        for kind in Kind::ALL {
            interrupt::check()?;
            if failures.len() >= ENOUGH || lap > 1 && Instant::now() >= end {
                break;
            }
            let sums = rounds.entry(kind).or_default();
            let wrong = undisturbed_round(&mut stage, kind, lap, sums, &stalls)?;
            broken += wrong.broken.len();
            for what in wrong.broken.into_iter().chain(wrong.other) {
                let failure = format!("{kind}, lap {lap}: {what}");
                say(&failure);
                failures.push(failure);
            }
            samples.add(inventory::take(&stage)?);
        }
        if failures.len() >= ENOUGH || Instant::now() >= end {
            break;
        }
        say(&progress(lap, begin.elapsed(), &rounds, &samples));
    }

    say("settling");
    // The judgement reports a quantity that is not flat when the time is over.
    let _ = wait_until("everything to settle", plan.settle, || {
        inventory::take(&stage).is_ok_and(|now| samples.settle(now))
    });
    interrupt::check()?;
    samples.settle(inventory::take(&stage)?);
    if failures.len() < ENOUGH {
        failures.extend(never_done(&rounds));
    }
    let series = samples.judge(plan.settle);
    failures.extend(series.iter().filter_map(Series::complaint));
    let findings = Findings {
        seconds: begin.elapsed().as_secs(),
        rounds,
        connections: stage.companions(),
        broken,
        stalls: stalls.so_far(),
        series,
        failures,
    };
    stage.down()?;
    Ok(findings)
}

/// The failures of a round.
struct Wrong {
    /// Kept connections that broke.
    broken: Vec<String>,
    /// Any other failure.
    other: Option<String>,
}

impl Wrong {
    fn is_none(&self) -> bool {
        self.broken.is_empty() && self.other.is_none()
    }
}

/// Kinds without a successful round.
fn never_done(rounds: &BTreeMap<Kind, Rounds>) -> Vec<String> {
    let never = |kind: &Kind| rounds.get(kind).is_none_or(|rounds| rounds.done == 0);
    let kinds = Kind::ALL.into_iter().filter(never);
    kinds
        .map(|kind| format!("{kind}: no round was done"))
        .collect()
}

/// One round, repeated as long as it fails in a stall of the machine. After a failure the lab is
/// restored.
///
/// # Errors
/// When the lab cannot be restored, or the user interrupts.
fn undisturbed_round(
    stage: &mut Stage,
    kind: Kind,
    lap: usize,
    sums: &mut Rounds,
    stalls: &Stalls,
) -> Result<Wrong> {
    for _ in 0..ATTEMPTS {
        let before = stalls.so_far().count;
        let wrong = round(stage, kind, lap, sums)?;
        interrupt::check()?;
        if wrong.is_none() {
            sums.done += 1;
            return Ok(wrong);
        }
        stage.restore().context("after a round that failed")?;
        if stalls.so_far().count == before {
            return Ok(wrong);
        }
        sums.disturbed += 1;
    }
    Ok(Wrong {
        broken: Vec::new(),
        other: Some(format!("stalls of the machine spoiled it {ATTEMPTS} times")),
    })
}

/// One change under traffic.
///
/// # Errors
/// When a connection cannot be opened again.
fn round(stage: &mut Stage, kind: Kind, lap: usize, sums: &mut Rounds) -> Result<Wrong> {
    let changed = change(stage, kind, lap, sums);
    Ok(Wrong {
        broken: stage.speak()?,
        other: changed.err().map(|error| format!("{error:#}")),
    })
}

fn change(stage: &Stage, kind: Kind, lap: usize, sums: &mut Rounds) -> Result<()> {
    let traffic = stage.traffic()?;
    let played = kind.play(stage, lap);
    let outcomes: Vec<_> = traffic
        .into_iter()
        .map(|(pair, traffic)| (pair, traffic.finish()))
        .collect();
    played?;
    let (mut losses, mut lost) = (Vec::new(), 0);
    for (pair, outcome) in outcomes {
        let outcome = outcome.with_context(|| pair.clone())?;
        for loss in outcome.datagrams {
            sums.sent += loss.sent;
            sums.silence_ms = sums.silence_ms.max(loss.silence.as_millis());
        }
        lost += outcome.lost();
        if outcome.lost() > 0 {
            losses.push(format!("{pair}: {outcome}"));
        }
    }
    sums.lost += lost;
    ensure!(lost == 0, "{}", losses.join("; "));
    Ok(())
}

fn progress(
    lap: usize,
    took: Duration,
    rounds: &BTreeMap<Kind, Rounds>,
    samples: &Samples,
) -> String {
    let done: usize = rounds.values().map(|kind| kind.done).sum();
    let lost: u64 = rounds.values().map(|kind| kind.lost).sum();
    let memory = samples
        .last(inventory::STEADY_NODE, inventory::MEMORY)
        .unwrap_or_default();
    format!(
        "lap {lap} after {} s: {done} rounds, {lost} datagrams lost, the steady agent has \
        {memory} KiB",
        took.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_which_no_round_was_done_is_a_failure() {
        let done = |kind| {
            let rounds = Rounds {
                done: usize::from(kind != Kind::Kill),
                disturbed: 3,
                ..Rounds::default()
            };
            (kind, rounds)
        };
        let all: BTreeMap<Kind, Rounds> = Kind::ALL.map(done).into();
        assert_eq!(never_done(&all), ["agent killed: no round was done"]);
        assert_eq!(never_done(&BTreeMap::new()).len(), Kind::ALL.len());
    }
}
