//! The findings as a table.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::measure::{Findings, Measure, Place, Series, Way};

/// A table, and the machine of the measurement.
pub fn render(findings: &Findings) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "FLOOD",
        "REFUSED BY",
        "FLOOD'S CORE",
        "HONEST TRAFFIC",
        "ALONE",
        "KEPT UNDER FLOOD",
        "KEPT UNDER CONTROL",
        "FLOOD/s",
        "OF IT REFUSED",
    ]);
    for series in &findings.series {
        table.add_row(row(series));
    }
    let machine = &findings.machine;
    format!(
        "{table}\n\nMedians (least to most) of {} rounds; Linux {}, {} cores, {}",
        findings
            .series
            .first()
            .map_or(0, |series| series.samples.alone.len()),
        machine.kernel,
        machine.cores,
        machine.processor
    )
}

fn row(series: &Series) -> [String; 9] {
    let samples = &series.samples;
    let way = match series.way {
        Way::Xdp => "XDP",
        Way::Tc => "tc",
        Way::Kernel => "packet filter",
    };
    let place = match series.place {
        Place::OtherCore => "another",
        Place::SameCore => "the same",
    };
    let (honest, alone) = match series.measure {
        Measure::UdpPackets => (
            "64-byte datagrams",
            format!("{:.0} k/s", median(&samples.alone) / 1e3),
        ),
        Measure::TcpBytes => (
            "TCP stream",
            format!("{:.1} Gb/s", median(&samples.alone) * 8.0 / 1e9),
        ),
    };
    [
        series.kind.to_owned(),
        way.to_owned(),
        place.to_owned(),
        honest.to_owned(),
        alone,
        share(&samples.kept),
        share(&samples.kept_under_control),
        format!("{:.0} k", median(&samples.flood) / 1e3),
        format!("{:.0} %", median(&samples.refused) * 100.0),
    ]
}

fn share(values: &[f64]) -> String {
    let (least, most) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), value| {
            (least.min(*value), most.max(*value))
        });
    format!(
        "{:.1} % ({:.1} to {:.1})",
        median(values) * 100.0,
        least * 100.0,
        most * 100.0
    )
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_tells_its_spread() {
        assert_eq!(share(&[0.9, 1.0, 0.5]), "90.0 % (50.0 to 100.0)");
        assert_eq!(share(&[0.8, 0.9]), "85.0 % (80.0 to 90.0)");
    }
}
