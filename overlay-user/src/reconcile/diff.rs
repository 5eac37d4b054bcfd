//! The difference between what should be and what is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Desired, Device, Observed, ObservedDevice, RecreateReason, Route, VxlanAttributes,
};
use crate::mac::MacAddr;
use crate::marks::{FLANNEL_ROUTE_PROTOCOL, ROUTE_PROTOCOL};

/// Names the changes that turn `observed` into `desired`, in the order to apply them: what is added comes
/// before the routes that lead to it, and what is removed goes after them. Empty when nothing is to do.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    if desired.forwarding && !observed.forwarding {
        actions.push(Action::EnableForwarding);
    }
    let kept = device(desired, observed, &mut actions);

    // What hangs on a device dies with it.
    let blank;
    let observed = if kept {
        observed
    } else {
        let name = Some(&desired.device.name);
        let routes = observed
            .routes
            .iter()
            .filter(|r| r.device.as_ref() != name)
            .cloned();
        blank = Observed {
            routes: routes.collect(),
            ..Observed::default()
        };
        &blank
    };
    peers(desired, observed, &mut actions);
    actions
}

/// The device itself. Returns whether the observed one stays.
fn device(desired: &Desired, observed: &Observed, actions: &mut Vec<Action>) -> bool {
    let want = &desired.device;
    let reason = match &observed.device {
        Some(have) => recreate_reason(want, have),
        None => None,
    };
    let create = |mac| {
        Action::CreateDevice(Device {
            mac,
            ..want.clone()
        })
    };
    match (&observed.device, reason) {
        (Some(have), None) => {
            if have.vxlan.as_ref().is_some_and(|vxlan| vxlan.learning) {
                actions.push(Action::DisableLearning);
            }
            if have.configures_itself {
                actions.push(Action::ForbidAutoconfiguration);
            }
            if have.mtu != want.mtu {
                actions.push(Action::SetMtu(want.mtu));
            }
            let stale = |a: &&IpNet| {
                **a != want.address && (desired.network.contains(&a.addr()) || is_link_local(a))
            };
            actions.extend(
                have.addresses
                    .iter()
                    .filter(stale)
                    .map(|a| Action::RemoveAddress(*a)),
            );
            if !have.addresses.contains(&want.address) {
                actions.push(Action::AddAddress(want.address));
            }
            if !have.up {
                actions.push(Action::SetUp);
            }
            true
        }
        (have, reason) => {
            // Peers hold the old address in their tables, so a new device takes it over.
            let mac = want.mac.or_else(|| have.as_ref().map(|have| have.mac));
            actions.extend(reason.map(Action::DeleteDevice));
            actions.push(create(mac));
            // Before the device is up: it would have an address by then.
            actions.push(Action::ForbidAutoconfiguration);
            actions.push(Action::AddAddress(want.address));
            actions.push(Action::SetUp);
            false
        }
    }
}

/// Whether IPv6 gave a device this address by itself.
fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn recreate_reason(want: &Device, have: &ObservedDevice) -> Option<RecreateReason> {
    let Some(VxlanAttributes {
        vni,
        port,
        underlay,
        local,
        learning: _,
    }) = &have.vxlan
    else {
        return Some(RecreateReason::Kind);
    };
    [
        (*vni != want.vni, RecreateReason::Vni),
        (*port != want.port, RecreateReason::Port),
        (*underlay != want.underlay, RecreateReason::Underlay),
        (*local != Some(want.local), RecreateReason::Local),
    ]
    .into_iter()
    .find_map(|(differs, reason)| differs.then_some(reason))
}

/// Neighbours, FDB and routes.
fn peers(desired: &Desired, observed: &Observed, actions: &mut Vec<Action>) {
    let mut neighbours: BTreeMap<IpAddr, MacAddr> = BTreeMap::new();
    let mut fdb: BTreeMap<MacAddr, IpAddr> = BTreeMap::new();
    for peer in desired.peers.values() {
        neighbours.insert(peer.subnet.network(), peer.mac);
        fdb.insert(peer.mac, peer.vtep);
    }

    for (address, mac) in &neighbours {
        if observed.neighbours.get(address) != Some(mac) {
            actions.push(Action::SetNeighbour(*address, *mac));
        }
    }
    for (mac, vtep) in &fdb {
        if observed.fdb.get(mac) != Some(vtep) {
            actions.push(Action::SetFdb(*mac, *vtep));
        }
    }
    let mut routes: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
    for route in &observed.routes {
        routes.entry(route.subnet).or_default().push(route);
    }
    for route in desired.peers.values().map(|peer| desired.route(peer)) {
        let present = routes.get(&route.subnet).map_or(&[][..], Vec::as_slice);
        if present.contains(&&route) {
            continue;
        }
        actions.push(
            match present.iter().any(|old| takes_place_of(&route, old)) {
                true => Action::ReplaceRoute(route),
                false => Action::AddRoute(route),
            },
        );
    }

    let unwanted = |r: &&Route| match desired.peers.get(&r.subnet) {
        // A route in the place of ours was replaced above; one at another metric stands beside it.
        Some(peer) => ours(desired, r) && !takes_place_of(&desired.route(peer), r),
        None => ours(desired, r),
    };
    actions.extend(
        observed
            .routes
            .iter()
            .filter(unwanted)
            .cloned()
            .map(Action::RemoveRoute),
    );
    let stale = observed
        .fdb
        .iter()
        .filter(|(mac, _)| !fdb.contains_key(mac));
    actions.extend(stale.map(|(mac, vtep)| Action::RemoveFdb(*mac, *vtep)));
    let stale = observed
        .neighbours
        .keys()
        .filter(|address| !neighbours.contains_key(address));
    actions.extend(stale.map(|address| Action::RemoveNeighbour(*address)));

    /// Whether the kernel would put `new` in the place of `old`, and `old` is ours to replace.
    fn takes_place_of(new: &Route, old: &Route) -> bool {
        old.subnet == new.subnet
            && old.metric == new.metric
            && (old.protocol == ROUTE_PROTOCOL
                || (old.protocol == FLANNEL_ROUTE_PROTOCOL && old.device == new.device))
    }

    /// Ours: what carries our protocol, and what flannel left on the device.
    fn ours(desired: &Desired, route: &Route) -> bool {
        route.protocol == ROUTE_PROTOCOL
            || (route.protocol == FLANNEL_ROUTE_PROTOCOL
                && route.onlink
                && route.device.as_deref() == Some(&desired.device.name)
                && desired.network.contains(&route.subnet))
    }
}

#[cfg(test)]
mod tests;
