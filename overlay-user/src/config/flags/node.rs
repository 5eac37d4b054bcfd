//! Flags about what the node does with packets, and what it tells others on it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use crate::config::duration::parse_duration_or_zero;
use crate::config::go_flags::go_bool;
use crate::config::subnet_env;

/// What the node does with packets, and what it tells others on it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node")]
pub struct NodeFlags {
    /// Accelerate pod traffic by eBPF: "auto" as far as this kernel can and unless others'
    /// packet-filter rules would be passed by, "force" past them as well, "off" to leave it all to
    /// the kernel's VXLAN
    #[arg(long, env = "OVERLAY_FAST_PATH", value_enum, default_value_t = FastPathMode::Auto)]
    pub fast_path: FastPathMode,
    /// Judge of what pods send: eBPF programs, even where they carry nothing, or nftables; "auto"
    /// is "bpf" where this kernel can
    #[arg(long, env = "OVERLAY_GUARD", value_enum, default_value_t = GuardMode::Auto)]
    pub guard: GuardMode,
    /// How programs are attached: by tcx where the kernel has it (Linux 6.6), else as clsact
    /// filters
    #[arg(long, env = "OVERLAY_ATTACH", value_enum, default_value_t = Attach::Auto)]
    pub attach: Attach,
    /// Refuse hostile VXLAN at the NIC already, by native XDP: "auto" where the driver gives up
    /// nothing for it
    #[arg(long, env = "OVERLAY_XDP", value_enum, default_value_t = Xdp::Auto)]
    pub xdp: Xdp,
    /// Give sockets that ask for a Service one of its servers: "auto" where the store knows
    /// Services and this kernel can, "socket" as well, and it is a fault if it cannot, "off" to
    /// leave it all to kube-proxy
    #[arg(long, env = "OVERLAY_SERVICES", value_enum, default_value_t = ServicesMode::Auto)]
    pub services: ServicesMode,
    /// Control group (version 2) whose processes' sockets these are; without it, every process of
    /// the machine
    #[arg(long, env = "OVERLAY_SERVICES_CGROUP", value_name = "DIR")]
    pub services_cgroup: Option<PathBuf>,
    /// Load the eBPF programs of this object file instead of those built in: to try others out
    #[arg(long, env = "OVERLAY_PROGRAMS", value_name = "FILE")]
    pub programs: Option<PathBuf>,
    /// Log whose packets the eBPF programs refuse, and why: to find out who sends them
    #[arg(
        long, env = "OVERLAY_LOG_REFUSED", default_value = "false", value_parser = go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = ArgAction::Set, value_name = "BOOL"
    )]
    pub log_refused: bool,
    /// How long programs and guard refuse by the list of leases after the agent is gone; 0 for ever
    #[arg(
        long, env = "OVERLAY_REFUSE_WITHOUT_AGENT", default_value = "10m",
        value_parser = parse_duration_or_zero, value_name = "TIME"
    )]
    pub refuse_without_agent: Duration,
    /// Decapsulator of TCP super-packets: "kernel" is for nodes whose pods pass them on to tap
    /// devices
    #[arg(long, env = "OVERLAY_AGGREGATES", value_enum, default_value_t = Aggregates::Fast)]
    pub aggregates: Aggregates,
    /// Masquerade what pods send out of the overlay
    #[arg(
        long, env = "FLANNELD_IP_MASQ", default_value = "false", value_parser = go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = ArgAction::Set, value_name = "BOOL"
    )]
    pub ip_masq: bool,
    /// Masquerade without fully random source ports
    #[arg(
        long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", default_value = "false",
        value_parser = go_bool, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL"
    )]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to the overlay
    #[arg(
        long, env = "FLANNELD_IPTABLES_FORWARD_RULES", default_value = "true",
        value_parser = go_bool, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL"
    )]
    pub iptables_forward_rules: bool,
    /// Check the packet-filter rules every so many seconds
    #[arg(
        long, env = "FLANNELD_IPTABLES_RESYNC", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..), value_name = "SECONDS"
    )]
    pub iptables_resync: u32,
    /// File that tells the CNI plugin of the node's subnet
    #[arg(
        long, env = "FLANNELD_SUBNET_FILE", default_value = subnet_env::DEFAULT_PATH,
        value_name = "FILE"
    )]
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

/// Whether eBPF carries pod traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPathMode {
    /// As far as this kernel can, and only while no packet-filter rules of others are passed by.
    Auto,
    /// As far as this kernel can, past others' packet-filter rules.
    Force,
    /// The kernel's own VXLAN does everything.
    Off,
}

/// The judge of what pods send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardMode {
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

/// The translator of Services' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServicesMode {
    /// Programs at the socket, where the store knows Services and this kernel can.
    Auto,
    /// The same, and it is a fault if it cannot.
    Socket,
    /// kube-proxy alone.
    Off,
}

/// The decapsulator of super-packets from the network.
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
