//! The agent's flags: flanneld's, with the same names, environment variables, meanings and defaults, and
//! a few of our own. A flag wins over its environment variable, which wins over the default.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::duration::{parse_duration, parse_duration_or_zero};
use super::secret::{ETCD_PASSWORD_ENV, Secret};
use super::subnet_env;
use crate::store::{Location, etcd, kube};

/// What `overlayd --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  overlayd --etcd-endpoints https://10.0.0.1:2379 --etcd-cafile /etc/ssl/etcd-ca.pem --ip-masq
  overlayd --store dir:/srv/overlay --iface eth1
  FLANNELD_IFACE=eth1 overlayd -ip-masq -healthz-port=8471

Every flag of flanneld works with one dash or two. An environment variable stands for its flag;
the flag wins.";

/// All flags of the running agent.
#[derive(Args, Clone, Debug)]
pub struct AgentFlags {
    /// How to reach the store.
    #[command(flatten)]
    pub store: StoreFlags,
    /// Which interface and address to use.
    #[command(flatten)]
    pub underlay: UnderlayFlags,
    /// What the node does with packets.
    #[command(flatten)]
    pub node: NodeFlags,
    /// flanneld's flags that mean nothing here, or nothing yet.
    #[command(flatten)]
    foreign: ForeignFlags,
}

/// How to reach the store.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Store")]
pub struct StoreFlags {
    /// Where leases live: "etcd", "kube" for the Nodes of a Kubernetes cluster, or "dir:PATH" for a directory
    /// that needs no server
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
    /// Certificate authority that signed etcd's certificate (PEM); enough for TLS by itself. Without one, https
    /// endpoints are checked against the system's authorities
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

/// Which interface and address the node's encapsulated packets use. With none of these flags it is the
/// interface of the default route.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Underlay")]
pub struct UnderlayFlags {
    /// Name or address of the interface to use; may be given again, the first that exists is taken
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// Regular expression for the interface's address, else its name; tried after --iface
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Take the interface that leads to this address; tried last
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// Address that other nodes send to [default: the interface's]
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IPv4")]
    pub public_ip: Option<Ipv4Addr>,
}

/// What the node does with packets, and what it tells others on it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node")]
pub struct NodeFlags {
    /// Accelerate pod traffic by eBPF: "auto" as far as this kernel can and unless others'
    /// packet-filter rules would be passed by, "force" past them as well, "off" to leave it all to
    /// the kernel's VXLAN
    #[arg(long, env = "OVERLAY_FAST_PATH", value_enum, default_value_t = FastPath::Auto)]
    pub fast_path: FastPath,
    /// Who judges what pods send: eBPF programs, even where they carry nothing, or nftables; "auto" is "bpf"
    /// where this kernel can
    #[arg(long, env = "OVERLAY_GUARD", value_enum, default_value_t = Guard::Auto)]
    pub guard: Guard,
    /// How programs are attached: by tcx where the kernel has it (Linux 6.6), else as clsact filters
    #[arg(long, env = "OVERLAY_ATTACH", value_enum, default_value_t = Attach::Auto)]
    pub attach: Attach,
    /// Refuse hostile VXLAN at the NIC already, by native XDP: "auto" where the driver gives up nothing for it
    #[arg(long, env = "OVERLAY_XDP", value_enum, default_value_t = Xdp::Auto)]
    pub xdp: Xdp,
    /// Load the eBPF programs of this object file instead of those built in: to try others out
    #[arg(long, env = "OVERLAY_PROGRAMS", value_name = "FILE")]
    pub programs: Option<PathBuf>,
    /// Log whose packets the eBPF programs refuse, and why: to find out who sends them
    #[arg(long, env = "OVERLAY_LOG_REFUSED", default_value = "false", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub log_refused: bool,
    /// How long programs and guard refuse by the list of leases after the agent is gone; 0 for ever
    #[arg(long, env = "OVERLAY_REFUSE_WITHOUT_AGENT", default_value = "10m", value_parser = parse_duration_or_zero, value_name = "TIME")]
    pub refuse_without_agent: Duration,
    /// Who decapsulates TCP super-packets: "kernel" is for nodes whose pods pass them on to tap devices
    #[arg(long, env = "OVERLAY_AGGREGATES", value_enum, default_value_t = Aggregates::Fast)]
    pub aggregates: Aggregates,
    /// Masquerade what pods send out of the overlay
    #[arg(long, env = "FLANNELD_IP_MASQ", default_value = "false", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub ip_masq: bool,
    /// Masquerade without fully random source ports
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", default_value = "false", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to the overlay
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", default_value = "true", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub iptables_forward_rules: bool,
    /// Check the packet-filter rules every so many seconds
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "SECONDS")]
    pub iptables_resync: u32,
    /// File that tells the CNI plugin of the node's subnet
    #[arg(long, env = "FLANNELD_SUBNET_FILE", default_value = subnet_env::DEFAULT_PATH, value_name = "FILE")]
    pub subnet_file: PathBuf,
    /// Address of the health and metrics server
    #[arg(
        long,
        env = "FLANNELD_HEALTHZ_IP",
        default_value = "0.0.0.0",
        value_name = "IP"
    )]
    pub healthz_ip: IpAddr,
    /// Port of the health and metrics server; 0 for none
    #[arg(
        long,
        env = "FLANNELD_HEALTHZ_PORT",
        default_value_t = 0,
        value_name = "PORT"
    )]
    pub healthz_port: u16,
    /// Say on the Node whether its network can be used (condition NetworkUnavailable)
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", default_value = "true", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pub set_node_network_unavailable: bool,
    /// BPF file system that holds the pinned programs and maps
    #[arg(
        long,
        env = "OVERLAY_BPFFS",
        default_value = "/sys/fs/bpf",
        value_name = "DIR"
    )]
    pub bpffs: PathBuf,
    /// Directory for the agent's own notes to the tools
    #[arg(
        long,
        env = "OVERLAY_RUN_DIR",
        default_value = "/run/overlay",
        value_name = "DIR"
    )]
    pub run_dir: PathBuf,
    /// How log lines look
    #[arg(long, env = "OVERLAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Accepted so that command lines written for flanneld start; hidden from the help.
