//! Round after round, each variant once in each, so that a slow minute hits all of them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use overlay_tests::interrupt;
use serde::Serialize;

use super::measure::{Lengths, Measure, Taken, take};
use super::stage::{Path, Stage, Underlay};
use super::variant::{Switch, Variant};
use crate::shell;

/// How often a spoiled run is repeated.
const REPEATS: usize = 3;
/// How long to wait for the load to go away before each repetition.
const CALM: Duration = Duration::from_secs(2);
/// Share of a core that others may take.
const FOREIGN: f64 = 0.05;
/// Share of its best speed that the core must have.
const SPEED: f64 = 0.8;

/// What to run.
pub struct Plan {
    pub rounds: usize,
    pub variants: Vec<Variant>,
    pub underlays: Vec<Underlay>,
    pub paths: Vec<Path>,
    pub measures: Vec<Measure>,
    pub lengths: Lengths,
    /// How many repetitions there may be in all, so that the end is in sight on a busy machine.
    pub repetitions: usize,
}

/// What a figure is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    pub measure: String,
    pub underlay: Underlay,
    pub path: Path,
    pub variant: Variant,
}

/// A figure of every round that took it.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub unit: &'static str,
    pub values: Vec<Option<Value>>,
}

/// A figure of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    pub value: f64,
    /// Whether no other load was there; what is not clean counts only where nothing else is there.
    pub clean: bool,
}

/// A run beside other load.
#[derive(Clone, Debug, Serialize)]
pub struct Disturbance {
    pub round: usize,
    pub measure: Measure,
    pub underlay: Underlay,
    pub path: Path,
    pub variant: Variant,
    /// Share of a core that others took.
    pub foreign: f64,
    /// Speed of the core, compared with the best so far.
    pub speed: f64,
    /// Whether a repetition went undisturbed; else the figure counts only where there is no better one.
    pub repeated: bool,
}

/// Everything that was taken.
#[derive(Default)]
pub struct Record {
    pub series: BTreeMap<Subject, Series>,
    pub disturbances: Vec<Disturbance>,
    best_spin: u64,
    repetitions: usize,
}

/// Runs all rounds.
pub fn run(stage: &Stage, switch: &mut Switch<'_>, plan: &Plan) -> Result<Record> {
    let mut record = Record::default();
    for round in 0..plan.rounds {
        for variant in &plan.variants {
            shell::progress(&format!(
                "round {} of {}: {}",
                round + 1,
                plan.rounds,
                variant.name()
            ));
            switch
                .to(*variant)
                .with_context(|| format!("switch to {}", variant.name()))?;
            for underlay in &plan.underlays {
                stage.lay(*underlay)?;
                for path in &plan.paths {
                    record.take_all(stage, plan, round, (*variant, *underlay, *path))?;
                }
            }
        }
    }
    Ok(record)
}

impl Record {
    fn take_all(
        &mut self,
        stage: &Stage,
        plan: &Plan,
        round: usize,
        (variant, underlay, path): (Variant, Underlay, Path),
    ) -> Result<()> {
        let Some(ends) = stage.ends(variant, path) else {
            return Ok(());
        };
        for measure in &plan.measures {
            if !measure.applies(underlay, path) {
                continue;
            }
            let place = format!("{measure:?} of {} ({underlay:?}, {path:?})", variant.name());
            let mut disturbed = None;
            let mut tries = 0;
            let (taken, clean) = loop {
                interrupt::check()?;
                let taken = take(*measure, &ends, plan.lengths).with_context(|| place.clone())?;
                self.best_spin = self.best_spin.max(taken.spin);
                let speed = taken.spin as f64 / self.best_spin as f64;
                if taken.foreign <= FOREIGN && speed >= SPEED {
                    break (taken, true);
                }
                disturbed = Some((taken.foreign, speed));
                if tries == REPEATS || self.repetitions == plan.repetitions {
                    break (taken, false);
                }
                tries += 1;
                self.repetitions += 1;
                thread::sleep(CALM);
            };
            if let Some((foreign, speed)) = disturbed {
                self.disturbances.push(Disturbance {
                    round: round + 1,
                    measure: *measure,
                    underlay,
                    path,
                    variant,
                    foreign,
                    speed,
                    repeated: clean,
                });
            }
            self.note(round, (variant, underlay, path), &taken, clean);
        }
        Ok(())
    }

    fn note(
        &mut self,
        round: usize,
        (variant, underlay, path): (Variant, Underlay, Path),
        taken: &Taken,
        clean: bool,
    ) {
        for figure in &taken.figures {
            let subject = Subject {
                measure: figure.name.to_owned(),
                underlay,
                path,
                variant,
            };
            let series = self.series.entry(subject).or_default();
            series.unit = figure.unit;
            series.values.resize(round + 1, None);
            let value = figure.value;
            series.values[round] = Some(Value { value, clean });
        }
    }
}
