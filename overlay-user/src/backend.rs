//! How a peer is reached.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::mac::MacAddr;

/// Another node of the overlay, as its lease describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Peer {
    /// The pods of that node.
    pub subnet: IpNet,
    /// The underlay address that its VXLAN packets go to and come from.
    pub vtep: IpAddr,
    /// The MAC address of its VXLAN device.
    pub mac: MacAddr,
}