#[derive(Args, Clone, Debug)]
struct ForeignFlags {
    #[arg(long, hide = true, env = "FLANNELD_PUBLIC_IPV6")]
    public_ipv6: Option<String>,
    #[arg(long, hide = true, env = "FLANNELD_IP_BLACKHOLE_ROUTE", default_value = "false", value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    ip_blackhole_route: bool,
    // These change only what klog prints.
    #[arg(long, hide = true, env = "FLANNELD_V")]
    v: Option<String>,
    #[arg(long, hide = true, env = "FLANNELD_VMODULE")]
    vmodule: Option<String>,
    #[arg(
        long = "log_backtrace_at",
        hide = true,
        env = "FLANNELD_LOG_BACKTRACE_AT"
    )]
    log_backtrace_at: Option<String>,
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

/// Whether eBPF carries pod traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPath {
    /// As far as this kernel can, and only while no packet-filter rules of others are passed by.
    Auto,
    /// As far as this kernel can, past others' packet-filter rules.
    Force,
    /// The kernel's own VXLAN does everything.
    Off,
}

/// Who judges what pods send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guard {
    /// Programs as far as this kernel can, nftables for the rest.
    Auto,
    /// The same, and it is a fault if it cannot.
    Bpf,
    /// nftables; programs only as the fast path has them.
    Nftables,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// The best that this kernel can.
    Auto,
    /// By tcx links, or not at all.
    Tcx,
    /// As filters of the clsact qdisc.
    Clsact,
}

/// Whether hostile VXLAN is refused at the NIC already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// Where the driver is known to give up nothing for it.
    Auto,
    /// Wherever the driver can: native XDP, never generic.
    On,
    /// Only behind the NIC.
    Off,
}

/// Who takes super-packets from the network apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aggregates {
    /// The fast path, as any other packet.
    Fast,
    /// The kernel's VXLAN device.
    Kernel,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A combination of flags that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// flanneld can, this agent cannot yet.
    #[error("{flag} is not supported yet; {cure}")]
    NotSupported {
        /// The flag, with both dashes.
        flag: &'static str,
        /// What to do about it.
        cure: &'static str,
    },
}

impl AgentFlags {
    /// Refuses what flanneld would act on and this agent would not.
    ///
    /// # Errors
    /// [`FlagError`] with the flag and the cure.
    pub fn check(&self) -> Result<(), FlagError> {
        let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        let foreign = &self.foreign;
        for (asked, flag, cure) in [
            (
                given(&foreign.public_ipv6),
                "--public-ipv6",
                "remove it: the underlay is IPv4",
            ),
            (
                foreign.ip_blackhole_route,
                "--ip-blackhole-route",
                "remove it",
            ),
        ] {
            if asked {
                return Err(FlagError::NotSupported { flag, cure });
            }
        }
        Ok(())
    }
}

impl StoreFlags {
    /// The store that these flags describe.
    #[must_use]
    pub fn location(&self) -> Location {
        let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let kind = if self.kube_subnet_mgr {
            &StoreKind::Kube
        } else {
            &self.store
        };
        match kind {
            StoreKind::Dir(path) => Location::Dir(path.clone()),
            StoreKind::Kube => Location::Kube(kube::Options {
                api_url: text(&self.kube_api_url),
                kubeconfig: file(&self.kubeconfig_file),
                annotation_prefix: self.kube_annotation_prefix.clone(),
                config_path: self.net_config_path.clone(),
                identity: kube::Identity::from_env(),
            }),
            StoreKind::Etcd => Location::Etcd(etcd::Options {
                endpoints: self.etcd_endpoints.clone(),
                prefix: self.etcd_prefix.clone(),
                key_file: file(&self.etcd_keyfile),
                cert_file: file(&self.etcd_certfile),
                ca_file: file(&self.etcd_cafile),
                user: (!self.etcd_username.is_empty())
                    .then(|| (self.etcd_username.clone(), self.etcd_password.clone())),
            }),
        }
    }

    /// How long after one renewal the next is due: a third of the lease time, or sooner if the margin
    /// asks for it.
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

/// A truth value as Go's `strconv.ParseBool` reads it.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("want true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests;
