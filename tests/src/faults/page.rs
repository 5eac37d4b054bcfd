//! The table of budgets as a page, checked in as `docs/faults.md`.

use std::fmt::Write as _;

use super::{Case, Outcome};
use crate::pace::RATE;

/// The page: every case, with the losses in the runs of `outcomes`.
#[must_use]
pub fn page(cases: &[&Case], outcomes: &[Outcome]) -> String {
    let mut page = format!(
        "# What faults cost

Every row is a case of `cargo xtask faults`. While something is broken on purpose, two pairs of
pods (one on two nodes, one on one) send each other {RATE} numbered datagrams a second each way,
and keep a TCP connection each. After every case all nodes are ready again, with every pod on the
fast path, without help.

- *may lose*: the budget: nothing where the wire is left alone, else about twice what was measured.
  A run that loses more fails.
- *lost*: what the run lost that wrote this page, and the longest time without an arrival on any of
  the four ways.
- Connections may break (nothing moves for 5 s) only where the wire itself is cut (*cut*); anywhere
  else one broken connection fails the run.

Written by `cargo xtask faults --write docs/faults.md`.

| case | what is done | what must hold | cut | may lose | lost | silence |
|---|---|---|---|--:|--:|--:|
"
    );
    for case in cases {
        let outcome = outcomes.iter().find(|outcome| outcome.case == case.name);
        let (lost, silence) = outcome.map_or_else(Default::default, |outcome| {
            (
                format!("{} of {}", outcome.lost, outcome.sent),
                format!("{} ms", outcome.silence_ms),
            )
        });
        let _ = writeln!(page, "{}{lost} | {silence} |", row(case));
    }
    page
}

/// The columns that do not change from run to run.
fn row(case: &Case) -> String {
    format!(
        "| `{}` | {} | {} | {} | {} | ",
        case.name,
        case.fault,
        case.invariant,
        if case.cuts_wire { "yes" } else { "" },
        case.budget
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_page_has_every_case_and_its_budget() {
        let checked_in = include_str!("../../../docs/faults.md");
        for case in super::super::all() {
            let row = row(case);
            let there = checked_in.lines().any(|line| line.starts_with(&row));
            assert!(
                there,
                "docs/faults.md is old: `cargo xtask faults --write docs/faults.md` writes it \
                anew; it lacks\n{row}"
            );
        }
        let rows = checked_in.lines().filter(|line| line.starts_with("| `"));
        assert_eq!(rows.count(), super::super::all().len(), "a row too many");
    }
}
