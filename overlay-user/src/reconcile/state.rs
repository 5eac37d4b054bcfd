//! The state that the kernel holds, or should hold: one type for both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mac::MacAddr;
use crate::marks::ROUTE_PROTOCOL;

/// The attributes of a VXLAN device that cannot change after its creation, and its learning.
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

/// The device that a backend makes, observed or desired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayDevice {
    /// Name.
    pub name: String,
    /// Interface index; zero for a desired device, because the kernel chooses the index.
    pub ifindex: u32,
    /// The attributes of a VXLAN device; `None` for a device of another kind.
    pub vxlan: Option<VxlanAttributes>,
    /// MAC address. A desired one applies to the creation of the device only, because an existing
    /// device keeps its own.
    pub mac: MacAddr,
    /// MTU.
    pub mtu: u32,
    /// Whether the device is administratively up.
    pub up: bool,
    /// Addresses with their prefix lengths.
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
    /// Name of the outgoing device; `None` for multipath routes and for devices that no longer
    /// exist.
    pub device: Option<String>,
    /// Whether the next hop counts as on the link regardless of the addresses.
    pub onlink: bool,
    /// The installer of the route (`rtm_protocol`).
    pub protocol: u8,
    /// Priority; lower wins.
    pub metric: u32,
}

/// Whether a route can matter to the overlay of `network`: a route into `network`, or one of ours.
/// All other routes, which may be a million, are not stored.
#[must_use]
pub fn is_of_interest(network: IpNet, route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL || network.contains(&route.subnet)
}

/// A change that the kernel reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelChange {
    /// A permanent neighbour's present MAC address; `None` where there is no such neighbour.
    Neighbour(IpAddr, Option<MacAddr>),
    /// The present VTEP of a MAC address; `None` where there is no such entry.
    Fdb(MacAddr, Option<IpAddr>),
    /// A route that was added.
    Added(Route),
    /// A route that replaced another to the same destination with the same metric.
    Replaced(Route),
    /// A route that was removed.
    Removed(Route),
}

/// The state that [`super::diff`] compares. An observed one comes from one look and the changes
/// since; a desired one from leases and configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// The network of the overlay that the state belongs to.
    pub network: Option<IpNet>,
    /// The device that the backend makes, if any.
    pub device: Option<OverlayDevice>,
    /// The unicast routes of the main table that can matter, see [`is_of_interest`].
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours on the device.
    pub neighbours: BTreeMap<IpAddr, MacAddr>,
    /// FDB of the device: the VTEP of each MAC address.
    pub fdb: BTreeMap<MacAddr, IpAddr>,
    /// Whether IP forwarding is enabled. The agent never disables it.
    pub forwarding: bool,
}

impl KernelState {
    /// Applies a change; neighbours and FDB entries are those of the device. Returns whether the
    /// state changed.
    pub fn apply(&mut self, change: &KernelChange) -> bool {
        match change {
            KernelChange::Neighbour(address, mac) => {
                let is_v4 = self.network.is_some_and(|network| network.addr().is_ipv4());
                is_v4 == address.is_ipv4() && set(&mut self.neighbours, *address, *mac)
            }
            KernelChange::Fdb(mac, vtep) => set(&mut self.fdb, *mac, *vtep),
            KernelChange::Added(route) => self.is_kept(route) && self.routes.insert(route.clone()),
            KernelChange::Replaced(route) => {
                let known = self.routes.contains(route);
                let same_place = |old: &Route| old.takes_the_place_of(route);
                self.routes.retain(|old| !same_place(old) || old == route);
                !known && self.is_kept(route) && self.routes.insert(route.clone())
            }
            KernelChange::Removed(route) => {
                let before = self.routes.len();
                // The device may no longer exist, so that its name is unknown.
                let is_it = |old: &Route| {
                    old.takes_the_place_of(route)
                        && old.gateway == route.gateway
                        && old.protocol == route.protocol
                };
                self.routes.retain(|old| !is_it(old));
                self.routes.len() != before
            }
        }
    }

