//! Flags about the store: where it is, and how long a lease in it lasts.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::kube::KubeFlags;
use crate::config::duration::parse_duration;
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
    /// The Nodes of a Kubernetes cluster.
    #[command(flatten)]
    pub kube: KubeFlags,
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
    #[arg(
        long, env = "OVERLAY_LEASE_TTL", default_value = "24h", value_parser = parse_duration,
        value_name = "TIME"
    )]
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

/// Two stores.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--store {0} and --kube-subnet-mgr name two stores: give one of them")]
pub struct TwoStores(String);

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
    /// The store that is meant.
    #[must_use]
    pub fn kind(&self) -> &StoreKind {
        if self.kube.kube_subnet_mgr {
            &StoreKind::Kube
        } else {
            &self.store
        }
    }

    /// Refuses two stores. etcd is nobody's wish, because it is the default.
    pub(super) fn check(&self) -> Result<(), TwoStores> {
        match &self.store {
            StoreKind::Dir(path) if self.kube.kube_subnet_mgr => {
                Err(TwoStores(format!("dir:{}", path.display())))
            }
            _ => Ok(()),
        }
    }

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
