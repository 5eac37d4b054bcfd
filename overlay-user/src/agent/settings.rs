//! What does not change while the agent runs.

use std::sync::Arc;

use ipnet::IpNet;

use crate::backend::{self, Backend};
use crate::config::{AgentFlags, NetworkConfig};
use crate::datapath::pins::Pins;
use crate::kernel::interface::Criteria;

/// Flags and the network's configuration, and what follows from them alone.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The flags.
    pub flags: AgentFlags,
    /// The network's configuration, as read at the start.
    pub config: NetworkConfig,
    /// How the underlay's device is chosen.
    pub criteria: Criteria,
    /// How packets get to other nodes.
    pub backend: Arc<dyn Backend>,
    /// Name of the device that the backend makes, if it makes one.
    pub device: Option<String>,
    /// The pins of the fast path.
    pub pins: Pins,
}

impl Settings {
    /// What follows from the flags and the configuration.
    #[must_use]
    pub fn new(flags: &AgentFlags, config: NetworkConfig) -> Self {
        let backend = backend::of(&config.backend);
        Self {
            flags: flags.clone(),
            criteria: criteria(flags),
            device: backend.device(),
            backend,
            pins: pins(flags),
            config,
        }
    }

    /// The whole overlay.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.config.network()
    }
}

/// The pins below the BPF file system that the flags name.
#[must_use]
pub fn pins(flags: &AgentFlags) -> Pins {
    Pins::new(flags.node.bpffs.join("overlay"))
}

/// How the flags choose the underlay's device.
#[must_use]
pub fn criteria(flags: &AgentFlags) -> Criteria {
    Criteria {
        interfaces: flags.underlay.iface.clone(),
        regexes: flags.underlay.iface_regex.clone(),
        can_reach: flags.underlay.iface_can_reach,
        public_address: flags.underlay.public_ip.map(Into::into),
    }
}
