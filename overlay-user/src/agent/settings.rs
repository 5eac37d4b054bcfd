//! What does not change while the agent runs.

use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::flags::{StoreFlags, StoreKind};
use crate::config::{AgentFlags, NetworkConfig};
use crate::datapath::pins::Pins;
use crate::kernel::interface::Criteria;
use crate::store::{self, Location, Store, etcd};

/// Flags and the network's configuration, and what follows from them alone.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The flags.
    pub flags: AgentFlags,
    /// The network's configuration, as read at the start.
    pub config: NetworkConfig,
    /// How the underlay's device is chosen.
    pub criteria: Criteria,
    /// Name of the VXLAN device.
    pub device: String,
    /// The pins of the fast path.
    pub pins: Pins,
}

impl Settings {
    /// What follows from the flags and the configuration.
    #[must_use]
    pub fn new(flags: &AgentFlags, config: NetworkConfig) -> Self {
        Self {
            flags: flags.clone(),
            criteria: criteria(flags),
            device: format!("flannel.{}", config.vxlan.vni),
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

/// Opens the store that the flags describe.
///
/// # Errors
/// [`store::Error::Options`] if the flags make no sense; nothing is asked of the store yet.
pub fn open_store(flags: &StoreFlags) -> Result<Store, store::Error> {
    Store::open(location(flags), flags.lease_ttl, flags.renew_every())
}

/// Where the flags say that leases live.
fn location(flags: &StoreFlags) -> Location {
    let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
    match &flags.store {
        StoreKind::Dir(path) => Location::Dir(path.clone()),
        StoreKind::Etcd => Location::Etcd(etcd::Options {
            endpoints: flags.etcd_endpoints.clone(),
            prefix: flags.etcd_prefix.clone(),
            key_file: file(&flags.etcd_keyfile),
            cert_file: file(&flags.etcd_certfile),
            ca_file: file(&flags.etcd_cafile),
            user: (!flags.etcd_username.is_empty())
                .then(|| (flags.etcd_username.clone(), flags.etcd_password.clone())),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    fn located(args: &[&str]) -> Location {
        let command = AgentFlags::augment_args(Command::new("overlayd"));
        let args = std::iter::once("overlayd").chain(args.iter().copied());
        let flags = AgentFlags::from_arg_matches(&command.get_matches_from(args)).expect("flags");
        location(&flags.store)
    }

    #[test]
    fn the_store_is_described_and_the_password_hidden() {
        let location = located(&[
            "--etcd-username=u",
            "--etcd-password=hunter2",
            "--etcd-cafile=/ca.pem",
        ]);
        assert!(!format!("{location:?}").contains("hunter2"));
        let Location::Etcd(options) = location else {
            panic!("etcd is the default")
        };
        assert_eq!(options.ca_file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(options.cert_file, None);
        assert_eq!(options.user.expect("a user").1.reveal(), "hunter2");
        let location = located(&["--store", "dir:/srv/overlay"]);
        assert!(matches!(location, Location::Dir(path) if path.as_path() == "/srv/overlay"));
    }
}
