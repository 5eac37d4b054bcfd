//! Counts over time, and whether each is flat.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// The rule by which a quantity counts as flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The value at the end must be the value at the start.
    Same,
    /// The value at the end must not exceed the value at the start, once this many seconds have
    /// passed, because the surplus expires by itself.
    Fades(u64),
    /// The growth from the first half of the run to the second must not exceed this many
    /// hundredths: for memory, which allocators take and return at times of their own.
    Steady(u64),
    /// The value is not judged, because other processes influence it.
    Told,
}

/// The name of a quantity that is counted on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// `n1`, or `machine`.
    pub place: String,
    /// The quantity.
    pub quantity: String,
}

/// All values that were read at one time.
pub type Inventory = BTreeMap<Name, (u64, Rule)>;

/// The result for one quantity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Series {
    /// The place: a node, or the machine.
    pub place: String,
    /// The quantity.
    pub quantity: String,
    /// The value before the first round.
    pub start: u64,
    /// The lowest value.
    pub min: u64,
    /// The median.
    pub median: u64,
    /// The highest value.
    pub max: u64,
    /// The value after the last round and the settling time.
    pub end: u64,
    /// Medians of up to ten stretches of the run, one after the other.
    pub over_time: Vec<u64>,
    /// The rule by which the quantity counts as flat.
    pub rule: Rule,
    /// Whether the quantity is flat.
    pub verdict: Verdict,
}

/// Whether a quantity is flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The quantity follows its rule.
    Flat,
    /// The count has changed against the rule.
    NotFlat,
    /// Not judged: the rule does not judge, or the run was too short.
    NotJudged,
}

/// Samples of a run.
#[derive(Debug, Default)]
pub struct Samples {
    start: Inventory,
    during: BTreeMap<Name, Vec<u64>>,
    end: Inventory,
}

/// Number of stretches in which a run is shown.
const STRETCHES: usize = 10;
/// Fewest samples for a judgement on memory, because an agent allocates in the first rounds.
const ENOUGH: usize = 40;

impl Samples {
    /// Adds the first sample.
    pub fn begin(&mut self, inventory: Inventory) {
        self.start.clone_from(&inventory);
        self.add(inventory);
    }

    /// Adds a sample during the run.
    pub fn add(&mut self, inventory: Inventory) {
        for (name, (value, _)) in inventory {
            self.during.entry(name).or_default().push(value);
        }
    }

    /// Adds one of the last samples, after the last round; returns whether everything is flat by
    /// now. A quantity that may fade counts as faded once a sample has shown it so, because a
    /// sample may include something temporary, such as a program that an agent runs.
    pub fn settle(&mut self, inventory: Inventory) -> bool {
        let earlier = std::mem::replace(&mut self.end, inventory);
        for (name, (value, rule)) in &mut self.end {
            if let (Rule::Fades(_), Some((least, _))) = (*rule, earlier.get(name)) {
                *value = (*value).min(*least);
            }
        }
        self.is_flat()
    }

    /// The newest value of one quantity.
    pub fn last(&self, place: &str, quantity: &str) -> Option<u64> {
        let is_it = |name: &&Name| name.place == place && name.quantity == quantity;
        let name = self.during.keys().find(is_it)?;
        self.during[name].last().copied()
    }

    /// Whether all surplus has faded, and all required objects exist.
    fn is_flat(&self) -> bool {
        self.names().all(|name| {
            let (before, after) = (value(&self.start, name), value(&self.end, name));
            match rule(&self.start, &self.end, name) {
                Rule::Same => before == after,
                Rule::Fades(_) => after <= before,
                Rule::Steady(_) | Rule::Told => true,
            }
        })
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        let new = self
            .end
            .keys()
            .filter(|name| !self.start.contains_key(*name));
        self.start.keys().chain(new)
    }

    /// Judges every quantity after a settling time of `settled`.
    pub fn judge(&self, settled: Duration) -> Vec<Series> {
        let mut all: Vec<&Name> = self.names().collect();
        all.sort();
        all.into_iter()
            .map(|name| self.series(name, settled))
            .collect()
    }

