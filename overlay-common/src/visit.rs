//! A packet's visit to a hook: the decision's outcome, and the values that the decision reads.

use std::vec::Vec;

use crate::decide::{
    FromNetwork, FromPod, Leaving, Pass, Tables, from_network, from_pod, leaving, refused_early,
    sending,
};
use crate::family::Family;
use crate::packet::{Frame, Packet};
use crate::schema::{Config, Endpoint, FlowKey, PeerEntry, PodEntry};
use crate::verdict::{Hook, Verdict};

/// A packet at a hook, with the kernel's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The hook of the program that sees the packet.
    pub hook: Hook,
    /// The frame from the Ethernet header on.
    pub frame: Vec<u8>,
    /// The interface that the program is attached to.
    pub ifindex: u32,
    /// MAC address of that interface: a frame with this destination is for this host.
    pub device_mac: [u8; 6],
    /// See [`Packet::gso_size`].
    pub gso_size: u32,
    /// See [`Packet::vlan`].
    pub vlan: Option<u16>,
    /// The mark with which a program of ours handed the packet over as plain pod-to-pod traffic,
    /// else zero.
    pub handed_over: u16,
}

impl Visit {
    /// The decision's view of the packet.
    #[must_use]
    pub fn packet(&self) -> Frame<'_> {
        let mut packet = Frame::new(&self.frame);
        packet.gso_size = self.gso_size;
        packet.vlan = self.vlan;
        packet.to_this_host = self.frame.starts_with(&self.device_mac);
        packet.ifindex = self.ifindex;
        packet
    }

    /// The decision's outcome.
    pub fn decide<F: Family, O: Family>(&self, tables: &impl Tables<F, O>) -> Outcome<F> {
        self.decide_as(&self.packet(), tables)
    }

    /// The decision's outcome, and every value that the decision reads, in order.
    pub fn watch<F: Family, O: Family>(
        &self,
        tables: &impl Tables<F, O>,
        note: impl Fn(Question<F, O>),
    ) -> Outcome<F> {
        let packet = self.packet();
        self.decide_as(&Watched(&packet, &note), &Watched(tables, &note))
    }

    fn decide_as<F: Family, O: Family>(
        &self,
        packet: &impl Packet,
        tables: &impl Tables<F, O>,
    ) -> Outcome<F> {
        match self.hook {
            Hook::PodIn => match from_pod(packet, tables) {
                FromPod::Redirect(_) => Outcome::Fast(Verdict::Redirected),
                FromPod::Encapsulate { .. } => Outcome::Fast(Verdict::Encapsulated),
                FromPod::Route { .. } => Outcome::Fast(Verdict::Routed),
                FromPod::Pass(pass) => pass.into(),
                FromPod::Refuse(verdict) => Outcome::Refuse(verdict),
            },
            Hook::NetIn => match from_network(packet, tables) {
                FromNetwork::Decapsulate { .. } => Outcome::Fast(Verdict::Decapsulated),
                FromNetwork::Deliver { .. } => Outcome::Fast(Verdict::Redirected),
                FromNetwork::HandIn { pass, .. } => Outcome::HandIn(pass.verdict),
                FromNetwork::Pass(pass) => pass.into(),
                FromNetwork::Refuse(verdict) => Outcome::Refuse(verdict),
            },
            Hook::NetXdp => match refused_early(packet, tables) {
                Some(verdict) => Outcome::Refuse(verdict),
                None => Outcome::Pass(Verdict::Passed),
            },
            Hook::PodOut => leaving(packet, tables, self.hook, self.handed_over).into(),
            Hook::VtepOut => {
                let sending = sending(packet, tables, self.handed_over);
                match (sending.tunnel, sending.leaving) {
                    (None, leaving) => leaving.into(),
                    (Some(_), Leaving::Remember(key)) => Outcome::Send(Some(key)),
                    (Some(_), Leaving::Pass(_)) => Outcome::Send(None),
                }
            }
        }
    }
}

/// The outcome of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<F: Family> {
    /// The fast path carries the packet.
    Fast(Verdict),
    /// The kernel gets the packet, and may translate it.
    Pass(Verdict),
    /// The kernel gets the packet as plain pod-to-pod traffic.
    PassPlain(Verdict),
    /// The kernel's IP stack gets the packet by the VXLAN device, but without its tunnel.
    HandIn(Verdict),
    /// The packet is dropped.
    Refuse(Verdict),
    /// The packet leaves, and the stack owns the packet's flow.
    Remember(FlowKey<F>),
    /// The packet leaves encapsulated; the stack owns the given flow, if any.
    Send(Option<FlowKey<F>>),
}

impl<F: Family> Outcome<F> {
    /// The flow that is remembered as the stack's.
    #[must_use]
    pub fn remembered(self) -> Option<FlowKey<F>> {
        match self {
            Self::Remember(key) | Self::Send(Some(key)) => Some(key),
            _ => None,
        }
    }

