//! Medians, and ratios within rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::class::Class;
use super::rounds::{DEVIATION, Series, Subject, Value};
use super::underlay::Underlay;
use super::variant::Variant;

/// The variants that others are compared with.
const AGAINST: [Variant; 6] = [
    Variant::Host,
    Variant::FlannelPlain,
    Variant::Flannel,
    Variant::Kernel,
    Variant::KernelServices,
    Variant::Overlay,
];
/// The variants of the replaced software, the most significant first.
const REPLACED: [Variant; 3] = [Variant::Flannel, Variant::FlannelPlain, Variant::Kernel];
/// The figures that are also shown as differences from the host's.
const ADDED: &[&str] = &["tcp_rr_p50", "udp_rr_p50", "connect_p50"];

/// A figure over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub subject: Subject,
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    pub min: f64,
    pub max: f64,
    /// Number of clean rounds in the figure; with 0 all rounds were disturbed, and the figure is
    /// from those.
    pub rounds: usize,
}

/// One variant's figure divided by another's of the same round.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    #[serde(flatten)]
    pub subject: Subject,
    pub against: Variant,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Number of rounds in which both figures were clean; with 0 all rounds were disturbed, and the
    /// ratio is from those.
    pub rounds: usize,
}

/// Adds the differences from the host's figures: the part that the overlay adds.
pub fn with_added(mut series: BTreeMap<Subject, Series>) -> BTreeMap<Subject, Series> {
    let mut added = Vec::new();
    for (subject, own) in &series {
        if subject.variant == Variant::Host || !ADDED.contains(&subject.measure.as_str()) {
            continue;
        }
        let Some(host) = series.get(&of(subject, Variant::Host)) else {
            continue;
        };
        let values = pairs(own, host, |own, host| own - host);
        let subject = Subject {
            measure: format!("{}_added", subject.measure),
            ..subject.clone()
        };
        let unit = own.unit;
        added.push((subject, Series { unit, values }));
    }
    series.extend(added);
    series
}

/// The same figure of another variant.
fn of(subject: &Subject, variant: Variant) -> Subject {
    Subject {
        variant,
        ..subject.clone()
    }
}

/// Joins two series round by round, where both have a value.
fn pairs(a: &Series, b: &Series, join: impl Fn(f64, f64) -> f64) -> Vec<Option<Value>> {
    let both = a.values.iter().zip(&b.values);
    let pair = |(a, b): (&Option<Value>, &Option<Value>)| {
        let (a, b) = ((*a)?, (*b)?);
        let value = join(a.value, b.value);
        // Counters that did not increase make no ratio.
        value.is_finite().then_some(Value {
            value,
            // A core that was faster for one of the two makes the comparison invalid.
            clean: a.clean && b.clean && (a.spin as f64 / b.spin as f64 - 1.0).abs() <= DEVIATION,
            spin: a.spin,
        })
    };
    both.map(pair).collect()
}

pub fn outcomes(series: &BTreeMap<Subject, Series>) -> Vec<Outcome> {
    let outcome = |(subject, series): (&Subject, &Series)| {
        let ([min, value, max], rounds) = spread(&series.values)?;
        Some(Outcome {
            subject: subject.clone(),
            unit: series.unit,
            value,
            min,
            max,
            rounds,
        })
    };
    series.iter().filter_map(outcome).collect()
}

pub fn ratios(series: &BTreeMap<Subject, Series>) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (subject, own) in series {
        for against in AGAINST {
            if against >= subject.variant {
                continue;
            }
            let Some(other) = series.get(&of(subject, against)) else {
                continue;
            };
            let values = pairs(own, other, |own, other| own / other);
            let Some(([min, median, max], rounds)) = spread(&values) else {
                continue;
            };
            ratios.push(Ratio {
                subject: subject.clone(),
                against,
                median,
                min,
                max,
                rounds,
            });
        }
    }
    ratios
}

/// The variant of the replaced software that the others are compared with, if measured.
pub fn reference(ratios: &[Ratio]) -> Option<Variant> {
    let measured = |variant: &Variant| ratios.iter().any(|ratio| ratio.against == *variant);
    REPLACED.into_iter().find(measured)
}

