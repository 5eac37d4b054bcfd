//! A packet for every way a decision can end, and for what must not change it.

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{EtherType, IcmpEchoHeader, Icmpv4Type, IpEcn};
use overlay_common::decide::{
    FromNetwork, FromPod, Leaving, from_network, from_pod, leaving, refused_early,
};
use overlay_common::packet::Frame;
use overlay_common::schema::{
    CONFIG_ACTIVE, CONFIG_AGGREGATES_TO_KERNEL, CONFIG_PEERS_COMPLETE, CONFIG_SHARED_PORT, FlowKey,
    POD_KERNEL_PATH,
};
use overlay_common::{Hook, V4, Verdict};

use super::frames::{End, Ipv4Frame, arp, big, ethernet, tagged, vxlan};
use super::world::*;

mod forging_network;
mod honest_network;
mod honest_pod;
mod leaving;
mod spoofing_pod;

/// How a decision ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The fast path takes it.
    Fast(Verdict),
    /// The kernel gets it, and may translate it.
    Pass(Verdict),
    /// The kernel gets it as plain pod-to-pod traffic.
    PassPlain(Verdict),
    /// It is dropped.
    Refuse(Verdict),
    /// It leaves, and the stack owns its flow.
    Remember(FlowKey<V4>),
}

impl Outcome {
    /// The verdict that is counted.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Fast(verdict)
            | Self::Pass(verdict)
            | Self::PassPlain(verdict)
            | Self::Refuse(verdict) => verdict,
            Self::Remember(_) => Verdict::Remembered,
        }
    }
}

use Outcome::{Fast, Pass, PassPlain, Refuse, Remember};

/// A packet at a hook of a made-up node.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub hook: Hook,
    pub world: World,
    pub frame: Vec<u8>,
    pub ifindex: u32,
    pub gso_size: u32,
    pub vlan: Option<u16>,
    /// Whether a program of ours handed it over as plain pod-to-pod traffic.
    pub plain: bool,
    pub want: Outcome,
}

impl Case {
    pub fn new(hook: Hook, name: &'static str, frame: Vec<u8>, want: Outcome) -> Self {
        Self {
            name,
            hook,
            world: World::new(),
            frame,
            ifindex: match hook {
                Hook::NetIn | Hook::NetXdp => NIC,
                Hook::PodIn | Hook::PodOut | Hook::VtepOut => VETH_A,
            },
            gso_size: 0,
            vlan: None,
            plain: false,
            want,
        }
    }

    fn world(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self
    }

    fn at(self, ifindex: u32) -> Self {
        Self { ifindex, ..self }
    }

    fn segments(self, gso_size: u32) -> Self {
        Self { gso_size, ..self }
    }

    fn tag(self, tag: u16) -> Self {
        Self {
            vlan: Some(tag),
            ..self
        }
    }

    fn plain(self) -> Self {
        Self {
            plain: true,
            ..self
        }
    }

    /// The same packet before there is a socket buffer: refused there if and only if it would be later.
    ///
    /// There is no super-packet yet, and no tag that shows.
    pub fn early(&self) -> Option<Self> {
        let exists = self.hook == Hook::NetIn && self.gso_size == 0 && self.vlan.is_none();
        exists.then(|| Self {
            hook: Hook::NetXdp,
            want: match self.want {
                Refuse(verdict) => Refuse(verdict),
                _ => Pass(Verdict::Passed),
            },
            ..self.clone()
        })
    }

    /// The packet as the decision sees it.
    pub fn packet(&self) -> Frame<'_> {
        let mut packet = Frame::new(&self.frame);
        packet.gso_size = self.gso_size;
        packet.vlan = self.vlan;
        packet.to_this_host = self.frame.starts_with(&NIC_MAC);
        packet.ifindex = self.ifindex;
        packet
    }

    /// What the decision says.
    pub fn decide(&self) -> Outcome {
        let packet = self.packet();
        let passed = |pass: overlay_common::decide::Pass| {
            if pass.plain {
                PassPlain(pass.verdict)
            } else {
                Pass(pass.verdict)
            }
        };
        match self.hook {
            Hook::PodIn => match from_pod::<V4, _, _>(&packet, &self.world) {
                FromPod::Redirect(_) => Fast(Verdict::Redirected),
                FromPod::Encapsulate { .. } => Fast(Verdict::Encapsulated),
                FromPod::Pass(pass) => passed(pass),
                FromPod::Refuse(verdict) => Refuse(verdict),
            },
            Hook::NetIn => match from_network::<V4, _, _>(&packet, &self.world) {
                FromNetwork::Decapsulate { .. } => Fast(Verdict::Decapsulated),
                FromNetwork::Pass(pass) => passed(pass),
                FromNetwork::Refuse(verdict) => Refuse(verdict),
            },
            Hook::NetXdp => match refused_early::<V4, _, _>(&packet, &self.world) {
                Some(verdict) => Refuse(verdict),
                None => Pass(Verdict::Passed),
            },
            Hook::PodOut | Hook::VtepOut => {
                match leaving::<V4, _, _>(&packet, &self.world, self.hook, self.plain) {
                    Leaving::Remember(key) => Remember(key),
                    Leaving::Pass(verdict) => Pass(verdict),
                }
            }
        }
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = [
        honest_pod::cases(),
        spoofing_pod::cases(),
        honest_network::cases(),
        forging_network::cases(),
        leaving::cases(),
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
