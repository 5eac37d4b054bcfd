//! Which way a decision went, told by what it asked for: every look at the packet and the tables,
//! and whether there was something. Two packets that make it ask the same questions with the same
//! success went the same way.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use overlay_cases::cases::Outcome;
use overlay_cases::world::World;
use overlay_common::V4;
use overlay_common::visit::{Question, Visit};

/// What the decision says, and a number for its way there.
pub fn decide(visit: &Visit, world: &World) -> (Outcome, u64) {
    let path = Cell::new(0_u64);
    let step = |question: u32, answer: u32| {
        let mut hasher = DefaultHasher::new();
        (path.get(), question, answer).hash(&mut hasher);
        path.set(hasher.finish());
    };
    let outcome = visit.watch(world, |question| {
        let (question, answer) = kind(question);
        step(question, answer);
    });
    step(visit.hook as u32, outcome.verdict() as u32);
    (outcome, path.get())
}

/// A question as a number (offsets into the packet are smaller than the others), and what kind of
/// answer it got.
fn kind(question: Question<V4>) -> (u32, u32) {
    const OTHERS: u32 = 1 << 16;
    match question {
        Question::Load(offset, is_there) => (offset, is_there.into()),
        Question::FrameLen(_) => (OTHERS, 0),
        Question::GsoSize(size) => (OTHERS + 1, (size != 0).into()),
        Question::Vlan(tag) => (OTHERS + 2, tag.is_some().into()),
        Question::ToThisHost(is_ours) => (OTHERS + 3, is_ours.into()),
        Question::Config(config) => (OTHERS + 4, config.is_some().into()),
        Question::Endpoint(_, endpoint) => (OTHERS + 5, endpoint.is_some().into()),
        Question::Pod(_, pod) => (OTHERS + 6, pod.is_some().into()),
        Question::Peer(_, peer) => (OTHERS + 7, peer.is_some().into()),
        Question::Vtep(_, is_known) => (OTHERS + 8, is_known.into()),
        Question::StackOwned(_, is_owned) => (OTHERS + 9, is_owned.into()),
        Question::LeasesAreStale(are_stale) => (OTHERS + 10, are_stale.into()),
        Question::Device(_, is_there) => (OTHERS + 11, is_there.into()),
    }
}
