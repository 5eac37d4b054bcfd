//! Bar charts as SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use clap::ValueEnum as _;

use super::Findings;
use super::class::Class;
use super::machine::Machine;
use super::summary::{Outcome, Ratio, places};
use super::table::{short, title};
use super::underlay::Underlay;
use super::variant::Variant;

/// Sizes in pixels.
const WIDTH: f64 = 720.0;
const LABEL: f64 = 150.0;
const VALUE: f64 = 110.0;
const BAR: f64 = 26.0;
const STEP: f64 = 38.0;
const HEAD: f64 = 64.0;
const FOOT: f64 = 48.0;

/// The figures of each variant in the summary: higher is better.
const RATES: &[(&str, &str)] = &[
    ("tcp_rr_rate", "TCP request and response"),
    ("udp_rr_rate", "UDP request and response"),
    ("connect_rate", "connect, request, close"),
    ("bulk", "TCP, 1 stream"),
    ("bulk_4", "TCP, 4 streams"),
    ("udp_64", "UDP packets of 64 bytes"),
];

/// Writes one plot for each measure in each place, and for each underlay one with all rates as
/// shares of the host's.
pub fn write(directory: &Path, findings: &Findings) -> Result<()> {
    let Findings {
        machine, results, ..
    } = findings;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for underlay in Underlay::value_variants() {
        if let Some(svg) = summary(findings, *underlay) {
            let place = directory.join(format!("rates-{underlay:?}.svg").to_lowercase());
            fs::write(&place, svg).with_context(|| format!("write {}", place.display()))?;
        }
    }
    for (measure, underlay, class) in places(results) {
        let bars: Vec<&Outcome> = results
            .iter()
            .filter(|outcome| {
                let subject = &outcome.subject;
                (subject.measure.as_str(), subject.underlay, subject.class)
                    == (measure.as_str(), underlay, class)
            })
            .collect();
        let file = format!("{measure}-{class:?}-{underlay:?}.svg").to_lowercase();
        let place = directory.join(file);
        let heading = format!("{} ({})", measure.replace('_', " "), title(underlay, class));
        fs::write(&place, chart(&heading, machine, &bars))
            .with_context(|| format!("write {}", place.display()))?;
    }
    Ok(())
}

/// Writes the plot for the documentation: rates of super-packets.
pub fn publish(directory: &Path, findings: &Findings) -> Result<()> {
    let svg = summary(findings, Underlay::Super)
        .context("rates need the bare host: measure host, too")?;
    let place = directory.join("rates.svg");
    fs::write(&place, svg).with_context(|| format!("write {}", place.display()))
}

