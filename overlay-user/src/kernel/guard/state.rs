//! The guard's input, and the rules and set elements made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::shared_map::SharedMap;

/// Outer addresses, each with the subnets that may send from behind it.
pub type Sources = SharedMap<Ipv4Addr, BTreeSet<Ipv4Net>>;

/// The guard's input.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardState {
    /// The whole overlay.
    pub network: Ipv4Net,
    /// The subnet of this node.
    pub own_subnet: Ipv4Net,
    /// The outer address of this node.
    pub own_vtep: Ipv4Addr,
    /// Index of the underlay's device, by which packets of peers arrive most often.
    pub underlay: u32,
    /// Name of the VXLAN device; `None` where the backend makes none, and then there are no rules
    /// for VXLAN.
    pub vxlan: Option<String>,
    /// Name of the NIC, where packets of peers' pods arrive there without encapsulation.
    pub nic: Option<String>,
    /// Name of the bridge of the pods.
    pub bridge: String,
    /// UDP port of VXLAN, host byte order.
    pub port: u16,
    /// Our VNI.
    pub vni: u32,
    /// VNIs of other devices that share the port; the guard does not judge their packets.
    pub other_vnis: BTreeSet<u32>,
    /// Every peer with the subnets that it may send from.
    pub peers: Sources,
    /// Host device of every pod with an address that it may send from. A pod with two attachments
    /// may send from the address of either through both.
    pub pods: BTreeSet<(String, Ipv4Addr)>,
    /// The host devices of pods on which eBPF programs judge every frame, so that the guard need
    /// not; `None` where programs cannot run.
    pub judged: Option<BTreeSet<String>>,
    /// Whether netfilter translates this node's packets anyway (`--ip-masq`): then the first packet
    /// of a connection decides on the destination of all others.
    pub translates: bool,
    /// Whether pods may have connections that connection tracking has not seen, because programs
    /// carry such connections or carried them earlier.
    pub has_untracked: bool,
    /// The time after the last [`Guard::renew`](super::Guard::renew) for which the rules trust the
    /// list of leases.
    pub lapse: Duration,
}

/// The part of the input that the rules depend on. While the shape is the same, only elements of
/// sets change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub network: Ipv4Net,
    pub own_subnet: Ipv4Net,
    pub own_vtep: Ipv4Addr,
    pub underlay: u32,
    pub vxlan: Option<String>,
    pub nic: Option<String>,
    pub bridge: String,
    pub port: u16,
    pub vni: u32,
    pub other_vnis: BTreeSet<u32>,
    pub translates: bool,
    /// Whether there are, or may be at any moment, pods for the bridge table to judge.
    pub has_ports: bool,
    pub has_untracked: bool,
    pub lapse: Duration,
}

/// A named set of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// Outer addresses of the peers.
    Vteps,
    /// Outer addresses of the peers and this node's own.
    Nodes,
    /// Outer address with inner network, for subnets of this prefix length. Such a set is a hash: a
    /// change costs the same at any size, which a set of intervals cannot offer (pipapo copies
    /// itself for each transaction, `net/netfilter/nft_set_pipapo.c`).
    Sources(u8),
    /// Our port, as long as an agent keeps the list of leases up to date.
    Kept,
    /// The bridge ports to judge.
    Ports,
    /// Bridge port with address.
    Pods,
}

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TableFamily {
    Ip,
    Bridge,
}

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    Address(Ipv4Addr),
    Source(Ipv4Addr, Ipv4Addr),
    Service(u16),
    Device(String),
    Pod(String, Ipv4Addr),
}

/// Elements by set.
pub(super) type Elements = BTreeMap<Set, BTreeSet<Element>>;

/// The input of the guard's sets, in a form that is cheap to compare.
#[derive(Clone, Debug, Default)]
pub(super) struct SetContents {
    peers: Sources,
    /// The elements of [`Set::Ports`] and [`Set::Pods`].
    pods: Elements,
}

/// The changes of one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub removed: Elements,
    pub added: Elements,
}

impl GuardState {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            network: self.network,
            own_subnet: self.own_subnet,
            own_vtep: self.own_vtep,
            underlay: self.underlay,
            vxlan: self.vxlan.clone(),
            nic: self.nic.clone(),
            bridge: self.bridge.clone(),
            port: self.port,
            vni: self.vni,
            other_vnis: self.other_vnis.clone(),
            translates: self.translates,
            has_ports: self.judged.is_none() || self.unjudged().next().is_some(),
            has_untracked: self.has_untracked,
            lapse: self.lapse,
        }
    }

    pub(super) fn contents(&self) -> SetContents {
        let mut pods = Elements::new();
        let mut add = |set, element| pods.entry(set).or_default().insert(element);
        for (device, address) in self.unjudged() {
            add(Set::Ports, Element::Device(device.clone()));
            add(Set::Pods, Element::Pod(device.clone(), *address));
        }
        let tunnel = self.vxlan.as_ref();
        let peers = tunnel.map_or_else(Sources::default, |_| self.peers.clone());
        SetContents { peers, pods }
    }

    /// The pods that no program judges. A device whose name cannot be quoted is left out, because
    /// such a name must not leave all other pods unguarded.
    fn unjudged(&self) -> impl Iterator<Item = &(String, Ipv4Addr)> {
        self.pods
            .iter()
            .filter(|(device, _)| !self.is_judged(device) && is_plain(device))
    }

    /// The devices that the guard should judge but whose names it cannot quote.
    pub(super) fn unnameable(&self) -> impl Iterator<Item = &str> {
        let devices = self.pods.iter().map(|(device, _)| device.as_str());
        devices.filter(|device| !self.is_judged(device) && !is_plain(device))
    }

    fn is_judged(&self, device: &str) -> bool {
        self.judged
            .as_ref()
            .is_some_and(|judged| judged.contains(device))
    }
}

