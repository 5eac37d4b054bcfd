//! A packet for every way a decision can end, and for what must not change it.

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{EtherType, IcmpEchoHeader, Icmpv4Type, IpEcn};
use overlay_common::decide::mark;
use overlay_common::packet::{ETHERNET_LEN, Frame};
use overlay_common::schema::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT,
    CONFIG_VTEPS_INCOMPLETE, ENDPOINT_ADDRESSES, FlowKey, POD_KERNEL_PATH,
};
use overlay_common::visit::Outcome::{Fast, HandIn, Pass, PassPlain, Refuse, Remember};
use overlay_common::visit::{self, Visit};
use overlay_common::{Hook, V4, Verdict};

use crate::frames::{End, Ipv4Frame, arp, big, ethernet, tagged, vxlan, without_length};
use crate::world::*;

mod direct;
mod forging_network;
mod handing_in;
mod honest_network;
mod honest_pod;
mod leaving;
mod sending;
mod spoofing_pod;

pub type Outcome = visit::Outcome<V4>;

/// A packet at a hook of a made-up node.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub world: World,
    pub visit: Visit,
    pub want: Outcome,
}

impl Case {
    pub fn new(hook: Hook, name: &'static str, frame: Vec<u8>, want: Outcome) -> Self {
        let visit = Visit {
            hook,
            frame,
            ifindex: match hook {
                Hook::NetIn | Hook::NetXdp => NIC,
                Hook::PodIn | Hook::PodOut | Hook::VtepOut => VETH_A,
            },
            device_mac: NIC_MAC,
            gso_size: 0,
            vlan: None,
            handed_over: 0,
        };
        Self {
            name,
            world: world(),
            visit,
            want,
        }
    }

    fn world(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self
    }

    fn at(mut self, ifindex: u32) -> Self {
        self.visit.ifindex = ifindex;
        self
    }

    pub fn segments(mut self, gso_size: u32) -> Self {
        self.visit.gso_size = gso_size;
        self
    }

    fn tag(mut self, tag: u16) -> Self {
        self.visit.vlan = Some(tag);
        self
    }

    /// Handed over as plain when it was `frame`.
    fn handed_over_as(mut self, frame: &Ipv4Frame) -> Self {
        self.visit.handed_over = mark::<V4, _>(&Frame::new(&frame.bytes()), ETHERNET_LEN);
        self
    }

    /// The same packet before there is a socket buffer: refused there if and only if it would be
    /// later.
    ///
    /// There is no super-packet yet, and no tag that shows.
    pub fn early(&self) -> Option<Self> {
        let visit = &self.visit;
        let exists = visit.hook == Hook::NetIn && visit.gso_size == 0 && visit.vlan.is_none();
        exists.then(|| Self {
            visit: Visit {
                hook: Hook::NetXdp,
                ..visit.clone()
            },
            want: match self.want {
                Refuse(verdict) => Refuse(verdict),
                _ => Pass(Verdict::Passed),
            },
            ..self.clone()
        })
    }

    /// What the decision says.
    pub fn decide(&self) -> Outcome {
        self.visit.decide(&self.world)
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = [
        honest_pod::cases(),
        spoofing_pod::cases(),
        honest_network::cases(),
        forging_network::cases(),
        handing_in::cases(),
        leaving::cases(),
        sending::cases(),
        direct::cases(),
    ]
    .concat();
    let early: Vec<Case> = cases.iter().filter_map(Case::early).collect();
    cases.extend(early);
    cases
}

/// The bytes of a frame after a change that no checksum or length makes up for.
fn damaged(frame: &Ipv4Frame, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = frame.bytes();
    change(&mut bytes);
    bytes
}

/// A TCP flow between two ends.
fn flow(a: End, b: End) -> FlowKey<V4> {
    FlowKey::new(a, b, 6)
}

fn owned(a: End, b: End) -> impl FnOnce(&mut World) {
    move |world| {
        world.flows.insert(flow(a, b));
    }
}

fn time_exceeded() -> Icmpv4Type {
    Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)
}

fn echo() -> Icmpv4Type {
    Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 1 })
}
