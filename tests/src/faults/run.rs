//! Runs cases under traffic.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::scene::{REPAIR, Scene};
use super::{Case, Stage};
use crate::pace::Traffic;
use crate::{Lab, interrupt};

/// Duration of the traffic before a fault, and after the recovery.
const CALM: Duration = Duration::from_millis(500);

/// Settings of a run of cases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of repetitions in cases that repeat a fault.
    pub rounds: usize,
    /// Another build of the agent, to change to and back.
    pub other_build: Option<PathBuf>,
}

/// The result of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Name of the case.
    pub case: &'static str,
    /// The invariant of the case.
    pub invariant: &'static str,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
    /// Datagrams that arrived and found the buffer of the test's receiver full.
    pub overrun: u64,
    /// Most datagrams that may be lost.
    pub budget: u64,
    /// The longest time without an arrival, in milliseconds.
    pub silence_ms: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Duration of the case.
    pub seconds: f64,
    /// The violations of the invariant.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Whether the case has no failure.
    #[must_use]
    pub fn held(&self) -> bool {
        self.failures.is_empty()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: lost {} of {} datagrams (at most {}; {} overran the receiver), longest silence \
            {} ms, {} connections broken, {:.1} s: {}",
            self.case,
            self.lost,
            self.sent,
            self.budget,
            self.overrun,
            self.silence_ms,
            self.broken,
            self.seconds,
            if self.held() { "ok" } else { "FAILED" }
        )
    }
}

/// Runs cases and calls `told` with each outcome. A failed case does not stop the others: they get
/// a new lab.
///
/// # Errors
/// When a lab does not start, or the user interrupts.
pub fn run(
    cases: &[&'static Case],
    settings: &Settings,
    mut told: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut lab: Option<(Stage, Lab)> = None;
    for case in cases {
        let current = match lab.take() {
            Some((stage, current)) if stage == case.stage => current,
            other => {
                other.map_or(Ok(()), |(_, old)| old.down())?;
                Lab::up(case.stage.options())?
            }
        };
        let outcome = play(case, &current, settings);
        interrupt::check()?;
        told(&outcome);
        if outcome.held() {
            lab = Some((case.stage, current));
        } else {
            current.down()?;
        }
        outcomes.push(outcome);
    }
    lab.map_or(Ok(()), |(_, last)| last.down())?;
    Ok(outcomes)
}

/// Runs one case.
fn play(case: &Case, lab: &Lab, settings: &Settings) -> Outcome {
    let begin = Instant::now();
    let mut outcome = Outcome {
        case: case.name,
        invariant: case.invariant,
        sent: 0,
        lost: 0,
        overrun: 0,
        budget: case.budget,
        silence_ms: 0,
        broken: 0,
        seconds: 0.0,
        failures: Vec::new(),
    };
    let scene = Scene { lab, settings };
    if let Err(error) = under_traffic(case, &scene, &mut outcome) {
        outcome.failures.push(format!("{error:#}"));
    }
    if outcome.lost > outcome.budget {
        let failure = format!(
            "{} datagrams lost, at most {}",
            outcome.lost, outcome.budget
        );
        outcome.failures.push(failure);
    }
    if !outcome.held() {
        for node in lab.nodes() {
            outcome.failures.push(node.agent_log_tail());
        }
    }
    outcome.seconds = begin.elapsed().as_secs_f64();
    outcome
}

fn under_traffic(case: &Case, scene: &Scene<'_>, outcome: &mut Outcome) -> Result<()> {
    let lab = scene.lab;
    scene.wait_recovered().context("before the fault")?;
    let pairs = [
        (lab.pod(1, 1), lab.pod(2, 1)),
        (lab.pod(1, 1), lab.pod(1, 2)),
    ];
    let start = if case.cuts_wire {
        Traffic::start_before_a_cut
    } else {
        Traffic::start
    };
    let running: Vec<_> = pairs
        .iter()
        .map(|(a, b)| start(&a.into(), &b.into()))
        .collect::<Result<_>>()
        .context("before the fault")?;
    sleep(CALM);
    let result = (case.run)(scene).and_then(|()| {
        scene
            .wait_recovered()
            .with_context(|| format!("{} s after the fault", REPAIR.as_secs()))
    });
    sleep(CALM);
    for (traffic, (a, b)) in running.into_iter().zip(&pairs) {
        let (datagrams, stream) = traffic.end()?;
        for loss in datagrams {
            outcome.sent += loss.sent;
            outcome.lost += loss.lost;
            outcome.overrun += loss.overrun;
            let silence = u64::try_from(loss.silence.as_millis()).unwrap_or(u64::MAX);
            outcome.silence_ms = outcome.silence_ms.max(silence);
        }
        if let Err(error) = stream {
            outcome.broken += 1;
            if !case.cuts_wire {
                let pair = format!("{} and {}", a.name(), b.name());
                outcome
                    .failures
                    .push(format!("TCP of {pair} broke: {error:#}"));
            }
        }
    }
    result
}
