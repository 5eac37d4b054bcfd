//! The features of this kernel that the fast path needs or uses, as a table.

use super::table;
use crate::datapath::probe::{Answer, Probes};

/// One line per feature: name, the first kernel that has the feature, whether the feature is
/// needed, the answer of this kernel.
#[must_use]
pub fn render(probes: &Probes) -> String {
    let rows = probes.0.iter().map(|probe| {
        let answer = match &probe.answer {
            Answer::Yes => "yes".to_owned(),
            Answer::No(detail) => format!("no: {detail}"),
            Answer::Error(detail) => format!("error: {detail}"),
        };
        let needed = if probe.needed { "needed" } else { "optional" };
        vec![
            probe.feature.to_owned(),
            probe.since.to_owned(),
            needed.to_owned(),
            answer,
        ]
    });
    table::render(&["feature", "since Linux", "", "here"], rows)
}
