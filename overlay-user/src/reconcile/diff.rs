//! The difference between the desired and the observed state.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Action, KernelState, OverlayDevice, RecreateReason, Route, VxlanAttributes};
use crate::marks::{FLANNEL_ROUTE_PROTOCOL, ROUTE_PROTOCOL};

/// Names the changes that turn `observed` into `desired`, in the order to apply them: additions
/// come before the routes that need them, and removals after the removal of such routes. Empty when
/// both states are equal.
#[must_use]
pub fn diff(desired: &KernelState, observed: &KernelState) -> Vec<Action> {
    let mut actions = Vec::new();
    if desired.forwarding && !observed.forwarding {
        actions.push(Action::EnableForwarding);
    }
    let kept = device(desired, observed, &mut actions);

    // With a device, the kernel deletes its addresses, neighbours, FDB entries and routes.
    let blank;
    let observed = if kept {
        observed
    } else {
        let stays = |route: &&Route| route.device.as_deref() != name(desired);
        blank = KernelState {
            routes: observed.routes.iter().filter(stays).cloned().collect(),
            ..KernelState::default()
        };
        &blank
    };
    peers(desired, observed, &mut actions);
    actions
}

/// Name of the backend's device.
fn name(desired: &KernelState) -> Option<&str> {
    desired.device.as_ref().map(|device| device.name.as_str())
}

/// The changes of the device itself. Returns whether the observed device stays.
fn device(desired: &KernelState, observed: &KernelState, actions: &mut Vec<Action>) -> bool {
    // VXLAN devices are the only kind that is made.
    let Some((want, vxlan)) = desired
        .device
        .as_ref()
        .and_then(|device| Some((device, device.vxlan.as_ref()?)))
    else {
        return true;
    };
    let reason = match &observed.device {
        Some(have) => recreate_reason(vxlan, have),
        None => None,
    };
    let missing = |have: Option<&OverlayDevice>| {
        let new = want.addresses.iter();
        let new = new.filter(|it| have.is_none_or(|have| !have.addresses.contains(*it)));
        new.map(|address| Action::AddAddress(*address))
            .collect::<Vec<_>>()
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
            let in_network = |a: &IpNet| {
                desired
                    .network
                    .is_some_and(|network| network.contains(&a.addr()))
            };
            let stale =
                |a: &&IpNet| !want.addresses.contains(*a) && (in_network(a) || is_link_local(a));
            let stale = have.addresses.iter().filter(stale);
            actions.extend(stale.map(|a| Action::RemoveAddress(*a)));
            actions.extend(missing(Some(have)));
            if !have.up {
                actions.push(Action::SetUp);
            }
            true
        }
        (_, reason) => {
            actions.extend(reason.map(Action::DeleteDevice));
            actions.push(Action::CreateDevice(want.clone(), vxlan.clone()));
            // This comes before the device is up, because IPv6 would give it an address then.
            actions.push(Action::ForbidAutoconfiguration);
            actions.extend(missing(None));
            actions.push(Action::SetUp);
            false
        }
    }
}

/// Whether IPv6 gave a device this address by itself.
fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn recreate_reason(want: &VxlanAttributes, have: &OverlayDevice) -> Option<RecreateReason> {
    let Some(have) = &have.vxlan else {
        return Some(RecreateReason::Kind);
    };
    [
        (have.vni != want.vni, RecreateReason::Vni),
        (have.port != want.port, RecreateReason::Port),
        (have.underlay != want.underlay, RecreateReason::Underlay),
        (have.local != want.local, RecreateReason::Local),
    ]
    .into_iter()
    .find_map(|(differs, reason)| differs.then_some(reason))
}

/// The changes of neighbours, FDB and routes.
fn peers(desired: &KernelState, observed: &KernelState, actions: &mut Vec<Action>) {
    for (address, mac) in &desired.neighbours {
        if observed.neighbours.get(address) != Some(mac) {
            actions.push(Action::SetNeighbour(*address, *mac));
        }
    }
    for (mac, vtep) in &desired.fdb {
        if observed.fdb.get(mac) != Some(vtep) {
            actions.push(Action::SetFdb(*mac, *vtep));
        }
    }
    let added: Vec<&Route> = desired.routes.difference(&observed.routes).collect();
    let extra: Vec<&Route> = observed.routes.difference(&desired.routes).collect();
    let (in_place_of, taken_by) = (by_subnet(&extra), by_subnet(&added));
    let replaces = |new: &Route, old: &Route| takes_place_of(desired, new, old);
    for new in &added {
        let mut olds = in_place_of.get(&new.subnet).into_iter().flatten();
        actions.push(match olds.any(|old| replaces(new, old)) {
            true => Action::ReplaceRoute((*new).clone()),
            false => Action::AddRoute((*new).clone()),
        });
    }
    for old in &extra {
        // A route that takes the place of ours was set by the replacement above; a route with
        // another metric stands beside ours.
        let mut news = taken_by.get(&old.subnet).into_iter().flatten();
        if ours(desired, old) && !news.any(|new| replaces(new, old)) {
            actions.push(Action::RemoveRoute((*old).clone()));
        }
    }
    let stale = observed
        .fdb
        .iter()
        .filter(|(mac, _)| !desired.fdb.contains_key(mac));
    actions.extend(stale.map(|(mac, vtep)| Action::RemoveFdb(*mac, *vtep)));
    let stale = observed
        .neighbours
        .keys()
        .filter(|address| !desired.neighbours.contains_key(address));
    actions.extend(stale.map(|address| Action::RemoveNeighbour(*address)));
}

fn by_subnet<'a>(routes: &[&'a Route]) -> BTreeMap<IpNet, Vec<&'a Route>> {
    let mut found: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
    for route in routes {
        found.entry(route.subnet).or_default().push(route);
    }
    found
}

/// Whether the kernel would replace `old` by `new`, and `old` is ours to replace.
fn takes_place_of(desired: &KernelState, new: &Route, old: &Route) -> bool {
    let is_flannels = old.protocol == FLANNEL_ROUTE_PROTOCOL && old.device == new.device;
    new.subnet == old.subnet && new.metric == old.metric && (is_flannels || ours(desired, old))
}

/// Whether a route is ours: one with our protocol, or one that flannel left on the backend's
/// device.
fn ours(desired: &KernelState, route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL
        || (route.protocol == FLANNEL_ROUTE_PROTOCOL
            && route.onlink
            && route.device.is_some()
            && route.device.as_deref() == name(desired)
            && desired.network.is_some_and(|it| it.contains(&route.subnet)))
}

#[cfg(test)]
mod tests;
