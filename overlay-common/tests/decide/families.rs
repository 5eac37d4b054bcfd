//! The families decide alike: each case, and packets made up, told in IPv6, and over an underlay of
//! another family.

use overlay_cases::cases::{Case, all};
use overlay_cases::translate::{Translated, translate};
use overlay_common::visit::{Outcome, Visit};
use overlay_common::{Family, V4, V6, Verdict};

/// Checks that a case ends in the other families as in IPv4; `None` where the case cannot be told
/// in them.
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

/// A neighbour advertisement for another's address, behind as many headers as nobody reads: hop
/// limit 255 is what the pods' stacks ask of one.
#[test]
fn a_claim_is_not_hidden_by_extension_headers() {
    const HOP_LIMIT: usize = 14 + 7;
    let told: Vec<_> = all()
        .iter()
        .filter(|case| case.want == Outcome::Refuse(Verdict::SpoofedArp))
        .filter_map(translate::<V6, V6>)
        .collect();
    assert!(!told.is_empty(), "no case claims another's address");
    for (world, mut visit, want) in told {
        assert_eq!(visit.decide(&world), want);
        // The fixed header ends at 54. Destination options of eight bytes each, the last of which
        // is followed by what followed the fixed header.
        let next = std::mem::replace(&mut visit.frame[14 + 6], 60);
        let chain = [
            [60, 0, 0, 0, 0, 0, 0, 0],
            [60, 0, 0, 0, 0, 0, 0, 0],
            [next, 0, 0, 0, 0, 0, 0, 0],
        ];
        visit.frame.splice(54..54, chain.concat());
        assert_eq!(visit.decide(&world), want, "hidden");
        visit.frame[HOP_LIMIT] = 64;
        assert_ne!(visit.decide(&world), want, "nobody believes it");
    }
}
