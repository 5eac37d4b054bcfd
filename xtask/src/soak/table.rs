//! The findings of a soak as tables.

use std::fmt::Write as _;

use comfy_table::Table;
use overlay_tests::soak::{Findings, Rule, Series, Verdict};

use crate::lab::table::table;

/// Rounds, connections, and all counted quantities.
pub fn render(findings: &Findings) -> String {
    let mut rounds = table([
        "ROUNDS",
        "DONE",
        "DISTURBED",
        "DATAGRAMS",
        "LOST",
        "LONGEST SILENCE",
    ]);
    for (kind, sums) in &findings.rounds {
        rounds.add_row([
            kind.to_string(),
            sums.done.to_string(),
            sums.disturbed.to_string(),
            sums.sent.to_string(),
            sums.lost.to_string(),
            format!("{} ms", sums.silence_ms),
        ]);
    }
    let mut text = format!(
        "{rounds}\n\n{} s; {} connections kept open, {} broken; {} stalls of the machine, the \
        longest {} ms\n\n{}\n",
        findings.seconds,
        findings.connections,
        findings.broken,
        findings.stalls.count,
        findings.stalls.longest_ms,
        counted(&findings.series),
    );
    for one in findings.series.iter().filter(|one| is_judged_memory(one)) {
        let values: Vec<_> = one.over_time.iter().map(u64::to_string).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "over time, {}: {}: {}",
            one.place,
            one.quantity,
            values.join(" ")
        );
    }
    for failure in &findings.failures {
        let _ = writeln!(text, "FAILED: {failure}");
    }
    text
}

fn is_judged_memory(series: &Series) -> bool {
    matches!(series.rule, Rule::Steady(_))
}

fn counted(series: &[Series]) -> Table {
    let mut counted = table(["WHERE", "WHAT", "START", "MIN", "MEDIAN", "MAX", "END", ""]);
    for one in series {
        let verdict = match one.verdict {
            Verdict::Flat => "flat",
            Verdict::NotFlat => "NOT FLAT",
            Verdict::NotJudged => "not judged",
        };
        let numbers = [one.start, one.min, one.median, one.max, one.end];
        let mut row = vec![one.place.clone(), one.quantity.clone()];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(verdict.to_owned());
        counted.add_row(row);
    }
    counted
}