    /// The verdict that is counted.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Fast(verdict)
            | Self::Pass(verdict)
            | Self::PassPlain(verdict)
            | Self::HandIn(verdict)
            | Self::Refuse(verdict) => verdict,
            Self::Remember(_) => Verdict::Remembered,
            Self::Send(_) => Verdict::EncapsulatedForStack,
        }
    }
}

impl<F: Family> From<Leaving<F>> for Outcome<F> {
    fn from(leaving: Leaving<F>) -> Self {
        match leaving {
            Leaving::Remember(key) => Self::Remember(key),
            Leaving::Pass(verdict) => Self::Pass(verdict),
        }
    }
}

impl<F: Family> From<Pass> for Outcome<F> {
    fn from(pass: Pass) -> Self {
        match pass.plain {
            Some(_) => Self::PassPlain(pass.verdict),
            None => Self::Pass(pass.verdict),
        }
    }
}

/// A value that the decision reads from the packet or the tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Question<F: Family, O: Family = F> {
    /// Whether there are bytes of the packet from this offset on.
    Load(u32, bool),
    /// [`Packet::frame_len`].
    FrameLen(u32),
    /// [`Packet::gso_size`].
    GsoSize(u32),
    /// [`Packet::vlan`].
    Vlan(Option<u16>),
    /// [`Packet::to_this_host`].
    ToThisHost(bool),
    /// [`Tables::config`].
    Config(Option<Config<F, O>>),
    /// [`Tables::endpoint`] of this interface.
    Endpoint(u32, Option<Endpoint<F>>),
    /// [`Tables::pod`] with this address.
    Pod(F::Addr, Option<PodEntry>),
    /// [`Tables::peer`] with this subnet.
    Peer(F::Addr, Option<PeerEntry<O>>),
    /// [`Tables::has_device`] with this index.
    Device(u32, bool),
    /// [`Tables::is_vtep`] of this address.
    Vtep(O::Addr, bool),
    /// [`Tables::is_stack_owned`] of this flow.
    StackOwned(FlowKey<F>, bool),
    /// [`Tables::leases_are_stale`].
    LeasesAreStale(bool),
}

/// A packet or tables whose answers are recorded.
struct Watched<'a, F: Family, O: Family, T>(&'a T, &'a dyn Fn(Question<F, O>));

impl<F: Family, O: Family, P: Packet> Packet for Watched<'_, F, O, P> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let words = self.0.load(offset);
        (self.1)(Question::Load(offset, words.is_some()));
        words
    }

    fn frame_len(&self) -> u32 {
        let len = self.0.frame_len();
        (self.1)(Question::FrameLen(len));
        len
    }

    fn gso_size(&self) -> u32 {
        let size = self.0.gso_size();
        (self.1)(Question::GsoSize(size));
        size
    }

    fn vlan(&self) -> Option<u16> {
        let tag = self.0.vlan();
        (self.1)(Question::Vlan(tag));
        tag
    }

    fn to_this_host(&self) -> bool {
        let is_ours = self.0.to_this_host();
        (self.1)(Question::ToThisHost(is_ours));
        is_ours
    }

    fn ifindex(&self) -> u32 {
        self.0.ifindex()
    }
}

impl<F: Family, O: Family, T: Tables<F, O>> Tables<F, O> for Watched<'_, F, O, T> {
    fn config(&self) -> Option<&Config<F, O>> {
        let config = self.0.config();
        (self.1)(Question::Config(config.copied()));
        config
    }

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint<F>> {
        let endpoint = self.0.endpoint(ifindex);
        (self.1)(Question::Endpoint(ifindex, endpoint.copied()));
        endpoint
    }

    fn pod(&self, address: F::Addr) -> Option<&PodEntry> {
        let pod = self.0.pod(address);
        (self.1)(Question::Pod(address, pod.copied()));
        pod
    }

    fn peer(&self, subnet: F::Addr) -> Option<&PeerEntry<O>> {
        let peer = self.0.peer(subnet);
        (self.1)(Question::Peer(subnet, peer.copied()));
        peer
    }

    fn has_device(&self, ifindex: u32) -> bool {
        let is_there = self.0.has_device(ifindex);
        (self.1)(Question::Device(ifindex, is_there));
        is_there
    }

    fn is_vtep(&self, address: O::Addr) -> bool {
        let is_known = self.0.is_vtep(address);
        (self.1)(Question::Vtep(address, is_known));
        is_known
    }

    fn is_stack_owned(&self, flow: &FlowKey<F>) -> bool {
        let is_owned = self.0.is_stack_owned(flow);
        (self.1)(Question::StackOwned(*flow, is_owned));
        is_owned
    }

    fn leases_are_stale(&self) -> bool {
        let are_stale = self.0.leases_are_stale();
        (self.1)(Question::LeasesAreStale(are_stale));
        are_stale
    }
}
