//! What the kernel should hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Route;
use crate::backend::Peer;
use crate::mac::MacAddr;
use crate::marks::ROUTE_PROTOCOL;

/// The VXLAN device of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`.
    pub name: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, host byte order.
    pub port: u16,
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// Outer source address.
    pub local: IpAddr,
    /// MTU of the device: that of the underlay less the encapsulation.
    pub mtu: u32,
    /// The base of this node's subnet with a full-length prefix.
    pub address: IpNet,
    /// The MAC address for a device that has to be created; an existing device keeps its own.
    pub mac: Option<MacAddr>,
}

/// Everything that the kernel path needs, from leases and configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The whole overlay; addresses and leftovers outside it are not ours to judge.
    pub network: IpNet,
    /// The VXLAN device.
    pub device: Device,
    /// The other nodes by their subnets.
    pub peers: BTreeMap<IpNet, Peer>,
    /// Whether IP forwarding has to be on. It is never switched off.
    pub forwarding: bool,
}

impl Desired {
    /// The route to a peer: its subnet by way of the subnet's base address, which nothing on the wire
    /// answers for, hence `onlink` and a permanent neighbour.
    #[must_use]
    pub fn route(&self, peer: &Peer) -> Route {
        Route {
            subnet: peer.subnet,
            gateway: Some(peer.subnet.network()),
            device: Some(self.device.name.clone()),
            onlink: true,
            protocol: ROUTE_PROTOCOL,
            metric: 0,
        }
    }
}
