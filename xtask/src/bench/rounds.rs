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
const CALM: Duration = Duration::from_secs(3);
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
}

/// What a figure is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    pub measure: String,
    pub underlay: Underlay,
    pub path: Path,
    pub variant: Variant,
}

/// A figure of every round; nothing where others' load spoiled it to the end.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub unit: &'static str,
    pub values: Vec<Option<f64>>,
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
    /// Whether a repetition went undisturbed; else the figure is left out.
    pub repeated: bool,
}

/// Everything that was taken.
#[derive(Default)]
pub struct Record {
    pub series: BTreeMap<Subject, Series>,
    pub disturbances: Vec<Disturbance>,
    best_spin: u64,
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
            let taken = loop {
                interrupt::check()?;
                let taken = take(*measure, &ends, plan.lengths).with_context(|| place.clone())?;
                self.best_spin = self.best_spin.max(taken.spin);
                let speed = taken.spin as f64 / self.best_spin as f64;
                if taken.foreign <= FOREIGN && speed >= SPEED {
                    break Some(taken);
                }
                let tries = disturbed.map_or(0, |(tries, _, _)| tries);
                disturbed = Some((tries + 1, taken.foreign, speed));
                if tries == REPEATS {
                    break None;
                }
                thread::sleep(CALM);
            };
            if let Some((_, foreign, speed)) = disturbed {
                self.disturbances.push(Disturbance {
                    round: round + 1,
                    measure: *measure,
                    underlay,
                    path,
                    variant,
                    foreign,
                    speed,
                    repeated: taken.is_some(),
                });
            }
            self.note(round, (variant, underlay, path), taken);
        }
        Ok(())
    }

    fn note(
        &mut self,
        round: usize,
        (variant, underlay, path): (Variant, Underlay, Path),
        taken: Option<Taken>,
    ) {
        for figure in taken.into_iter().flat_map(|taken| taken.figures) {
            let subject = Subject {
                measure: figure.name.to_owned(),
                underlay,
                path,
                variant,
            };
            let series = self.series.entry(subject).or_default();
            series.unit = figure.unit;
            series.values.resize(round + 1, None);
            series.values[round] = Some(figure.value);
        }
    }
}