/// Rates across nodes as shares of the host's, grouped by measure; `None` where the host was not
/// measured.
fn summary(findings: &Findings, underlay: Underlay) -> Option<String> {
    const GROUP: f64 = 26.0;
    const THIN: f64 = 18.0;
    const NAME: f64 = 220.0;
    let of = |measure: &str| -> Vec<&Ratio> {
        let wanted = |ratio: &&Ratio| {
            let subject = &ratio.subject;
            (subject.underlay, subject.class, ratio.against)
                == (underlay, Class::Direct, Variant::Host)
                && subject.measure == measure
                && subject.variant <= Variant::Overlay
        };
        findings.ratios.iter().filter(wanted).collect()
    };
    let groups: Vec<_> = RATES
        .iter()
        .map(|(measure, title)| (*title, of(measure)))
        .filter(|(_, ratios)| !ratios.is_empty())
        .collect();
    let most = groups
        .iter()
        .flat_map(|(_, ratios)| ratios)
        .map(|ratio| ratio.max);
    let most = most.fold(1.0, f64::max);
    let x = |share: f64| NAME + share / most * (WIDTH - NAME - VALUE);
    let mut rows = String::new();
    let mut top = HEAD + GROUP;
    for (title, ratios) in &groups {
        let _ = writeln!(
            rows,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{title}</text>",
            NAME - 10.0,
            top + THIN * (ratios.len() as f64 + 1.0) / 2.0 - 4.0
        );
        for ratio in ratios {
            let middle = top + THIN / 2.0;
            let _ = writeln!(
                rows,
                "<rect x=\"{NAME}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\n\
                 <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222222\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"12\">{:.2}</text>",
                top + 1.0,
                x(ratio.median) - NAME,
                THIN - 2.0,
                colour(ratio.subject.variant),
                x(ratio.min),
                x(ratio.max),
                x(ratio.max) + 8.0,
                middle + 4.0,
                ratio.median,
            );
            top += THIN;
        }
        top += GROUP - THIN / 2.0;
    }
    let (_, first) = groups.first()?;
    let mut legend = String::new();
    let mut at = 16.0;
    for ratio in first {
        let name = ratio.subject.variant.name();
        let _ = writeln!(
            legend,
            "<rect x=\"{at}\" y=\"50\" width=\"12\" height=\"12\" fill=\"{}\"/>\n\
             <text x=\"{}\" y=\"61\">{name}</text>",
            colour(ratio.subject.variant),
            at + 18.0
        );
        at += 40.0 + 8.0 * name.len() as f64;
    }
    let rounds = groups.iter().flat_map(|(_, ratios)| ratios);
    let rounds = rounds.map(|ratio| ratio.rounds).max().unwrap_or_default();
    let height = top + FOOT;
    Some(format!(
        "{}<text x=\"16\" y=\"34\" font-size=\"18\">Across nodes, {}: rates, the bare wire being \
        1</text>\n\
         {legend}<path d=\"M{:.1} {HEAD}V{top}\" stroke=\"#9e9e9e\" stroke-dasharray=\"4 \
         3\"/>\n{rows}{}</svg>\n",
        open(height),
        underlay.title(),
        x(1.0),
        foot(height, rounds, &findings.machine),
    ))
}

/// Horizontal bars of medians, with whiskers from the least to the most.
fn chart(heading: &str, machine: &Machine, bars: &[&Outcome]) -> String {
    let height = HEAD + STEP * bars.len() as f64 + FOOT;
    let most = bars
        .iter()
        .map(|bar| bar.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LABEL + (value / most).clamp(0.0, 1.0) * (WIDTH - LABEL - VALUE);
    let mut svg = format!(
        "{}<text x=\"16\" y=\"34\" font-size=\"18\">{}</text>\n",
        open(height),
        escape(heading)
    );
    for (i, bar) in bars.iter().enumerate() {
        let top = HEAD + STEP * i as f64;
        let (middle, end) = (top + BAR / 2.0, x(bar.value));
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABEL}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222222\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{} {}</text>",
            LABEL - 10.0,
            middle + 5.0,
            bar.subject.variant.name(),
            end - LABEL,
            colour(bar.subject.variant),
            x(bar.min),
            x(bar.max),
            x(bar.max) + 8.0,
            middle + 5.0,
            short(bar.value),
            bar.unit,
        );
    }
    let rounds = bars.iter().map(|bar| bar.rounds).max().unwrap_or_default();
    let _ = writeln!(svg, "{}</svg>", foot(height, rounds, machine));
    svg
}

fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    )
}

/// The origin of the figures, in two lines.
fn foot(height: f64, rounds: usize, machine: &Machine) -> String {
    let line = |y: f64, text: &str| {
        format!(
            "<text x=\"16\" y=\"{y}\" font-size=\"11\" fill=\"#666666\">{}</text>\n",
            escape(text)
        )
    };
    let Machine {
        date,
        kernel,
        revision,
        processor,
        cores,
        command,
        ..
    } = machine;
    let first = format!(
        "median of up to {rounds} undisturbed rounds, least to most · {date} · Linux {kernel} · \
        {processor}, {cores} cores"
    );
    let second = format!("{revision} · {command}");
    line(height - 26.0, &first) + &line(height - 10.0, &second)
}

fn colour(variant: Variant) -> &'static str {
    match variant {
        Variant::Host => "#9e9e9e",
        Variant::Kernel => "#5b8def",
        Variant::KernelServices => "#2f5fb3",
        Variant::FlannelPlain => "#e08e3e",
        Variant::Flannel => "#b5651d",
        Variant::Overlay => "#2e9e5b",
        _ => "#9bd0b0",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
