//! What holds for every packet.

use etherparse::{IpFragOffset, IpNumber, Ipv4Options};
use overlay_common::decide::{Leaving, leaving, mark};
use overlay_common::packet::Frame;
use overlay_common::{Hook, V4, V6, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::families::ends_alike;
use super::fields::{RECEIVED_FIELDS, SENT_FIELDS, change, check_field};
use overlay_cases::cases::{Case, Outcome, all};
use overlay_cases::frames::{Ipv4Frame, vxlan};
use overlay_cases::world::*;

/// Of the fields that made-up IP headers do not share.
#[derive(Clone, Debug)]
struct Oddities {
    tos: (u8, u8),
    ttl: u8,
    protocol: u8,
    fragment: (u16, bool),
    option_words: usize,
    padding: usize,
    breaks_checksum: bool,
    body: Vec<u8>,
    gso_size: u16,
}

fn oddities() -> impl Strategy<Value = Oddities> {
    (
        (0..64_u8, 0..4_u8),
        any::<u8>(),
        prop_oneof![select(vec![1_u8, 6, 17, 132]), any::<u8>()],
        (prop_oneof![Just(0), 0..8192_u16], any::<bool>()),
        prop_oneof![Just(0_usize), 0..=10_usize],
        prop_oneof![Just(0_usize), 0..20_usize],
        any::<bool>(),
        vec(any::<u8>(), 0..100),
        prop_oneof![Just(0), any::<u16>()],
    )
        .prop_map(
            |(
                tos,
                ttl,
                protocol,
                fragment,
                option_words,
                padding,
                breaks_checksum,
                body,
                gso_size,
            )| Oddities {
                tos,
                ttl,
                protocol,
                fragment,
                option_words,
                padding,
                breaks_checksum,
                body,
                gso_size,
            },
        )
}

/// What pod A sends through its gateway, oddities and all.
fn sent(source: [u8; 4], destination: [u8; 4], oddities: Oddities) -> Case {
    let frame = Ipv4Frame::protocol(source, destination, 0, oddities.body)
        .sent_by(MAC_A)
        .sent_to(BRIDGE_MAC)
        .with(|ip| {
            let (dscp, ecn) = oddities.tos;
            ip.dscp = dscp.try_into().expect("6 bits");
            ip.ecn = ecn.try_into().expect("2 bits");
            ip.time_to_live = oddities.ttl;
            ip.protocol = IpNumber(oddities.protocol);
            (ip.fragment_offset, ip.more_fragments) = (
                IpFragOffset::try_new(oddities.fragment.0).expect("13 bits"),
                oddities.fragment.1,
            );
            let options = [1; 40];
            ip.options =
                Ipv4Options::try_from(&options[..oddities.option_words * 4]).expect("whole words");
        });
    let mut bytes = frame.bytes();
    bytes.extend(vec![0; oddities.padding]);
    bytes[24] ^= u8::from(oddities.breaks_checksum);
    let want = Outcome::Fast(Verdict::Encapsulated);
    Case::new(Hook::PodIn, "made up", bytes, want).segments(u32::from(oddities.gso_size))
}

fn cases() -> impl Strategy<Value = Case> {
    let cases = all();
    any::<Index>().prop_map(move |index| index.get(&cases).clone())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_have_a_verdict(
        mut case in cases(),
        frame in vec(any::<u8>(), 0..256),
        gso_size in any::<u16>(),
        vlan in any::<Option<u16>>(),
    ) {
        case.visit.frame = frame;
        (case.visit.gso_size, case.visit.vlan) = (u32::from(gso_size), vlan);
        case.decide();
    }

    #[test]
    fn any_damage_has_a_verdict(
        mut case in cases(),
        edits in vec((any::<Index>(), any::<u8>()), 0..6),
        len in any::<Index>(),
        cut in any::<bool>(),
        gso_size in any::<u16>(),
    ) {
        for (at, byte) in edits {
            *at.get_mut(&mut case.visit.frame) = byte;
        }
        if cut {
            case.visit.frame.truncate(len.index(case.visit.frame.len()));
        }
        case.visit.gso_size = u32::from(gso_size);
        case.decide();
    }

    #[test]
    fn refused_early_is_what_would_be_refused_later(
        case in cases().prop_filter("from the network, untouched", |case| case.early().is_some()),
        edits in vec((any::<Index>(), any::<u8>()), 0..4),
        len in any::<Index>(),
        cut in any::<bool>(),
    ) {
        let mut later = case;
        for (at, byte) in edits {
            *at.get_mut(&mut later.visit.frame) = byte;
        }
        if cut {
            later.visit.frame.truncate(len.index(later.visit.frame.len()));
        }
        later.want = later.decide();
        let early = later.early().expect("checked above");
        prop_assert_eq!(early.decide(), early.want);
    }

    #[test]
    fn the_payload_does_not_matter(mut case in cases(), payload: [u8; 7]) {
        // Where it is: all that the TCP packets of these cases carry ends so.
        if case.visit.frame.ends_with(b"request") || case.visit.frame.ends_with(b"esponse") {
            let start = case.visit.frame.len() - payload.len();
            case.visit.frame[start..].copy_from_slice(&payload);
        }
        prop_assert_eq!(case.decide(), case.want);
    }

    #[test]
    fn own_packets_to_peers_are_never_refused(host: u8, oddities in oddities()) {
        let outcome = sent(POD_A, [10, 244, 2, host], oddities).decide();
        prop_assert!(
            matches!(outcome, Outcome::Fast(Verdict::Encapsulated) | Outcome::PassPlain(_)),
            "{outcome:?}"
        );
    }

    #[test]
    fn forged_packets_are_always_refused(
        source: [u8; 2], destination: [u8; 4], oddities in oddities(),
    ) {
        let source = [10, 244, source[0], source[1]];
        prop_assume!(source != POD_A);
        let mut case = sent(source, destination, oddities);
        prop_assert_eq!(case.decide(), Outcome::Refuse(Verdict::SpoofedSource));
        case.world.config_mut().flags = 0;
        prop_assert_eq!(case.decide(), Outcome::Refuse(Verdict::SpoofedSource));
    }

    #[test]
    fn strangers_are_always_refused(last in 4_u8.., len in 0_usize..80, oddities in oddities()) {
        let inside = inner().with(|ip| ip.time_to_live = oddities.ttl).bytes();
        let frame = carrying(&vxlan(VNI, &inside)[..len.min(8 + inside.len())])
            .fragment(0, oddities.fragment.1)
            .with(|ip| ip.source = [192, 168, 0, last]);
        let want = Outcome::Pass(Verdict::Malformed);
        let case = Case::new(Hook::NetIn, "made up", frame.bytes(), want);
        let outcome = case.decide();
        // What is too short to carry a packet is the kernel's to drop, unless a fragment makes it
        // longer.
        prop_assert!(
            matches!(outcome, Outcome::Refuse(_))
                || len < 8 + 14 + 20 && outcome == Outcome::Pass(Verdict::Malformed),
            "{outcome:?}"
        );
    }

    #[test]
    fn each_field_of_a_sent_packet_has_its_verdicts(index in any::<Index>(), bytes: [u8; 16]) {
        let mut case = Case::new(
            Hook::PodIn, "sent", routed(POD_REMOTE).bytes(), Outcome::Fast(Verdict::Encapsulated),
        );
        check_field(&mut case, index.get(SENT_FIELDS), &bytes, &[14])?;
    }

    #[test]
    fn each_field_of_a_received_packet_has_its_verdicts(index in any::<Index>(), bytes: [u8; 16]) {
        let mut case = Case::new(
            Hook::NetIn,
            "received",
            outer(&inner().bytes()).bytes(),
            Outcome::Fast(Verdict::Decapsulated),
        );
        check_field(&mut case, index.get(RECEIVED_FIELDS), &bytes, &[14, 64])?;
    }

    /// Each translation but one in 32,768 shows; what is no translation never looks like one.
    #[test]
    fn the_mark_tells_a_translation(
        before: (u8, u8, u16, u16), after: (u8, u8, u16, u16), protocol in select(vec![6_u8, 17]),
        ttl in 1_u8.., tos: u8,
    ) {
        let of = |(from, to, source, destination): (u8, u8, u16, u16)| {
            let mut body = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            body.extend([0; 16]);
            Ipv4Frame::protocol([10, 244, 1, from], [10, 244, 2, to], protocol, body)
        };
        let marked = |frame: &Ipv4Frame| mark::<V4, _>(&Frame::new(&frame.bytes()), 14);
        let sent = of(before);
        prop_assert!(marked(&sent) != 0);
        let routed = sent.clone().options().with(|ip| {
            ip.time_to_live = ttl;
            ip.ecn = (tos & 0b11).try_into().expect("two bits");
        });
        prop_assert_eq!(marked(&sent), marked(&routed));
        // One that a chance leaves as it is has a neighbour with another mark.
        let (from, to, source, destination) = after;
        let neighbour = of((from, to, source, destination.wrapping_add(1)));
        prop_assert!(
            before == after
                || marked(&of(after)) != marked(&sent)
                || marked(&neighbour) != marked(&sent)
        );
    }

    #[test]
    fn a_flow_of_the_stack_is_its_own_in_both_directions(
        near: u16, far: u16, host: u8, protocol in select(vec![6_u8, 17, 132, 33, 136]),
    ) {
        let remote = [10, 244, 2, host];
        let with_ports = |source: ([u8; 4], u16), destination: ([u8; 4], u16)| {
            let mut body = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
            body.extend([0; 16]);
            Ipv4Frame::protocol(source.0, destination.0, protocol, body)
        };
        let request = with_ports((POD_A, near), (remote, far)).sent_by(MAC_A).sent_to(BRIDGE_MAC);
        let response = with_ports((remote, far), (POD_A, near))
            .sent_by(PEER_VTEP_MAC)
            .sent_to(VTEP_MAC);

        let mut sent = Case::new(
            Hook::PodIn, "sent", request.bytes(), Outcome::Fast(Verdict::Encapsulated),
        );
        let mut received = Case::new(
            Hook::NetIn,
            "received",
            outer(&response.bytes()).bytes(),
            Outcome::Fast(Verdict::Decapsulated),
        );
        prop_assert_eq!((sent.decide(), received.decide()), (sent.want, received.want));

        let bytes = request.bytes();
        let Leaving::Remember(key) =
            leaving::<V4, V4, _, _>(&Frame::new(&bytes), &world(), Hook::VtepOut, 0)
        else {
            return Err(TestCaseError::fail("not remembered"));
        };
        for case in [&mut sent, &mut received] {
            case.world.flows.insert(key);
            prop_assert_eq!(case.decide(), Outcome::PassPlain(Verdict::StackOwned));
        }
    }

    /// Any packet of a pod to any address, but for oddities of IPv4's own.
    #[test]
    fn what_a_pod_sends_ends_alike_in_both_families(
        source in select(vec![POD_A, POD_B, OUTSIDE]),
        to: [u8; 2],
        oddities in oddities(),
        outside in any::<bool>(),
    ) {
        let plain = Oddities { option_words: 0, padding: 0, breaks_checksum: false, ..oddities };
        let [a, b] = to;
        let mut case = sent(source, if outside { [8, 8, a, b] } else { [10, 244, a, b] }, plain);
        case.want = case.decide();
        let told = [
            ends_alike::<V6, V6>(&case),
            ends_alike::<V6, V4>(&case),
            ends_alike::<V4, V6>(&case),
        ];
        for told in told {
            prop_assert!(!matches!(told, Some(Err(_))), "{told:?}");
        }
    }

    #[test]
    fn what_the_network_sends_ends_alike_in_both_families(
        index in any::<Index>(), bytes: [u8; 16],
    ) {
        let mut case = Case::new(
            Hook::NetIn,
            "received",
            outer(&inner().bytes()).bytes(),
            Outcome::Pass(Verdict::NotVxlan),
        );
        change(&mut case, &index.get(RECEIVED_FIELDS).at, &bytes, &[14, 64]);
        case.want = case.decide();
        let told = [
            ends_alike::<V6, V6>(&case),
            ends_alike::<V6, V4>(&case),
            ends_alike::<V4, V6>(&case),
        ];
        for told in told {
            prop_assert!(!matches!(told, Some(Err(_))), "{told:?}");
        }
    }
}