/// Least, median and largest value of the clean rounds, and the number of these; of all rounds
/// where none is clean.
fn spread(values: &[Option<Value>]) -> Option<([f64; 3], usize)> {
    let all = values.iter().flatten();
    let clean = all.clone().filter(|value| value.clean).count();
    let counted = all.filter(|value| value.clean || clean == 0);
    let mut sorted: Vec<f64> = counted.map(|value| value.value).collect();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some(([first, median, last], clean))
}

/// The lines of the table: all figures of one measure in one place.
pub fn places(outcomes: &[Outcome]) -> Vec<(String, Underlay, Class)> {
    let mut places: Vec<_> = outcomes
        .iter()
        .map(|Outcome { subject, .. }| (subject.measure.clone(), subject.underlay, subject.class))
        .collect();
    places.sort_by(|a, b| (a.1, a.2, &a.0).cmp(&(b.1, b.2, &b.0)));
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(value: f64) -> Option<Value> {
        Some(Value {
            value,
            clean: true,
            spin: 100,
        })
    }

    fn spoiled(value: f64) -> Option<Value> {
        Some(Value {
            value,
            clean: false,
            spin: 100,
        })
    }

    fn series(variant: Variant, values: &[Option<Value>]) -> (Subject, Series) {
        let subject = Subject {
            measure: "tcp_rr_p50".to_owned(),
            underlay: Underlay::Super,
            class: Class::Direct,
            variant,
        };
        let values = values.to_vec();
        (
            subject,
            Series {
                unit: "µs", values
            },
        )
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let all = BTreeMap::from([
            series(Variant::Host, &[clean(4.0), clean(40.0), clean(4.0)]),
            series(Variant::Kernel, &[clean(8.0), clean(80.0), None]),
            series(Variant::Overlay, &[clean(5.0), clean(50.0), clean(5.0)]),
        ]);
        let all = with_added(all);
        let ratios = ratios(&all);
        let find = |measure: &str, variant, against| {
            let found = ratios.iter().find(|ratio| {
                ratio.subject.measure == measure
                    && ratio.subject.variant == variant
                    && ratio.against == against
            });
            found.map(|ratio| (ratio.median, ratio.rounds))
        };
        assert_eq!(
            find("tcp_rr_p50", Variant::Overlay, Variant::Host),
            Some((1.25, 3))
        );
        assert_eq!(
            find("tcp_rr_p50_added", Variant::Overlay, Variant::Kernel),
            Some((0.25, 2))
        );
        assert_eq!(
            find("tcp_rr_p50_added", Variant::Overlay, Variant::Host),
            None
        );
        assert_eq!(find("tcp_rr_p50", Variant::Kernel, Variant::Overlay), None);
    }

    #[test]
    fn a_core_of_another_speed_makes_no_clean_pair() {
        let slow = clean(80.0).map(|value| Value { spin: 50, ..value });
        let all = BTreeMap::from([
            series(Variant::Host, &[clean(4.0), clean(4.0)]),
            series(Variant::Kernel, &[clean(8.0), slow]),
        ]);
        let ratios = ratios(&all);
        let found: Vec<_> = ratios
            .iter()
            .map(|ratio| (ratio.median, ratio.rounds))
            .collect();
        assert_eq!(found, [(2.0, 1)]);
    }

    #[test]
    fn what_is_replaced_is_a_real_flannel_where_there_is_one() {
        let reference_of = |variants: &[Variant]| {
            let all = variants
                .iter()
                .map(|variant| series(*variant, &[clean(1.0)]));
            reference(&ratios(&all.collect()))
        };
        let (plain, kernel) = (Variant::FlannelPlain, Variant::Kernel);
        let (real, overlay) = (Variant::Flannel, Variant::Overlay);
        assert_eq!(reference_of(&[plain, real, kernel, overlay]), Some(real));
        assert_eq!(reference_of(&[plain, kernel, overlay]), Some(plain));
        assert_eq!(reference_of(&[kernel, overlay]), Some(kernel));
        assert_eq!(reference_of(&[Variant::Host, overlay]), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_between() {
        let values = [clean(1.0), None, clean(3.0)];
        assert_eq!(spread(&values), Some(([1.0, 2.0, 3.0], 2)));
        assert_eq!(spread(&[None]), None);
    }

    #[test]
    fn spoiled_rounds_count_only_among_themselves() {
        assert_eq!(spread(&[clean(1.0), spoiled(9.0)]), Some(([1.0; 3], 1)));
        assert_eq!(spread(&[spoiled(9.0)]), Some(([9.0; 3], 0)));
    }
}
