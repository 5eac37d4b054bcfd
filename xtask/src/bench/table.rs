//! The findings as tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use comfy_table::Table;

use super::Findings;
use super::class::Class;
use super::summary::{self, Outcome, Ratio, places};
use super::underlay::Underlay;
use super::variant::Variant;
use crate::lab::table::{align_right, table};

/// Number of disturbances in the text, because the rest is usually similar.
const SHOWN_DISTURBANCES: usize = 8;

pub fn render(findings: &Findings) -> String {
    let machine = &findings.machine;
    let mut text = format!(
        "{machine}\nload before: {} · {} s\n",
        machine.load, findings.seconds
    );
    let variants = variants(&findings.results);
    for (underlay, class) in sections(findings) {
        let _ = write!(
            text,
            "\n{}\n{}\n",
            title(underlay, class),
            figures(findings, &variants, underlay, class)
        );
        let _ = writeln!(text, "\nratios, median (least to most)");
        for ratios in ratios(findings, underlay, class) {
            let _ = writeln!(text, "{ratios}");
        }
    }
    for disturbance in findings.disturbed.iter().take(SHOWN_DISTURBANCES) {
        let _ = writeln!(
            text,
            "disturbed: round {}, {:?} of {} ({:?}, {:?}): others took {:.0} % of a core, speed \
            {:.0} %{}",
            disturbance.round,
            disturbance.measure,
            disturbance.variant.name(),
            disturbance.underlay,
            disturbance.class,
            disturbance.foreign * 100.0,
            disturbance.speed * 100.0,
            if disturbance.repeated {
                "; measured again"
            } else {
                "; kept"
            }
        );
    }
    if let Some(more) = findings.disturbed.len().checked_sub(SHOWN_DISTURBANCES + 1) {
        let _ = writeln!(text, "… and {} more; --output json has them all", more + 1);
    }
    for reason in &findings.skipped {
        let _ = writeln!(text, "left out: {reason}");
    }
    text
}

pub fn title(underlay: Underlay, class: Class) -> String {
    format!("{}, {}", class.title(), underlay.title())
}

fn variants(results: &[Outcome]) -> Vec<Variant> {
    let mut variants: Vec<_> = results
        .iter()
        .map(|outcome| outcome.subject.variant)
        .collect();
    variants.sort_unstable();
    variants.dedup();
    variants
}

fn sections(findings: &Findings) -> Vec<(Underlay, Class)> {
    let mut sections: Vec<_> = findings
        .results
        .iter()
        .map(|outcome| (outcome.subject.underlay, outcome.subject.class))
        .collect();
    sections.sort_unstable();
    sections.dedup();
    sections
}

fn figures(findings: &Findings, variants: &[Variant], underlay: Underlay, class: Class) -> Table {
    let mut shown = table([""]);
    let mut header = vec!["MEASURE".to_owned(), "UNIT".to_owned()];
    header.extend(variants.iter().map(|variant| variant.name()));
    shown.set_header(header);
    for (measure, at, along) in places(&findings.results) {
        if (at, along) != (underlay, class) {
            continue;
        }
        let here = |variant: &Variant| {
            findings.results.iter().find(|outcome| {
                let subject = &outcome.subject;
                (subject.underlay, subject.class, subject.variant) == (underlay, class, *variant)
                    && subject.measure == measure
            })
        };
        let unit = variants
            .iter()
            .find_map(here)
            .map_or("", |outcome| outcome.unit);
        let mut row = vec![measure.clone(), unit.to_owned()];
        row.extend(
            variants.iter().map(|variant| {
                here(variant).map_or_else(String::new, |outcome| short(outcome.value))
            }),
        );
        shown.add_row(row);
    }
    align_right(&mut shown, 2);
    shown
}

/// The ratios for people: all variants against the replaced software and against the host, then the
/// fast path without one of its parts. JSON has every pair.
fn ratios(findings: &Findings, underlay: Underlay, class: Class) -> Vec<Table> {
    let here = |ratio: &&Ratio| (ratio.subject.underlay, ratio.subject.class) == (underlay, class);
    let reference = summary::reference(&findings.ratios);
    let against = reference
        .into_iter()
        .chain([Variant::Host, Variant::Overlay]);
    let against = against.filter_map(|against| {
        let of_it = |ratio: &&Ratio| {
            ratio.against == against && (against == Variant::Overlay || is_whole(ratio))
        };
        let title = format!("AGAINST {}", against.name().to_uppercase());
        grid(&title, findings.ratios.iter().filter(here).filter(of_it))
    });
    against.collect()
}

/// Whether the ratio is of a variant that one would deploy, and not of the fast path without a
/// part.
fn is_whole(ratio: &Ratio) -> bool {
    ratio.subject.variant <= Variant::ServicesOff
}

/// Ratios by measure and by variant; `None` where there are none.
fn grid<'r>(title: &str, ratios: impl Iterator<Item = &'r Ratio>) -> Option<Table> {
    let mut cells: BTreeMap<(&str, Variant), &Ratio> = BTreeMap::new();
    for ratio in ratios {
        cells.insert((&ratio.subject.measure, ratio.subject.variant), ratio);
    }
    let columns: BTreeSet<Variant> = cells.keys().map(|(_, variant)| *variant).collect();
    let measures: BTreeSet<&str> = cells.keys().map(|(measure, _)| *measure).collect();
    if cells.is_empty() {
        return None;
    }
    let mut shown = table([""]);
    let header = columns.iter().map(|variant| variant.name());
    shown.set_header([title.to_owned()].into_iter().chain(header));
    for measure in measures {
        let row = columns.iter().map(|variant| {
            cells
                .get(&(measure, *variant))
                .map_or_else(String::new, |ratio| {
                    let mark = if ratio.rounds == 0 { " disturbed" } else { "" };
                    format!(
                        "{:.2} ({:.2} to {:.2}){mark}",
                        ratio.median, ratio.min, ratio.max
                    )
                })
        });
        shown.add_row([measure.to_owned()].into_iter().chain(row));
    }
    Some(shown)
}

/// A number with three significant digits, because the measurement is not more precise.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
