//! The agent's flags: flanneld's, with the same names, environment variables, meanings and
//! defaults, and a few of our own. A flag has precedence over its environment variable, and the
//! variable over the default.

mod foreign;
mod kube;
mod node;
mod store;

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;

pub use self::foreign::FlagError;
use self::foreign::ForeignFlags;
pub use self::kube::KubeFlags;
pub use self::node::{
    Aggregates, Attach, FastPathMode, GuardMode, LogFormat, NodeFlags, ServicesMode, Xdp,
};
pub use self::store::{StoreFlags, StoreKind, TwoStores};

/// The examples at the end of `overlayd --help`.
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

/// Which interface and address the node's encapsulated packets use. With none of these flags it is
/// the interface of the default route.
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

impl AgentFlags {
    /// Refuses flags that flanneld would obey and this agent would not, and flags that contradict
    /// each other.
    ///
    /// # Errors
    /// [`FlagError`] with the flag and the cure.
    pub fn check(&self) -> Result<(), FlagError> {
        self.store.check()?;
        self.foreign.check()
    }
}

#[cfg(test)]
mod tests;