    fn is_kept(&self, route: &Route) -> bool {
        self.network
            .is_some_and(|network| is_of_interest(network, route))
    }
}

impl Route {
    /// Whether the kernel can hold only one of the two routes.
    fn takes_the_place_of(&self, other: &Self) -> bool {
        self.subnet == other.subnet && self.metric == other.metric
    }
}

/// Sets or removes an entry; returns whether that changed anything.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> KernelState {
        KernelState {
            network: Some("10.244.0.0/16".parse().expect("a network")),
            ..KernelState::default()
        }
    }

    fn route(subnet: &str, gateway: u8, protocol: u8) -> Route {
        Route {
            subnet: subnet.parse().expect("a subnet"),
            gateway: Some([192, 0, 2, gateway].into()),
            device: Some("eth0".to_owned()),
            onlink: false,
            protocol,
            metric: 0,
        }
    }

    #[test]
    fn only_routes_that_matter_are_kept() {
        let mut observed = observed();
        assert!(!observed.apply(&KernelChange::Added(route("0.0.0.0/0", 1, 3))));
        assert!(!observed.apply(&KernelChange::Added(route("203.0.113.0/24", 1, 186))));
        assert!(!observed.apply(&KernelChange::Replaced(route("203.0.113.0/24", 1, 186))));
        assert!(observed.apply(&KernelChange::Added(route("10.244.7.0/24", 1, 186))));
        assert!(observed.apply(&KernelChange::Added(route(
            "203.0.113.0/24",
            1,
            ROUTE_PROTOCOL
        ))));
        assert_eq!(observed.routes.len(), 2);
    }

    #[test]
    fn a_replaced_route_leaves_no_other_in_its_place() {
        let mut observed = observed();
        let (old, new) = (route("10.244.7.0/24", 1, 111), route("10.244.7.0/24", 2, 3));
        assert!(observed.apply(&KernelChange::Added(old)));
        assert!(observed.apply(&KernelChange::Replaced(new.clone())));
        assert_eq!(observed.routes, BTreeSet::from([new.clone()]));
        assert!(
            !observed.apply(&KernelChange::Replaced(new.clone())),
            "no news"
        );
        let nameless = Route {
            device: None,
            ..new
        };
        assert!(observed.apply(&KernelChange::Removed(nameless)));
        assert_eq!(observed.routes, BTreeSet::new());
    }

    #[test]
    fn a_route_goes_by_all_that_the_kernel_tells_of_it() {
        let mut observed = observed();
        let kept = route("10.244.7.0/24", 1, 111);
        assert!(observed.apply(&KernelChange::Added(kept.clone())));
        for other in [
            route("10.244.8.0/24", 1, 111),
            route("10.244.7.0/24", 2, 111),
            route("10.244.7.0/24", 1, 3),
            Route {
                metric: 50,
                ..kept.clone()
            },
        ] {
            assert!(
                !observed.apply(&KernelChange::Removed(other.clone())),
                "{other:?}"
            );
        }
        assert_eq!(observed.routes, BTreeSet::from([kept]));
    }

    #[test]
    fn what_is_known_already_is_no_news() {
        let mut observed = observed();
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let address = IpAddr::from([10, 244, 7, 0]);
        assert!(observed.apply(&KernelChange::Neighbour(address, Some(mac))));
        assert!(!observed.apply(&KernelChange::Neighbour(address, Some(mac))));
        assert!(!observed.apply(&KernelChange::Neighbour(IpAddr::from([0; 16]), Some(mac))));
        assert!(observed.apply(&KernelChange::Neighbour(address, None)));
        assert!(!observed.apply(&KernelChange::Fdb(mac, None)));
        assert!(observed.apply(&KernelChange::Fdb(mac, Some(address))));
    }
}
