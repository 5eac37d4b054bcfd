//! Bar charts as SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path as FilePath;

use anyhow::{Context, Result};

use super::machine::Machine;
use super::summary::{Outcome, places};
use super::table::{short, title};
use super::variant::Variant;

/// Sizes in pixels.
const WIDTH: f64 = 720.0;
const LABEL: f64 = 150.0;
const VALUE: f64 = 110.0;
const BAR: f64 = 26.0;
const STEP: f64 = 38.0;
const HEAD: f64 = 64.0;
const FOOT: f64 = 30.0;

/// Writes one plot for each measure in each place.
pub fn write(directory: &FilePath, machine: &Machine, results: &[Outcome]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for (measure, underlay, path) in places(results) {
        let bars: Vec<&Outcome> = results
            .iter()
            .filter(|outcome| {
                let subject = &outcome.subject;
                (subject.measure.as_str(), subject.underlay, subject.path)
                    == (measure.as_str(), underlay, path)
            })
            .collect();
        let file = format!("{measure}-{path:?}-{underlay:?}.svg").to_lowercase();
        let place = directory.join(file);
        let heading = format!("{} ({})", measure.replace('_', " "), title(underlay, path));
        fs::write(&place, chart(&heading, machine, &bars))
            .with_context(|| format!("write {}", place.display()))?;
    }
    Ok(())
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
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"34\" font-size=\"18\">{}</text>\n",
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
    let _ = write!(
        svg,
        "<text x=\"16\" y=\"{}\" font-size=\"11\" fill=\"#666666\">median of {} rounds, least to most · \
         Linux {} · {} · {}</text>\n</svg>\n",
        height - 10.0,
        bars.iter().map(|bar| bar.rounds).max().unwrap_or_default(),
        escape(&machine.kernel),
        escape(&machine.revision),
        escape(&machine.command),
    );
    svg
}

fn colour(variant: Variant) -> &'static str {
    match variant {
        Variant::Host => "#9e9e9e",
        Variant::Kernel => "#5b8def",
        Variant::KernelServices => "#2f5fb3",
        Variant::Flannel => "#e08e3e",
        Variant::Overlay => "#2e9e5b",
        _ => "#9bd0b0",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
