//! A packet's visit to a hook, and how it ends.

use overlay_common::decide::{
    FromNetwork, FromPod, Leaving, Tables, from_network, from_pod, leaving, refused_early,
};
use overlay_common::packet::{Frame, Packet};
use overlay_common::schema::FlowKey;
use overlay_common::{Hook, V4, Verdict};

use super::world::NIC_MAC;

/// A packet at a hook, with the kernel's notes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub ifindex: u32,
    pub gso_size: u32,
    pub vlan: Option<u16>,
    /// The mark with which a program of ours handed it over as plain pod-to-pod traffic, else zero.
    pub handed_over: u16,
}

impl Visit {
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
    pub fn decide(&self, tables: &impl Tables<V4>) -> Outcome {
        self.decide_as(&self.packet(), tables)
    }

    /// What the decision says, with something between it and the packet.
    pub fn decide_as(&self, packet: &impl Packet, tables: &impl Tables<V4>) -> Outcome {
        let passed = |pass: overlay_common::decide::Pass| {
            if pass.plain.is_some() {
                Outcome::PassPlain(pass.verdict)
            } else {
                Outcome::Pass(pass.verdict)
            }
        };
        match self.hook {
            Hook::PodIn => match from_pod::<V4, _, _>(packet, tables) {
                FromPod::Redirect(_) => Outcome::Fast(Verdict::Redirected),
                FromPod::Encapsulate { .. } => Outcome::Fast(Verdict::Encapsulated),
                FromPod::Route { .. } => Outcome::Fast(Verdict::Routed),
                FromPod::Pass(pass) => passed(pass),
                FromPod::Refuse(verdict) => Outcome::Refuse(verdict),
            },
            Hook::NetIn => match from_network::<V4, _, _>(packet, tables) {
                FromNetwork::Decapsulate { .. } => Outcome::Fast(Verdict::Decapsulated),
                FromNetwork::Deliver { .. } => Outcome::Fast(Verdict::Redirected),
                FromNetwork::Pass(pass) => passed(pass),
                FromNetwork::Refuse(verdict) => Outcome::Refuse(verdict),
            },
            Hook::NetXdp => match refused_early::<V4, _, _>(packet, tables) {
                Some(verdict) => Outcome::Refuse(verdict),
                None => Outcome::Pass(Verdict::Passed),
            },
            Hook::PodOut | Hook::VtepOut => {
                match leaving::<V4, _, _>(packet, tables, self.hook, self.handed_over) {
                    Leaving::Remember(key) => Outcome::Remember(key),
                    Leaving::Pass(verdict) => Outcome::Pass(verdict),
                }
            }
        }
    }
}

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
