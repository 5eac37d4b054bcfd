//! The rounds. In each, one measure is taken of one variant right after the other, so that a slow
//! minute affects all of them.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use overlay_tests::interrupt;
use serde::Serialize;

use super::class::Class;
use super::measure::{Measure, Taken, take};
use super::plan::Plan;
use super::stage::Stage;
use super::underlay::Underlay;
use super::variant::Variant;
use crate::shell;

/// Most repetitions of a disturbed measurement.
const REPEATS: usize = 3;
/// Wait for the end of the load before each repetition.
const CALM: Duration = Duration::from_secs(1);
/// Largest share of a core that other processes may use.
const FOREIGN: f64 = 0.05;
/// Largest difference in speed of the core between two variants that are compared, as a share.
pub const DEVIATION: f64 = 0.1;

/// The object of a figure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    pub measure: String,
    pub underlay: Underlay,
    pub class: Class,
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
    /// Whether there was no other load; a value that is not clean counts only where no clean one
    /// exists.
    pub clean: bool,
    /// Turns of the calibration loop, which show the speed of the core.
    pub spin: u64,
}

/// A run disturbed by other load.
#[derive(Clone, Debug, Serialize)]
pub struct Disturbance {
    pub round: usize,
    pub measure: Measure,
    pub underlay: Underlay,
    pub class: Class,
    pub variant: Variant,
    /// Share of a core that other processes used.
    pub foreign: f64,
    /// Speed of the core, compared with the others of the same comparison.
    pub speed: f64,
    /// Whether a repetition was undisturbed; otherwise the figure counts only where there is no
    /// better one.
    pub repeated: bool,
}

/// All measured values.
#[derive(Default)]
pub struct Record {
    pub series: BTreeMap<Subject, Series>,
    pub disturbances: Vec<Disturbance>,
    repetitions: usize,
}

/// Runs all rounds.
pub fn run(stage: &Stage, plan: &Plan) -> Result<Record> {
    let mut record = Record::default();
    for round in 0..plan.rounds {
        for underlay in &plan.underlays {
            stage.lay(*underlay)?;
            shell::progress(&format!(
                "round {} of {}, {}",
                round + 1,
                plan.rounds,
                underlay.title()
            ));
            for class in &plan.classes {
                for measure in &plan.measures {
                    record.compare(stage, plan, round, (*underlay, *class, *measure))?;
                }
            }
        }
    }
    Ok(record)
}

impl Record {
    /// Takes one measure of all variants, and repeats the disturbed ones.
    fn compare(
        &mut self,
        stage: &Stage,
        plan: &Plan,
        round: usize,
        (underlay, class, measure): (Underlay, Class, Measure),
    ) -> Result<()> {
        let mut variants = plan.variants.clone();
        variants.retain(|variant| {
            measure.applies(underlay, class) && variant.shows(measure, underlay, class)
        });
        let mut taken: BTreeMap<Variant, Taken> = BTreeMap::new();
        let mut disturbed: BTreeMap<Variant, (f64, f64)> = BTreeMap::new();
        let mut wanted = variants;
        for turn in 0..=REPEATS {
            for variant in &wanted {
                interrupt::check()?;
                let (from, to) = stage.ends(*variant, class);
                let new = take(measure, (&from, &to), plan.lengths).with_context(|| {
                    format!(
                        "{measure:?} of {} ({underlay:?}, {class:?})",
                        variant.name()
                    )
                })?;
                taken.insert(*variant, new);
            }
            let usual = median_spin(&taken);
            wanted.clear();
            for (variant, taken) in &taken {
                let speed = taken.spin as f64 / usual;
                if taken.foreign > FOREIGN || (speed - 1.0).abs() > DEVIATION {
                    wanted.push(*variant);
                    disturbed.insert(*variant, (taken.foreign, speed));
                }
            }
            if wanted.is_empty() || turn == REPEATS || self.repetitions >= plan.repetitions {
                break;
            }
            self.repetitions += wanted.len();
            thread::sleep(CALM);
        }
        for (variant, (foreign, speed)) in disturbed {
            self.disturbances.push(Disturbance {
                round: round + 1,
                measure,
                underlay,
                class,
                variant,
                foreign,
                speed,
                repeated: !wanted.contains(&variant),
            });
        }
        for (variant, taken) in &taken {
            let clean = taken.foreign <= FOREIGN;
            self.note(round, (*variant, underlay, class), taken, clean);
        }
        Ok(())
    }

    fn note(
        &mut self,
        round: usize,
        (variant, underlay, class): (Variant, Underlay, Class),
        taken: &Taken,
        clean: bool,
    ) {
        for figure in &taken.figures {
            let subject = Subject {
                measure: figure.name.to_owned(),
                underlay,
                class,
                variant,
            };
            let series = self.series.entry(subject).or_default();
            series.unit = figure.unit;
            series.values.resize(round + 1, None);
            let value = figure.value;
            let spin = taken.spin;
            series.values[round] = Some(Value { value, clean, spin });
        }
    }
}

/// Median of the calibration loop: the speed at which most variants were measured.
fn median_spin(taken: &BTreeMap<Variant, Taken>) -> f64 {
    let mut spins: Vec<u64> = taken.values().map(|taken| taken.spin).collect();
    spins.sort_unstable();
    spins.get(spins.len() / 2).map_or(1.0, |spin| *spin as f64)
}
