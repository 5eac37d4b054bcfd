//! What the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mac::MacAddr;

/// The attributes of a VXLAN device that cannot change while it lives, and its learning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanAttributes {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host byte order.
    pub port: u16,
    /// Interface index of the underlay device, zero when the device is bound to none.
    pub underlay: u32,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Whether the device learns FDB entries from received packets.
    pub learning: bool,
}

/// The device that carries the name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface index.
    pub ifindex: u32,
    /// What kind of VXLAN device it is; `None` when it is something else altogether.
    pub vxlan: Option<VxlanAttributes>,
    /// MAC address.
    pub mac: MacAddr,
    /// MTU.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses with their prefix lengths.
    pub addresses: BTreeSet<IpNet>,
    /// Whether IPv6 configures the device by itself: from router advertisements, or with a
    /// link-local address.
    pub configures_itself: bool,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination.
    pub subnet: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Name of the outgoing device; `None` for multipath routes and devices that have gone.
    pub device: Option<String>,
    /// Whether the next hop is taken to be on the link whatever the addresses say.
    pub onlink: bool,
    /// Who installed it (`rtm_protocol`).
    pub protocol: u8,
    /// Priority; lower wins.
    pub metric: u32,
}

/// One look at everything that [`super::diff`] judges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The VXLAN device.
    pub device: Option<ObservedDevice>,
    /// Every unicast route of the main table in the overlay's address family.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours on the VXLAN device.
    pub neighbours: BTreeMap<IpAddr, MacAddr>,
    /// FDB of the VXLAN device: where each MAC address is.
    pub fdb: BTreeMap<MacAddr, IpAddr>,
    /// Whether IP forwarding is on.
    pub forwarding: bool,
}
