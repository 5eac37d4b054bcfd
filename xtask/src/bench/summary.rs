//! Medians, and ratios within rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rounds::{Series, Subject};
use super::stage::{Path, Underlay};
use super::variant::Variant;

/// What others are compared with.
const AGAINST: [Variant; 4] = [
    Variant::Host,
    Variant::Kernel,
    Variant::KernelServices,
    Variant::Flannel,
];
/// What is told beyond the host's own, too.
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
    /// How many rounds it is from.
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
    /// How many rounds had both.
    pub rounds: usize,
}

/// Adds figures that are told beyond the host's: what the overlay adds.
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

/// Round by round, where both have a value.
fn pairs(a: &Series, b: &Series, join: impl Fn(f64, f64) -> f64) -> Vec<Option<f64>> {
    let both = a.values.iter().zip(&b.values);
    both.map(|(a, b)| Some(join((*a)?, (*b)?))).collect()
}

pub fn outcomes(series: &BTreeMap<Subject, Series>) -> Vec<Outcome> {
    let outcome = |(subject, series): (&Subject, &Series)| {
        let [min, value, max] = spread(&series.values)?;
        Some(Outcome {
            subject: subject.clone(),
            unit: series.unit,
            value,
            min,
            max,
            rounds: series.values.iter().flatten().count(),
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
            // Counters that stood still make no ratio.
            let values: Vec<_> = values
                .into_iter()
                .map(|value| value.filter(|value| value.is_finite()))
                .collect();
            let Some([min, median, max]) = spread(&values) else {
                continue;
            };
            ratios.push(Ratio {
                subject: subject.clone(),
                against,
                median,
                min,
                max,
                rounds: values.iter().flatten().count(),
            });
        }
    }
    ratios
}

/// Least, median and largest.
fn spread(values: &[Option<f64>]) -> Option<[f64; 3]> {
    let mut sorted: Vec<f64> = values.iter().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some([first, median, last])
}

/// A line of the table: everything of one measure in one place.
pub fn places(outcomes: &[Outcome]) -> Vec<(String, Underlay, Path)> {
    let mut places: Vec<_> = outcomes
        .iter()
        .map(|Outcome { subject, .. }| (subject.measure.clone(), subject.underlay, subject.path))
        .collect();
    places.sort_by(|a, b| (a.1, a.2, &a.0).cmp(&(b.1, b.2, &b.0)));
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(variant: Variant, values: &[Option<f64>]) -> (Subject, Series) {
        let subject = Subject {
            measure: "tcp_rr_p50".to_owned(),
            underlay: Underlay::Super,
            path: Path::Across,
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
            series(Variant::Host, &[Some(4.0), Some(40.0), Some(4.0)]),
            series(Variant::Kernel, &[Some(8.0), Some(80.0), None]),
            series(Variant::Overlay, &[Some(5.0), Some(50.0), Some(5.0)]),
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
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(spread(&[Some(1.0), None, Some(3.0)]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&[None]), None);
    }
}
