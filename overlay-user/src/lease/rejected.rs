//! Entries of the store that are not believed, and the reasons.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::mac::MacAddr;
use crate::shared_map::SharedMap;

/// Rejected entries by their whole keys in the store.
pub type Rejections = SharedMap<String, Arc<Rejected>>;

/// One entry that is not used, shown so that an operator can find and correct it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Rejected {
    /// The lease's key, `10.5.34.0-24`, or the whole text of a malformed key.
    pub subject: String,
    /// The reason.
    pub reason: RejectReason,
}

/// Why an entry is not believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum RejectReason {
    /// The key names no subnet.
    #[error("the key is not a subnet such as 10.5.34.0-24")]
    Key,
    /// The value is not a lease's JSON.
    #[error("the value is not a lease: {0}")]
    Value(String),
    /// The pod network that the cluster assigned cannot be used.
    #[error("{0}")]
    PodCidr(String),
    /// The subnet is not in the overlay's network.
    #[error("the subnet is not inside the network {0}")]
    OutsideNetwork(IpNet),
    /// The subnet is too small to hold a gateway and a pod.
    #[error("a /{0} subnet is too small: at most /30 holds a gateway and a pod")]
    TooSmall(u8),
    /// The subnet shares addresses with this node's own.
    #[error("the subnet overlaps {0}, which is this node's own")]
    OverlapsOwn(IpNet),
    /// The subnet shares addresses with another node's subnet.
    #[error("the subnet overlaps the lease {0}")]
    Overlaps(IpNet),
    /// The node's backend type differs from this node's.
    #[error(
        "the backend type is {theirs:?}; here it is {ours}, and all nodes of a network must use \
        the same"
    )]
    BackendType {
        /// The type in the lease.
        theirs: String,
        /// The type in the network configuration.
        ours: &'static str,
    },
    /// The backend's data is absent or malformed.
    #[error("the backend data is not {{\"VNI\":…,\"VtepMAC\":…}}: {0}")]
    BackendData(String),
    /// The VNI is that of a different overlay.
    #[error("the VNI is {theirs}, here it is {ours}")]
    Vni {
        /// The VNI in the lease.
        theirs: u64,
        /// The VNI in the network configuration.
        ours: u32,
    },
    /// No node can have this MAC address.
    #[error("the VTEP's MAC address {0} is not that of one device")]
    Mac(MacAddr),
    /// Another node, or this one, has the MAC address already.
    #[error("the VTEP's MAC address {mac} is already that of {holder}")]
    MacTaken {
        /// The MAC address.
        mac: MacAddr,
        /// The node that has the MAC address.
        holder: IpAddr,
    },
    /// No node can have this address.
    #[error("the public IP {0} is not the address of one host")]
    PublicIp(IpAddr),
    /// The backend needs a link that all nodes share.
    #[error(
        "the public IP {0} is behind a router as seen from {1}: host-gw needs all nodes on one \
        link; use vxlan, with DirectRouting if some of them are"
    )]
    NotOnLink(IpAddr, String),
    /// Packets to the peer would be encapsulated for ever.
    #[error("the public IP {0} lies inside the overlay")]
    PublicIpInside(IpAddr),
    /// Packets to the peer would come back to this node.
    #[error("the public IP {0} is this node's own")]
    PublicIpOwn(IpAddr),
}

/// The name of a rejected entry in messages: its key, and its node's name where this is known and
/// no part of the key.
pub(crate) fn subject(key: &str, node: Option<&str>) -> String {
    match node {
        Some(node) if !key.contains(node) => excerpt(&format!("{key} of node {node}")),
        _ => excerpt(key),
    }
}

/// The form in which a store's text is shown: one line without control characters, and of limited
/// length, because any writer to the store can choose the text.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown = String::new();
    for c in text.chars().take(LONGEST) {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

impl Serialize for RejectReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_entry_is_called_by_its_key_and_its_node() {
        assert_eq!(subject("10.5.34.0-24", None), "10.5.34.0-24");
        assert_eq!(
            subject("10.5.34.0-24", Some("worker-7")),
            "10.5.34.0-24 of node worker-7"
        );
        assert_eq!(
            subject("worker-7", Some("worker-7")),
            "worker-7",
            "Kubernetes has leases by the names of nodes"
        );
    }

    #[test]
    fn excerpts_are_one_short_line() {
        assert_eq!(excerpt("10.5.34.0-24"), "10.5.34.0-24");
        assert_eq!(excerpt("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(excerpt(&"x".repeat(1000)).chars().count(), 201);
    }
}
