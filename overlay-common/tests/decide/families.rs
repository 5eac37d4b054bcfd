//! The families decide alike: each case, and packets made up, told in IPv6, and over an underlay of
//! another family.

use overlay_cases::cases::{Case, all};
use overlay_cases::translate::{Translated, translate};
use overlay_common::visit::Visit;
use overlay_common::{Family, V4, V6, Verdict};

/// That a case ends in the other families as it does in IPv4; `None` where it cannot be told in
/// them.
pub fn ends_alike<F: Translated, O: Translated>(case: &Case) -> Option<Result<Verdict, String>> {
    let (world, visit, want) = translate::<F, O>(case)?;
    let got = visit.decide(&world);
    let told = if got == want {
        Ok(want.verdict())
    } else {
        let Visit { hook, frame, .. } = &visit;
        Err(format!(
            "{hook:?}, {}: {got:?} instead of {want:?}: {frame:02x?}",
            case.name
        ))
    };
    Some(told)
}

fn every_case_ends_alike<F: Translated, O: Translated>() -> Vec<Verdict> {
    let told: Vec<_> = all().iter().filter_map(ends_alike::<F, O>).collect();
    let wrong: Vec<_> = told
        .iter()
        .filter_map(|it| it.as_ref().err())
        .cloned()
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    told.into_iter().flatten().collect()
}

#[test]
fn every_case_ends_in_ipv6_as_in_ipv4() {
    let reached = every_case_ends_alike::<V6, V6>();
    // What is IPv4's own: header options and checksums, and what the programs find out only while
    // they change a packet.
    let own = [Verdict::Options, Verdict::NotIp, Verdict::Inactive];
    let beyond = [Verdict::AdjustFailed, Verdict::Failed];
    for verdict in Verdict::ALL {
        let is_left_out = own.contains(verdict) || beyond.contains(verdict);
        assert!(
            is_left_out || reached.contains(verdict),
            "{verdict:?} is not reached"
        );
    }
}

#[test]
fn the_underlay_may_be_of_another_family() {
    for reached in [
        every_case_ends_alike::<V4, V4>(),
        every_case_ends_alike::<V6, V4>(),
        every_case_ends_alike::<V4, V6>(),
    ] {
        for verdict in [
            Verdict::Encapsulated,
            Verdict::Decapsulated,
            Verdict::UnknownVtep,
            Verdict::Routed,
            Verdict::UnprovenSource,
        ] {
            assert!(reached.contains(&verdict), "{verdict:?} is not reached");
        }
    }
    assert_ne!(V4::HEADER_LEN, V6::HEADER_LEN);
}
