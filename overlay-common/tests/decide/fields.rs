//! Fields of headers, and how a decision may end when one of them holds something else.

use std::ops::Range;

use overlay_cases::cases::Case;
use overlay_common::{Verdict, checksum};
use proptest::prelude::*;

/// A field of a header, and how a decision may end when it holds something else.
pub struct Field {
    name: &'static str,
    pub at: Range<usize>,
    may: &'static [Verdict],
}

const fn field(name: &'static str, at: Range<usize>, may: &'static [Verdict]) -> Field {
    Field { name, at, may }
}

/// Of a packet that would be encapsulated.
pub const SENT_FIELDS: &[Field] = &[
    field(
        "destination MAC",
        0..6,
        &[Verdict::ForeignMac, Verdict::Group],
    ),
    field("source MAC", 6..12, &[Verdict::ForeignMac]),
    field(
        "Ethernet type",
        12..14,
        &[Verdict::NotIp, Verdict::StackedVlan],
    ),
    field(
        "version and header length",
        14..15,
        &[Verdict::Malformed, Verdict::Options],
    ),
    field("type of service", 15..16, &[]),
    field("total length", 16..18, &[Verdict::Malformed]),
    field("identification", 18..20, &[]),
    field("fragment", 20..22, &[Verdict::Fragment]),
    field("time to live", 22..23, &[Verdict::TtlExpired]),
    field("protocol", 23..24, &[Verdict::IcmpError]),
    field(
        "source",
        26..30,
        &[Verdict::SpoofedSource, Verdict::ForeignSource],
    ),
    field(
        "destination",
        30..34,
        &[
            Verdict::NotOverlay,
            Verdict::ForeignMac,
            Verdict::UnknownPod,
            Verdict::UnknownPeer,
        ],
    ),
    field("ports", 34..38, &[]),
    field("the rest of the transport header", 38..54, &[]),
];

/// Of a packet that would be decapsulated.
pub const RECEIVED_FIELDS: &[Field] = &[
    field("destination MAC", 0..6, &[Verdict::NotForUs]),
    field("source MAC", 6..12, &[]),
    field("outer type of service", 15..16, &[Verdict::EcnPair]),
    field("outer total length", 16..18, &[Verdict::Malformed]),
    field("outer identification", 18..20, &[]),
    field(
        "outer fragment",
        20..22,
        &[Verdict::Fragment, Verdict::NotVxlan],
    ),
    field("outer time to live", 22..23, &[]),
    field("outer protocol", 23..24, &[Verdict::NotVxlan]),
    // Another peer is a node, but not the one with that subnet.
    field(
        "outer source",
        26..30,
        &[Verdict::UnknownVtep, Verdict::ForeignInnerSource],
    ),
    field("outer destination", 30..34, &[Verdict::NotForUs]),
    field("outer source port", 34..36, &[]),
    field("outer destination port", 36..38, &[Verdict::NotVxlan]),
    field("outer UDP length", 38..40, &[Verdict::Malformed]),
    field("outer UDP checksum", 40..42, &[]),
    field("VXLAN flags", 42..46, &[Verdict::VxlanExtension]),
    field("VNI", 46..49, &[Verdict::WrongVni]),
    field(
        "the byte behind the VNI",
        49..50,
        &[Verdict::VxlanExtension],
    ),
    field("inner destination MAC", 50..56, &[Verdict::ForeignMac]),
    field("inner source MAC", 56..62, &[]),
    field(
        "inner Ethernet type",
        62..64,
        &[Verdict::InnerProtocol, Verdict::InnerVlan],
    ),
    field("inner total length", 66..68, &[Verdict::Malformed]),
    field("inner identification", 68..70, &[]),
    field("inner fragment", 70..72, &[Verdict::Fragment]),
    field("inner time to live", 72..73, &[Verdict::TtlExpired]),
    field("inner protocol", 73..74, &[Verdict::IcmpError]),
    field(
        "inner source",
        76..80,
        &[Verdict::ForeignInnerSource, Verdict::ForeignSource],
    ),
    field(
        "inner destination",
        80..84,
        &[Verdict::NotOverlay, Verdict::UnknownPod],
    ),
    field("inner ports", 84..88, &[]),
];

/// Puts other bytes into a field and makes the header checksums fit again.
pub fn change(case: &mut Case, at: &Range<usize>, bytes: &[u8], ip_headers: &[usize]) {
    let to = &mut case.visit.frame[at.clone()];
    to.copy_from_slice(&bytes[..to.len()]);
    for start in ip_headers {
        let header = &mut case.visit.frame[*start..start + 20];
        header[10..12].fill(0);
        let mut words = [0_u32; 5];
        for (word, chunk) in words.iter_mut().zip(header.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().expect("four bytes"));
        }
        header[10..12].copy_from_slice(&checksum::of(&words).to_ne_bytes());
    }
}

/// With other bytes in the field, the case ends as before or as the field may end it.
pub fn check_field(
    case: &mut Case,
    field: &Field,
    bytes: &[u8],
    ip_headers: &[usize],
) -> Result<(), TestCaseError> {
    change(case, &field.at, bytes, ip_headers);
    let verdict = case.decide().verdict();
    prop_assert!(
        verdict == case.want.verdict() || field.may.contains(&verdict),
        "{}: {verdict:?}",
        field.name
    );
    Ok(())
}
