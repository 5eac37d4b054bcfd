//! Leases: which node holds which subnet of the overlay, and the node's attributes.
//!
//! This module has the model and the rules, without any store. Formats are flannel's to the byte,
//! so that flannel's nodes and ours share one network.

pub mod allocate;
pub mod attributes;
pub mod key;
pub mod rejected;

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

pub use allocate::{AllocateError, allocate, are_allowed, reusable};
pub use attributes::{Attributes, BackendData};
pub use key::{ParseKeyError, SubnetKey};
pub use rejected::{RejectReason, Rejected, Rejections};
pub(crate) use rejected::{excerpt, subject};

use crate::per_family::PerFamily;
use crate::shared_map::SharedMap;

/// Leases by key. A lease that did not change is the same allocation in every clone.
pub type Leases = SharedMap<SubnetKey, Arc<Lease>>;

/// A node's share of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnets of the node's pods.
    pub subnets: PerFamily<IpNet>,
    /// What the node says about itself.
    pub attributes: Attributes,
    /// The node's name, where the store knows it.
    pub node: Option<String>,
    /// A reservation: an operator or the cluster has set the lease, and it never expires.
    pub reserved: bool,
    /// The end of the lease unless its owner renews it; absent for reservations and where the store
    /// does not report the end (etcd reports it to the owner only).
    pub expires: Option<SystemTime>,
}

impl Lease {
    /// The lease's name in every store, `10.5.34.0-24`.
    #[must_use]
    pub fn key(&self) -> SubnetKey {
        SubnetKey(self.subnets)
    }
}
