//! One change to the kernel's network.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{KernelChange, OverlayDevice, Route, VxlanAttributes};
use crate::mac::MacAddr;

/// Why a device has to be recreated: an attribute differs that the kernel cannot change on an
/// existing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecreateReason {
    /// Another kind of device has the name.
    Kind,
    /// Another VNI.
    Vni,
    /// Another UDP port.
    Port,
    /// Another underlay device.
    Underlay,
    /// Another outer source address.
    Local,
}

impl fmt::Display for RecreateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "it is not a VXLAN device",
            Self::Vni => "its VNI differs",
            Self::Port => "its UDP port differs",
            Self::Underlay => "its underlay device differs",
            Self::Local => "its local address differs",
        })
    }
}

/// One change to the kernel's network. Neighbours, FDB entries and addresses are those of the
/// backend's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Switch IP forwarding on.
    EnableForwarding,
    /// Delete the device so that it can be recreated.
    DeleteDevice(RecreateReason),
    /// Create the VXLAN device with these attributes, down and without addresses.
    CreateDevice(OverlayDevice, VxlanAttributes),
    /// Stop the device from learning FDB entries.
    DisableLearning,
    /// Keep IPv6 from configuring the device by itself.
    ForbidAutoconfiguration,
    /// Set the device's MTU.
    SetMtu(u32),
    /// Put an address on the device.
    AddAddress(IpNet),
    /// Take an address off the device.
    RemoveAddress(IpNet),
    /// Set the device up.
    SetUp,
    /// Add or replace a permanent neighbour.
    SetNeighbour(IpAddr, MacAddr),
    /// Remove a neighbour.
    RemoveNeighbour(IpAddr),
    /// Add or replace an FDB entry.
    SetFdb(MacAddr, IpAddr),
    /// Remove an FDB entry.
    RemoveFdb(MacAddr, IpAddr),
    /// Add a route; fails where a foreign route to the same destination exists.
    AddRoute(Route),
    /// Replace the route to the same destination, without a gap.
    ReplaceRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
}

impl Action {
    /// The change that the action makes to the kernel's state. `None` where the device itself
    /// changes, because the kernel then changes addresses, neighbours and routes of the device as
    /// well.
    #[must_use]
    pub fn change(&self) -> Option<KernelChange> {
        Some(match self {
            Self::SetNeighbour(address, mac) => KernelChange::Neighbour(*address, Some(*mac)),
            Self::RemoveNeighbour(address) => KernelChange::Neighbour(*address, None),
            Self::SetFdb(mac, vtep) => KernelChange::Fdb(*mac, Some(*vtep)),
            Self::RemoveFdb(mac, _) => KernelChange::Fdb(*mac, None),
            Self::AddRoute(route) => KernelChange::Added(route.clone()),
            Self::ReplaceRoute(route) => KernelChange::Replaced(route.clone()),
            Self::RemoveRoute(route) => KernelChange::Removed(route.clone()),
            Self::EnableForwarding
            | Self::DeleteDevice(_)
            | Self::CreateDevice(..)
            | Self::DisableLearning
            | Self::ForbidAutoconfiguration
            | Self::SetMtu(_)
            | Self::AddAddress(_)
            | Self::RemoveAddress(_)
            | Self::SetUp => return None,
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnableForwarding => f.write_str("enable IP forwarding"),
            Self::DeleteDevice(reason) => write!(f, "delete device because {reason}"),
            Self::CreateDevice(device, _) => write!(f, "create device {}", device.name),
            Self::DisableLearning => f.write_str("disable learning"),
            Self::ForbidAutoconfiguration => f.write_str("forbid IPv6 autoconfiguration"),
            Self::SetMtu(mtu) => write!(f, "set mtu {mtu}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::SetUp => f.write_str("set up"),
            Self::SetNeighbour(address, mac) => write!(f, "set neighbour {address} to {mac}"),
            Self::RemoveNeighbour(address) => write!(f, "remove neighbour {address}"),
            Self::SetFdb(mac, vtep) => write!(f, "set fdb {mac} to {vtep}"),
            Self::RemoveFdb(mac, vtep) => write!(f, "remove fdb {mac} to {vtep}"),
            Self::AddRoute(route) => write!(f, "add route {}", route.subnet),
            Self::ReplaceRoute(route) => write!(f, "replace route {}", route.subnet),
            Self::RemoveRoute(route) => write!(f, "remove route {}", route.subnet),
        }
    }
}
