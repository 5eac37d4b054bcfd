//! The findings as a table: a column for each agent and size.

use std::fmt::Write as _;

use super::Findings;
use super::measure::Scaled;
use super::pending::Times;
use crate::bench::short;
use crate::lab::table::{align_right, table};

/// A row: its title, and its text for each result.
type Row = (&'static str, fn(&Scaled) -> String);

const ROWS: &[Row] = &[
    ("ready, s", |of| short(of.ready_seconds)),
    ("resident, MiB", |of| short(of.memory_mib)),
    ("resident at most, MiB", |of| short(of.most_memory_mib)),
    ("idle: agent, % of a core", |of| {
        short(of.idle.agent_percent)
    }),
    ("idle: its children, % of a core", |of| {
        short(of.idle.children_percent)
    }),
    ("idle: programs started a minute", |of| {
        short(of.idle.programs_per_minute)
    }),
    ("idle: requests to the store a minute", |of| {
        short(of.idle.requests_per_minute)
    }),
    ("one change, ms: p50", |of| time(of.single.p50_ms)),
    ("one change, ms: p99", |of| time(of.single.p99_ms)),
    ("changes, and missing ones", |of| counts(&of.single)),
    ("requests to the store for one change", |of| {
        short(of.requests_per_change)
    }),
    ("netlink messages sent for one", |of| {
        calls(of, |calls| calls.netlink_messages)
    }),
    ("netlink, KiB received for one", |of| {
        calls(of, |calls| calls.netlink_received_kib)
    }),
    ("bpf(2) calls for one", |of| {
        calls(of, |calls| calls.bpf_calls)
    }),
    ("programs started for one", |of| {
        calls(of, |calls| calls.programs)
    }),
    ("churn: changes a second", |of| short(of.churn.rate)),
    ("churn: one change, ms: p50", |of| {
        time(of.churn.times.p50_ms)
    }),
    ("churn: one change, ms: p99", |of| {
        time(of.churn.times.p99_ms)
    }),
    ("churn: changes, and missing ones", |of| {
        counts(&of.churn.times)
    }),
    ("churn: agent, % of a core", |of| {
        short(of.churn.agent_percent)
    }),
    ("churn: its children, % of a core", |of| {
        short(of.churn.children_percent)
    }),
    ("churn: next hop followed, ms: p50", |of| {
        next_hop(of, |times| times.p50_ms)
    }),
    ("churn: next hop followed, ms: most", |of| {
        next_hop(of, |times| times.most_ms)
    }),
    ("churn: next hops, and missing ones", |of| {
        of.next_hop.as_ref().map_or_else(none, counts)
    }),
];

pub fn render(findings: &Findings) -> String {
    let machine = &findings.machine;
    let mut text = format!("{machine}\nload before: {}\n\n", machine.load);
    let header = findings.results.iter();
    let header = header.map(|of| format!("{}, {} peers", of.agent.name(), of.peers));
    let mut shown = table([""]);
    shown.set_header([String::new()].into_iter().chain(header));
    for (name, tell) in ROWS {
        let cells = findings.results.iter().map(tell);
        shown.add_row([(*name).to_owned()].into_iter().chain(cells));
    }
    align_right(&mut shown, 1);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "store: {}\n{shown}", findings.store.name());
    for scaled in &findings.results {
        if let Some(loads) = &scaled.watching {
            let _ = writeln!(text, "{} peers: {loads}", scaled.peers);
        }
    }
    for reason in &findings.skipped {
        let _ = writeln!(text, "left out: {reason}");
    }
    text
}

fn none() -> String {
    "–".to_owned()
}

fn time(ms: Option<f64>) -> String {
    ms.map_or_else(none, short)
}

fn counts(times: &Times) -> String {
    format!("{}, {}", times.count, times.missing)
}

fn calls(of: &Scaled, count: impl Fn(&super::trace::Calls) -> f64) -> String {
    of.calls_per_change
        .as_ref()
        .map_or_else(none, |calls| short(count(calls)))
}

fn next_hop(of: &Scaled, what: impl Fn(&Times) -> Option<f64>) -> String {
    time(of.next_hop.as_ref().and_then(what))
}