impl SetContents {
    /// All elements.
    pub(super) fn elements(&self, shape: &Shape) -> Elements {
        let mut elements = self.pods.clone();
        if shape.vxlan.is_some() {
            let own = Element::Address(shape.own_vtep);
            elements.entry(Set::Nodes).or_default().insert(own);
        }
        for (vtep, subnets) in self.peers.iter() {
            extend(&mut elements, of_peer(*vtep, subnets));
        }
        elements
    }

    /// Forgets the elements that a set of pods does not contain any more, because another process
    /// has removed them.
    pub(super) fn keep(&mut self, set: Set, there: &BTreeSet<Vec<u8>>) {
        if let Some(elements) = self.pods.get_mut(&set) {
            elements.retain(|element| there.contains(&element.key()));
        }
    }
}

fn of_peer(vtep: Ipv4Addr, subnets: &BTreeSet<Ipv4Net>) -> Elements {
    let mut elements = Elements::new();
    let mut add = |set, element| elements.entry(set).or_default().insert(element);
    for subnet in subnets {
        add(Set::Vteps, Element::Address(vtep));
        add(Set::Nodes, Element::Address(vtep));
        let source = Element::Source(vtep, subnet.network());
        add(Set::Sources(subnet.prefix_len()), source);
    }
    elements
}

fn extend(elements: &mut Elements, more: Elements) {
    for (set, more) in more {
        elements.entry(set).or_default().extend(more);
    }
}

/// The prefix lengths that have sets of sources.
pub(super) fn lengths(elements: &Elements) -> impl Iterator<Item = u8> {
    elements.keys().filter_map(|set| match set {
        Set::Sources(length) => Some(*length),
        _ => None,
    })
}

impl Set {
    pub(super) fn family(self) -> TableFamily {
        match self {
            Self::Vteps | Self::Nodes | Self::Sources(_) | Self::Kept => TableFamily::Ip,
            Self::Ports | Self::Pods => TableFamily::Bridge,
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Vteps => "vteps".into(),
            Self::Nodes => "nodes".into(),
            Self::Sources(length) => format!("sources_{length}"),
            Self::Kept => "kept".into(),
            Self::Ports => "ports".into(),
            Self::Pods => "pods".into(),
        }
    }
}

impl Element {
    /// The key in the kernel's form: network byte order, device names in 16 bytes.
    pub(super) fn key(&self) -> Vec<u8> {
        let device = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        };
        match self {
            Self::Address(address) => address.octets().into(),
            Self::Source(vtep, network) => [vtep.octets(), network.octets()].concat(),
            Self::Service(port) => port.to_be_bytes().into(),
            Self::Device(name) => device(name),
            Self::Pod(name, address) => [device(name), address.octets().into()].concat(),
        }
    }
}

/// The form that `nft` reads.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Source(vtep, network) => write!(f, "{vtep} . {:#010x}", network.to_bits()),
            Self::Service(port) => write!(f, "{port}"),
            Self::Device(name) => write!(f, "\"{name}\""),
            Self::Pod(name, address) => write!(f, "\"{name}\" . {address}"),
        }
    }
}

impl Delta {
    /// The cost depends on the differences alone.
    pub(super) fn between(old: &SetContents, new: &SetContents) -> Self {
        let mut delta = Self {
            removed: missing(&old.pods, &new.pods),
            added: missing(&new.pods, &old.pods),
        };
        for it in new.peers.differences(&old.peers) {
            let elements = |subnets: Option<_>| {
                subnets.map_or_else(Elements::new, |subnets| of_peer(*it.key, subnets))
            };
            let (before, now) = (elements(it.before), elements(it.now));
            extend(&mut delta.removed, missing(&before, &now));
            extend(&mut delta.added, missing(&now, &before));
        }
        delta
    }

    /// Number of elements that change.
    pub(super) fn len(&self) -> usize {
        let sets = self.removed.values().chain(self.added.values());
        sets.map(BTreeSet::len).sum()
    }
}

/// The elements of `these` that are not in `those`.
fn missing(these: &Elements, those: &Elements) -> Elements {
    let none = BTreeSet::new();
    let of = |(set, elements): (&Set, &BTreeSet<Element>)| {
        let there = those.get(set).unwrap_or(&none);
        let missing: BTreeSet<_> = elements.difference(there).cloned().collect();
        (!missing.is_empty()).then_some((*set, missing))
    };
    these.iter().filter_map(of).collect()
}

/// Whether `nft` can quote a device's name: strings of `nft` have no escapes, and a final asterisk
/// is a wildcard there.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*');
    !name.is_empty() && name.len() <= 15 && name.bytes().all(plain)
}

#[cfg(test)]
pub(super) mod tests;
