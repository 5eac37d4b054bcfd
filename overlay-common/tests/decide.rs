//! What becomes of a packet, over a made-up node's tables.

mod decide {
    mod families;
    mod fields;
    mod properties;
}

use etherparse::Ipv4Header;
use overlay_cases::cases::{Outcome, all};
use overlay_common::decide::{FromNetwork, from_network};
use overlay_common::schema::FlowKey;
use overlay_common::{Hook, V4, Verdict};

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
fn a_watched_visit_ends_as_an_unwatched_one() {
    for case in all() {
        let watched = case.visit.watch(&case.world, |_| ());
        assert_eq!(watched, case.decide(), "{}", case.name);
    }
}

/// RFC 6040: what met congestion in the tunnel arrives marked, with a checksum to match.
#[test]
fn congestion_on_the_way_is_told_to_the_pod() {
    for case in all()
        .iter()
        .filter(|case| case.name.starts_with("congestion"))
    {
        let (Hook::NetIn, Outcome::Fast(_)) = (case.visit.hook, case.want) else {
            continue;
        };
        let FromNetwork::Decapsulate { header, .. } =
            from_network::<V4, V4, _, _>(&case.visit.packet(), &case.world)
        else {
            panic!("{}: not decapsulated", case.name);
        };
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (ip, _) = Ipv4Header::from_slice(&bytes).expect("a header");
        assert_eq!(ip.ecn.value(), 0b11, "{}", case.name);
        assert_eq!(
            ip.header_checksum,
            ip.calc_header_checksum(),
            "{}",
            case.name
        );
    }
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

#[test]
fn a_flow_is_remembered_where_the_stack_sends_it() {
    let key = FlowKey::new(([10, 244, 1, 2], 1), ([10, 244, 2, 2], 2), 17);
    for outcome in [Outcome::Remember(key), Outcome::Send(Some(key))] {
        assert_eq!(outcome.remembered(), Some(key));
    }
    for outcome in [Outcome::Send(None), Outcome::Pass(Verdict::Passed)] {
        assert_eq!(outcome.remembered(), None);
    }
}
