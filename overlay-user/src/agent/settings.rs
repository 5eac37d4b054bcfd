//! Settings that do not change while the agent runs.

use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::backend::{self, Backend};
use crate::config::flags::StoreKind;
use crate::config::{AgentFlags, NetworkConfig};
use crate::datapath::pins::Pins;
use crate::kernel::interface::Criteria;
use crate::store::{self, Location, Store, etcd, kube};

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

/// Opens the store that the flags describe.
///
/// # Errors
/// [`store::Error::Options`] if the flags make no sense; nothing is asked of the store yet.
pub fn open_store(flags: &AgentFlags) -> Result<Store, store::Error> {
    let (ttl, renew_every) = (flags.store.lease_ttl, flags.store.renew_every());
    Store::open(location(flags), ttl, renew_every)
}

/// The file in which the agent remembers the content of a store that may not answer when the next
/// agent starts.
#[must_use]
pub fn memory(flags: &AgentFlags) -> PathBuf {
    flags.node.run_dir.join("nodes.json")
}

/// The store that the flags describe.
fn location(agent: &AgentFlags) -> Location {
    let flags = &agent.store;
    let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match flags.kind() {
        StoreKind::Dir(path) => Location::Dir(path.clone()),
        StoreKind::Kube => Location::Kube(kube::Options {
            api_url: text(&flags.kube.kube_api_url),
            kubeconfig: file(&flags.kube.kubeconfig_file),
            annotation_prefix: flags.kube.kube_annotation_prefix.clone(),
            config_path: flags.kube.net_config_path.clone(),
            identity: kube::Identity::from_env(),
            memory: Some(memory(agent)),
        }),
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
    use std::path::Path;

    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    fn flags(args: &[&str]) -> AgentFlags {
        let command = AgentFlags::augment_args(Command::new("overlayd"));
        let args = std::iter::once("overlayd").chain(args.iter().copied());
        AgentFlags::from_arg_matches(&command.get_matches_from(args)).expect("flags")
    }

    fn located(args: &[&str]) -> Location {
        location(&flags(args))
    }

    #[test]
    fn the_underlays_device_is_chosen_by_all_flags_about_it() {
        let criteria = criteria(&flags(&[
            "--iface=eth1",
            "--iface-regex=^ens",
            "--iface-can-reach=192.0.2.1",
            "--public-ip=192.0.2.7",
        ]));
        assert_eq!(criteria.interfaces, ["eth1"]);
        assert_eq!(criteria.regexes.len(), 1);
        assert_eq!(criteria.can_reach, Some([192, 0, 2, 1].into()));
        assert_eq!(criteria.public_address, Some([192, 0, 2, 7].into()));
    }

    #[test]
    fn kubernetes_is_asked_for_in_two_ways() {
        for flag in ["--kube-subnet-mgr", "--store=kube"] {
            let Location::Kube(options) = located(&[flag, "--kube-api-url=https://x"]) else {
                panic!("{flag} means Kubernetes")
            };
            assert_eq!(options.api_url.as_deref(), Some("https://x"));
            assert_eq!(options.kubeconfig, None);
            let memory = options.memory.as_deref();
            assert_eq!(memory, Some(Path::new("/run/overlay/nodes.json")));
            assert_eq!(options.annotation_prefix, "flannel.alpha.coreos.com");
            let path = options.config_path.as_path();
            assert_eq!(path, "/etc/kube-flannel/net-conf.json");
        }
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
