//! The compared variants of carrying packets.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use overlay_tests::BackendKind;
use serde::{Serialize, Serializer};

use super::class::Class;
use super::measure::Measure;
use super::underlay::Underlay;

/// Flags of an agent whose pods' traffic eBPF programs carry, or the kernel does.
pub const FAST_PATH_ON: &str = "--fast-path=auto";
pub const FAST_PATH_OFF: &str = "--fast-path=off";
/// The flag of an agent that leaves Services to kube-proxy.
const SERVICES_OFF: &str = "--services=off";

/// A way for packets, in the order that a round takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Variant {
    /// Two hosts without overlay or packet filter: the limit.
    Host,
    /// flannel's kernel state, set up by hand: what is replaced.
    FlannelPlain,
    /// A real flanneld in overlayd's place.
    Flannel,
    /// Our kernel path with the packet filter as deployed.
    Kernel,
    /// The same with kube-proxy's rules of 100 Services on each node.
    #[value(name = "kernel+services")]
    KernelServices,
    /// The fast path.
    Overlay,
    /// The fast path, Services left to kube-proxy's rules.
    ServicesOff,
    /// Our kernel path without encapsulation (host-gw), with the packet filter as deployed.
    HostGwKernel,
    /// The fast path without encapsulation (host-gw).
    HostGw,
    /// The fast path, super-packets from the network left to the kernel's VXLAN device.
    AggregatesToKernel,
    /// The fast path without the check that an inner source is the sender's.
    WithoutInnerSource,
    /// The fast path without the check for flows that the IP stack owns.
    WithoutStackOwned,
    /// The fast path without the check of IP header checksums.
    WithoutHeaderChecksums,
    /// The fast path without counters.
    WithoutCounters,
    /// The fast path without prepared next hops: the kernel looks the neighbour up for every
    /// packet.
    WithoutPreparedNextHop,
    /// The fast path without the short cut past the flow table while it is empty.
    WithoutFlowNews,
}

/// The software that runs on a variant's two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Nothing: bare hosts.
    Bare,
    /// flannel's kernel state and no agent.
    Plain,
    /// The agent with a flag.
    Agent(&'static str),
    /// The agent with the kernel path, and kube-proxy's rules.
    Services,
    /// A flanneld, on the state that the agent has set up.
    Flannel,
    /// The agent with eBPF programs that were built with a feature.
    Programs(String),
}

impl Variant {
    /// The name on the command line and in every output.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn recipe(self) -> Recipe {
        match self {
            Self::Host => Recipe::Bare,
            Self::FlannelPlain => Recipe::Plain,
            Self::Kernel => Recipe::Agent(FAST_PATH_OFF),
            Self::KernelServices => Recipe::Services,
            Self::Flannel => Recipe::Flannel,
            Self::HostGwKernel => Recipe::Agent(FAST_PATH_OFF),
            Self::Overlay | Self::HostGw => Recipe::Agent(FAST_PATH_ON),
            Self::ServicesOff => Recipe::Agent(SERVICES_OFF),
            Self::AggregatesToKernel => Recipe::Agent("--aggregates=kernel"),
            Self::WithoutInnerSource
            | Self::WithoutStackOwned
            | Self::WithoutHeaderChecksums
            | Self::WithoutCounters
            | Self::WithoutPreparedNextHop
            | Self::WithoutFlowNews => Recipe::Programs(self.name()),
        }
    }

    /// The backend of the variant.
    pub fn backend(self) -> BackendKind {
        match self {
            Self::HostGwKernel | Self::HostGw => BackendKind::HostGw,
            _ => BackendKind::Vxlan,
        }
    }

    /// Whether a measure can distinguish the variant from others: a cost per packet is not visible
    /// in bulk, and the treatment of super-packets is visible there only.
    pub fn shows(self, measure: Measure, underlay: Underlay, class: Class) -> bool {
        use Measure::{Bulk, Bulk4, BulkOneCore, TcpRr, Udp64, UdpRr};
        match self.recipe() {
            Recipe::Bare => class.is_across(),
            Recipe::Programs(_) => {
                (underlay, class) == (Underlay::Super, Class::Direct)
                    && matches!(measure, TcpRr | UdpRr | Udp64)
            }
            Recipe::Agent(_) if self.backend() == BackendKind::HostGw => class == Class::Direct,
            Recipe::Agent(_) if self == Self::ServicesOff => class.needs_services(),
            Recipe::Agent(_) if self == Self::AggregatesToKernel => {
                class == Class::Direct && matches!(measure, Bulk | Bulk4 | BulkOneCore)
            }
            Recipe::Plain | Recipe::Agent(_) | Recipe::Services | Recipe::Flannel => true,
        }
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// The variants to measure, and why others are left out.
pub fn choose(
    only: &[Variant],
    quick: bool,
    flanneld: Option<&Path>,
) -> Result<(Vec<Variant>, Vec<String>)> {
    let mut skipped = Vec::new();
    let mut chosen: Vec<Variant> = if only.is_empty() {
        let all = Variant::value_variants();
        let quickly = |variant: &&Variant| !quick || **variant <= Variant::Overlay;
        all.iter().filter(quickly).copied().collect()
    } else {
        only.to_vec()
    };
    chosen.sort_unstable();
    chosen.dedup();
    match flanneld {
        Some(path) => ensure!(path.is_file(), "{} is no program", path.display()),
        None if only.contains(&Variant::Flannel) => bail!("flannel needs --flanneld PATH"),
        None if chosen.contains(&Variant::Flannel) => {
            skipped.push("flannel: no --flanneld PATH was given".to_owned());
            chosen.retain(|variant| *variant != Variant::Flannel);
        }
        None => {}
    }
    Ok((chosen, skipped))
}
