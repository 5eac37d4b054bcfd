//! The labs that cases need.

use serde_json::json;

use crate::{Options, StoreKind};

/// A lab. Cases of one stage share the lab, so that it is made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Two nodes, and leases in etcd.
    Plain,
    /// Programs attached by clsact.
    Clsact,
    /// Leases that end after [`SHORT_LEASE`].
    ShortLease,
    /// Leases as in `ShortLease`, with an etcd of three members.
    Cluster,
    /// Leases in a directory.
    Directory,
    /// An overlay with room for more subnets than the tables of the fast path.
    Wide,
}

/// Lease time of [`Stage::ShortLease`], in seconds; the shortest that agents accept.
pub(super) const SHORT_LEASE: u64 = 10;

impl Stage {
    /// The options of the stage's lab.
    #[must_use]
    pub fn options(self) -> Options {
        let name = match self {
            Self::Plain => "fault",
            Self::Clsact => "faultclsact",
            Self::ShortLease => "faultlease",
            Self::Cluster => "faultcluster",
            Self::Directory => "faultdir",
            Self::Wide => "faultwide",
        };
        let mut options = Options::for_test(name);
        match self {
            Self::Plain => {}
            Self::Clsact => options.agent_args = vec!["--attach=clsact".to_owned()],
            Self::ShortLease => options.agent_args = vec![format!("--lease-ttl={SHORT_LEASE}s")],
            Self::Cluster => {
                options.agent_args = vec![format!("--lease-ttl={SHORT_LEASE}s")];
                options.store_members = 3;
            }
            Self::Directory => options.store = StoreKind::Dir,
            // Subnets of nodes come last, so that others take the room first.
            Self::Wide => {
                options.network = json!({
                    "Network": "10.0.0.0/8",
                    "SubnetLen": 24,
                    "SubnetMin": "10.200.0.0",
                    "Backend": {"Type": "vxlan"}
                });
            }
        }
        options
    }
}
