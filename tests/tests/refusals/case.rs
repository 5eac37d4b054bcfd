//! The cases: frames, their origin, and the expected result.

use overlay_tests::frame::{IPV4, Ip, Mac, SERVICE_VLAN, VLAN, ethernet, tagged};

/// Two tags that name no VLAN; the kernel takes off both.
pub(super) const STACK: [(u16, u16); 2] = [(VLAN, 0), (VLAN, 0)];

/// The place where a frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum From {
    /// The first pod of the first node.
    Pod,
    /// The second node, a peer that turned hostile.
    Peer,
    /// A host on the underlay that is no node.
    Stranger,
}

/// The expected result of a case.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// One of these reasons is counted on the first node or the second, and nothing arrives.
    Refused(usize, &'static [&'static str]),
    /// The packet arrives in this pod.
    Delivered(Pod),
}

/// A pod that receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pod {
    /// The sender itself.
    Own,
    /// On the sender's node.
    Local,
    /// On the other node.
    Remote,
}

/// One case.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) from: From,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) end: End,
}

/// The form of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Plain,
    Options,
    /// A first fragment with this many bytes of payload.
    Fragments(usize),
    Tag(u16),
    Stacked,
}

impl Shape {
    pub(super) fn dress(self, to: Mac, from: Mac, ip: &Ip) -> Vec<Vec<u8>> {
        let frame = |packet: &[u8]| ethernet(to, from, IPV4, packet);
        match self {
            Self::Plain => vec![frame(&ip.packet())],
            Self::Options => {
                let options = vec![1; 8];
                vec![frame(
                    &Ip {
                        options,
                        ..ip.clone()
                    }
                    .packet(),
                )]
            }
            Self::Fragments(first) => ip.fragments(first).map(|piece| frame(&piece)).into(),
            Self::Tag(kind) => vec![tagged(&frame(&ip.packet()), &[(kind, 0)])],
            Self::Stacked => vec![tagged(&frame(&ip.packet()), &STACK)],
        }
    }
}

pub(super) const POD_SHAPES: [Shape; 7] = [
    Shape::Plain,
    Shape::Options,
    Shape::Fragments(8),
    Shape::Fragments(64),
    Shape::Tag(VLAN),
    Shape::Tag(SERVICE_VLAN),
    Shape::Stacked,
];

/// A payload that shows its case's number in every part.
pub(super) fn mark(number: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    [*b"OVLT", number].concat().repeat(40)
}

/// The number of the case that a frame belongs to.
pub(super) fn marked(frame: &[u8]) -> Option<usize> {
    let at = frame.windows(4).position(|bytes| bytes == b"OVLT")?;
    let number = frame.get(at + 4..at + 8)?.try_into().ok()?;
    Some(u32::from_be_bytes(number) as usize)
}