    fn series(&self, name: &Name, settled: Duration) -> Series {
        let (start, end) = (value(&self.start, name), value(&self.end, name));
        let mut samples = self.during.get(name).cloned().unwrap_or_default();
        let rule = rule(&self.start, &self.end, name);
        let flat_if = |flat: bool| {
            if flat {
                Verdict::Flat
            } else {
                Verdict::NotFlat
            }
        };
        let verdict = match rule {
            Rule::Same => flat_if(start == end),
            Rule::Fades(_) if end <= start => Verdict::Flat,
            Rule::Fades(seconds) if settled.as_secs() < seconds => Verdict::NotJudged,
            Rule::Fades(_) => Verdict::NotFlat,
            Rule::Steady(_) if samples.len() < ENOUGH => Verdict::NotJudged,
            Rule::Steady(hundredths) => {
                let (first, second) = halves(&samples);
                flat_if(second * 100 <= first * (100 + hundredths))
            }
            Rule::Told => Verdict::NotJudged,
        };
        let over_time = samples
            .chunks(samples.len().div_ceil(STRETCHES).max(1))
            .map(|stretch| median(&mut stretch.to_vec()))
            .collect();
        samples.push(end);
        let median = median(&mut samples);
        Series {
            place: name.place.clone(),
            quantity: name.quantity.clone(),
            start,
            min: samples.first().copied().unwrap_or_default(),
            median,
            max: samples.last().copied().unwrap_or_default(),
            end,
            over_time,
            rule,
            verdict,
        }
    }
}

impl Series {
    /// The fault of the quantity, if any.
    pub fn complaint(&self) -> Option<String> {
        let Self {
            place,
            quantity,
            start,
            median,
            end,
            ..
        } = self;
        (self.verdict == Verdict::NotFlat).then(|| {
            format!(
                "{place}: {quantity} is not flat: {start} at the start, {median} in the \
                middle, {end} at the end"
            )
        })
    }
}

/// Medians of the second and the last quarter, because an agent allocates in the first quarter
/// anyway.
fn halves(samples: &[u64]) -> (u64, u64) {
    let quarter = samples.len() / 4;
    let mut second = samples[quarter..2 * quarter].to_vec();
    let mut last = samples[samples.len() - quarter..].to_vec();
    (median(&mut second), median(&mut last))
}

/// Sorts the samples and returns the one in the middle.
fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// The value of a quantity; a missing one counts as zero.
fn value(inventory: &Inventory, name: &Name) -> u64 {
    inventory.get(name).map_or(0, |(value, _)| *value)
}

fn rule(start: &Inventory, end: &Inventory, name: &Name) -> Rule {
    let either = start.get(name).or_else(|| end.get(name));
    either.map_or(Rule::Same, |(_, rule)| *rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name {
            place: "n1".to_owned(),
            quantity: "veths".to_owned(),
        }
    }

    fn verdict(rule: Rule, values: &[u64]) -> Verdict {
        let look = |value: u64| Inventory::from([(name(), (value, rule))]);
        let mut samples = Samples::default();
        samples.begin(look(values[0]));
        for value in values {
            samples.add(look(*value));
        }
        samples.settle(look(values[values.len() - 1]));
        samples.judge(Duration::from_secs(10))[0].verdict
    }

    #[test]
    fn what_is_left_behind_is_not_flat() {
        assert_eq!(verdict(Rule::Same, &[3, 9, 3]), Verdict::Flat);
        assert_eq!(verdict(Rule::Same, &[3, 9, 4]), Verdict::NotFlat);
        assert_eq!(verdict(Rule::Same, &[3, 9, 2]), Verdict::NotFlat);
    }

    #[test]
    fn what_fades_is_judged_after_its_time() {
        assert_eq!(verdict(Rule::Fades(5), &[3, 9, 2]), Verdict::Flat);
        assert_eq!(verdict(Rule::Fades(5), &[3, 9, 4]), Verdict::NotFlat);
        assert_eq!(verdict(Rule::Fades(20), &[3, 9, 4]), Verdict::NotJudged);
    }

    #[test]
    fn what_has_faded_once_has_faded() {
        let look = |value| Inventory::from([(name(), (value, Rule::Fades(0)))]);
        let mut samples = Samples::default();
        samples.begin(look(3));
        assert!(!samples.settle(look(6)));
        assert!(samples.settle(look(3)));
        assert!(samples.settle(look(6)));
    }

    #[test]
    fn memory_may_be_taken_at_the_start_only() {
        let ramp: Vec<u64> = (0..100).map(|i| 1000 + i * 10).collect();
        assert_eq!(verdict(Rule::Steady(10), &ramp), Verdict::NotFlat);
        let plateau: Vec<u64> = (0..100).map(|i| 1000 + i.min(20) * 10).collect();
        assert_eq!(verdict(Rule::Steady(10), &plateau), Verdict::Flat);
        assert_eq!(verdict(Rule::Steady(10), &ramp[..10]), Verdict::NotJudged);
    }

    #[test]
    fn what_comes_new_is_not_flat() {
        let mut samples = Samples::default();
        samples.begin(Inventory::new());
        assert!(!samples.settle(Inventory::from([(name(), (1, Rule::Same))])));
        let series = &samples.judge(Duration::ZERO)[0];
        assert_eq!(series.verdict, Verdict::NotFlat);
        assert!(
            series
                .complaint()
                .is_some_and(|text| text.contains("veths"))
        );
    }
}
