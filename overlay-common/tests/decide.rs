//! What becomes of a packet, over a made-up node's tables.

mod decide {
    pub mod cases;
    pub mod frames;
    pub mod visit;
    pub mod world;

    mod properties;
}

use decide::cases::all;
use overlay_common::Verdict;

#[test]
fn every_case_ends_as_listed() {
    let wrong: Vec<String> = all()
        .iter()
        .filter(|case| case.decide() != case.want)
        .map(|case| {
            format!(
                "{:?}, {}: {:?} instead of {:?}",
                case.visit.hook,
                case.name,
                case.decide(),
                case.want
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_cases_reach_every_verdict_of_the_decision() {
    // What the programs find out only while they change a packet.
    let beyond = [Verdict::AdjustFailed, Verdict::Failed];
    let reached: Vec<Verdict> = all().iter().map(|case| case.want.verdict()).collect();
    for verdict in Verdict::ALL {
        assert_eq!(
            reached.contains(verdict),
            !beyond.contains(verdict),
            "{verdict:?}"
        );
    }
}
