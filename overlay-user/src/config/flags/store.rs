//! Flags about the store: where it is, and how long a lease in it lasts.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::config::duration::parse_duration;
use crate::config::go_flags::go_bool;
use crate::config::secret::{ETCD_PASSWORD_ENV, Secret};

/// How to reach the store.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Store")]
pub struct StoreFlags {
    /// Where leases live: "etcd", "kube" for the Nodes of a Kubernetes cluster, or "dir:PATH" for a
    /// directory that needs no server
    #[arg(
        long,
        env = "OVERLAY_STORE",
        default_value = "etcd",
        value_name = "etcd|kube|dir:PATH"
    )]
    pub store: StoreKind,
    /// The same as --store kube: this node's subnet is its podCIDR
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", default_value = "false", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub kube_subnet_mgr: bool,
    /// URL of the Kubernetes API server [default: the kubeconfig's, or a pod's own]
    #[arg(
        long,
        env = "FLANNELD_KUBE_API_URL",
        default_value = "",
        hide_default_value = true,
        value_name = "URL"
    )]
    pub kube_api_url: String,
    /// Kubeconfig with the API server and who asks it [default: a pod's own service account]
    #[arg(
        long,
        env = "FLANNELD_KUBECONFIG_FILE",
        default_value = "",
        hide_default_value = true,
        value_name = "FILE"
    )]
    pub kubeconfig_file: String,
    /// What the names of the Nodes' annotations begin with
    #[arg(
        long,
        env = "FLANNELD_KUBE_ANNOTATION_PREFIX",
        default_value = "flannel.alpha.coreos.com",
        value_name = "PREFIX"
    )]
    pub kube_annotation_prefix: String,
    /// File with the network configuration, where the store is Kubernetes
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        default_value = "/etc/kube-flannel/net-conf.json",
        value_name = "FILE"
    )]
    pub net_config_path: PathBuf,
    /// Say on the Node whether its network can be used, by the condition NetworkUnavailable
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", default_value = "true", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub set_node_network_unavailable: bool,
    /// etcd's endpoints, separated by commas; the first that answers is used
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        value_delimiter = ',',
        value_name = "URL,…"
    )]
    pub etcd_endpoints: Vec<String>,
    /// Where the network lives in etcd: PREFIX/config and PREFIX/subnets/…
    #[arg(
        long,
        env = "FLANNELD_ETCD_PREFIX",
        default_value = "/coreos.com/network",
        value_name = "PREFIX"
    )]
    pub etcd_prefix: String,
    /// Private key of the TLS client certificate (PEM)
    #[arg(
        long,
        env = "FLANNELD_ETCD_KEYFILE",
        default_value = "",
        hide_default_value = true,
        value_name = "FILE"
    )]
    pub etcd_keyfile: String,
    /// TLS client certificate (PEM)
    #[arg(
        long,
        env = "FLANNELD_ETCD_CERTFILE",
        default_value = "",
        hide_default_value = true,
        value_name = "FILE"
    )]
    pub etcd_certfile: String,
    /// Certificate authority that signed etcd's certificate (PEM); enough for TLS by itself.
    /// Without one, https endpoints are checked against the system's authorities
    #[arg(
        long,
        env = "FLANNELD_ETCD_CAFILE",
        default_value = "",
        hide_default_value = true,
        value_name = "FILE"
    )]
    pub etcd_cafile: String,
    /// User name in etcd
    #[arg(
        long,
        env = "FLANNELD_ETCD_USERNAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub etcd_username: String,
    /// Password in etcd; prefer the environment variable, as others can read a command line
    #[arg(
        long,
        env = ETCD_PASSWORD_ENV,
        default_value = "",
        hide_default_value = true,
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    pub etcd_password: Secret,
    /// How long the node may be away before others may take its subnet
    #[arg(long, env = "OVERLAY_LEASE_TTL", default_value = "24h", value_parser = parse_duration, value_name = "TIME")]
    pub lease_ttl: Duration,
    /// Renew the lease at the latest this many minutes before it ends (1 to 1439)
    #[arg(
        long,
        env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1439),
        value_name = "MINUTES"
    )]
    pub subnet_lease_renew_margin: u16,
}

/// Which kind of store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// etcd, by flanneld's `--etcd-*` flags.
    Etcd,
    /// A directory.
    Dir(PathBuf),
    /// Kubernetes, by flanneld's `--kube-*` flags.
    Kube,
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "etcd" => Ok(Self::Etcd),
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err("want etcd, kube or dir:PATH".to_owned()),
        }
    }
}

impl StoreFlags {
    /// How long after one renewal the next is due: a third of the lease time, or sooner if the
    /// margin asks for it.
    #[must_use]
    pub fn renew_every(&self) -> Duration {
        let third = self.lease_ttl / 3;
        let margin = Duration::from_secs(60 * u64::from(self.subnet_lease_renew_margin));
        // A lease shorter than the margin, as in tests, goes by thirds.
        self.lease_ttl
            .checked_sub(margin)
            .filter(|rest| !rest.is_zero())
            .map_or(third, |rest| rest.min(third))
    }
}
