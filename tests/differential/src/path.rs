//! Which way a decision went, told by what it asked for: every look at the packet and the tables,
//! and whether there was something. Two packets that make it ask the same questions with the same
//! success went the same way.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use overlay_common::V4;
use overlay_common::decide::Tables;
use overlay_common::packet::Packet;
use overlay_common::schema::{Config, Endpoint, FlowKey, Peer, Pod};

use crate::decide::visit::{Outcome, Visit};
use crate::decide::world::World;

/// What the decision says, and a number for its way there.
pub fn decide(visit: &Visit, world: &World) -> (Outcome, u64) {
    let packet = visit.packet();
    let trace = Trace::default();
    let outcome = visit.decide_as(&Watched(&packet, &trace), &Watched(world, &trace));
    trace.step(visit.hook as u32, outcome.verdict() as u32);
    (outcome, trace.0.get())
}

#[derive(Default)]
struct Trace(Cell<u64>);

impl Trace {
    fn step(&self, question: u32, answer: u32) {
        let mut hasher = DefaultHasher::new();
        (self.0.get(), question, answer).hash(&mut hasher);
        self.0.set(hasher.finish());
    }

    fn some<T>(&self, question: u32, answer: Option<T>) -> Option<T> {
        self.step(question, u32::from(answer.is_some()));
        answer
    }
}

/// A packet or tables whose answers leave a trace.
struct Watched<'a, T>(&'a T, &'a Trace);

/// Questions; offsets into the packet are smaller.
const LENGTH: u32 = 1 << 16;
const SEGMENTS: u32 = LENGTH + 1;
const VLAN: u32 = LENGTH + 2;
const OURS: u32 = LENGTH + 3;
const CONFIG: u32 = LENGTH + 4;
const ENDPOINT: u32 = LENGTH + 5;
const POD: u32 = LENGTH + 6;
const PEER: u32 = LENGTH + 7;
const VTEP: u32 = LENGTH + 8;
const FLOW: u32 = LENGTH + 9;
const LEASES: u32 = LENGTH + 10;

impl<P: Packet> Packet for Watched<'_, P> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.1.some(offset, self.0.load(offset))
    }

    fn frame_len(&self) -> u32 {
        self.1.step(LENGTH, 0);
        self.0.frame_len()
    }

    fn gso_size(&self) -> u32 {
        let size = self.0.gso_size();
        self.1.step(SEGMENTS, u32::from(size != 0));
        size
    }

    fn vlan(&self) -> Option<u16> {
        self.1.some(VLAN, self.0.vlan())
    }

    fn to_this_host(&self) -> bool {
        let ours = self.0.to_this_host();
        self.1.step(OURS, u32::from(ours));
        ours
    }

    fn ifindex(&self) -> u32 {
        self.0.ifindex()
    }
}

impl Tables<V4> for Watched<'_, World> {
    fn config(&self) -> Option<&Config<V4>> {
        self.1.some(CONFIG, self.0.config.as_ref())
    }

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<V4>> {
        self.1.some(ENDPOINT, self.0.endpoint(ifindex))
    }

    fn pod(&self, address: [u8; 4]) -> Option<&Pod> {
        self.1.some(POD, Tables::pod(self.0, address))
    }

    fn peer(&self, subnet: [u8; 4]) -> Option<&Peer<V4>> {
        self.1.some(PEER, self.0.peer(subnet))
    }

    fn is_vtep(&self, address: [u8; 4]) -> bool {
        let known = self.0.is_vtep(address);
        self.1.step(VTEP, u32::from(known));
        known
    }

    fn is_stack_owned(&self, flow: &FlowKey<V4>) -> bool {
        let owned = self.0.is_stack_owned(flow);
        self.1.step(FLOW, u32::from(owned));
        owned
    }

    fn leases_are_stale(&self) -> bool {
        let stale = self.0.leases_are_stale;
        self.1.step(LEASES, u32::from(stale));
        stale
    }
}
