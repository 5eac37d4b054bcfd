//! The difference against an invented kernel state.

mod routes;

use std::net::IpAddr;

use super::*;
use crate::mac::MacAddr;

/// A peer reached by VXLAN.
#[derive(Clone)]
struct Peer {
    subnet: IpNet,
    vtep: IpAddr,
    mac: MacAddr,
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn peer(number: u8) -> Peer {
    Peer {
        subnet: net(&format!("10.244.{number}.0/24")),
        vtep: IpAddr::from([192, 0, 2, number]),
        mac: MacAddr([2, 0, 0, 0, 0, number]),
    }
}

fn route(peer: &Peer) -> Route {
    Route {
        subnet: peer.subnet,
        gateway: Some(peer.subnet.network()),
        device: Some("flannel.1".into()),
        onlink: true,
        protocol: ROUTE_PROTOCOL,
        metric: 0,
    }
}

fn desired(peers: &[Peer]) -> KernelState {
    KernelState {
        network: Some(net("10.244.0.0/16")),
        device: Some(OverlayDevice {
            name: "flannel.1".into(),
            ifindex: 0,
            vxlan: Some(VxlanAttributes {
                vni: 1,
                port: 8472,
                underlay: 2,
                local: Some(IpAddr::from([192, 0, 2, 1])),
                learning: false,
            }),
            mac: MacAddr([2, 0, 0, 0, 0, 0xff]),
            mtu: 1450,
            up: true,
            addresses: [net("10.244.1.0/32")].into(),
            configures_itself: false,
        }),
        neighbours: peers
            .iter()
            .map(|it| (it.subnet.network(), it.mac))
            .collect(),
        fdb: peers.iter().map(|it| (it.mac, it.vtep)).collect(),
        routes: peers.iter().map(route).collect(),
        forwarding: true,
    }
}

/// The device, for changes.
fn device(state: &mut KernelState) -> &mut OverlayDevice {
    state.device.as_mut().expect("a device")
}

fn vxlan(state: &mut KernelState) -> &mut VxlanAttributes {
    device(state).vxlan.as_mut().expect("a VXLAN device")
}

/// What the kernel holds after `actions`.
fn applied(mut kernel: KernelState, actions: &[Action]) -> KernelState {
    for action in actions {
        let device = kernel.device.as_mut();
        match action.clone() {
            Action::EnableForwarding => kernel.forwarding = true,
            Action::DeleteDevice(_) => {
                kernel
                    .routes
                    .retain(|route| route.device.as_deref() != Some("flannel.1"));
                kernel = KernelState {
                    routes: kernel.routes,
                    forwarding: kernel.forwarding,
                    ..KernelState::default()
                };
            }
            Action::CreateDevice(new, vxlan) => {
                kernel.device = Some(OverlayDevice {
                    ifindex: 9,
                    vxlan: Some(vxlan),
                    up: false,
                    addresses: [].into(),
                    configures_itself: true,
                    ..new
                });
            }
            Action::DisableLearning => {
                let vxlan = device.and_then(|device| device.vxlan.as_mut());
                vxlan.expect("a VXLAN device").learning = false;
            }
            Action::ForbidAutoconfiguration => {
                device.expect("a device").configures_itself = false;
            }
            Action::SetMtu(mtu) => device.expect("a device").mtu = mtu,
            Action::SetUp => device.expect("a device").up = true,
            Action::AddAddress(address) => {
                device.expect("a device").addresses.insert(address);
            }
            Action::RemoveAddress(address) => {
                assert!(device.expect("a device").addresses.remove(&address));
            }
            Action::SetNeighbour(address, mac) => {
                kernel.neighbours.insert(address, mac);
            }
            Action::RemoveNeighbour(address) => {
                assert!(kernel.neighbours.remove(&address).is_some());
            }
            Action::SetFdb(mac, vtep) => {
                kernel.fdb.insert(mac, vtep);
            }
            Action::RemoveFdb(mac, _) => assert!(kernel.fdb.remove(&mac).is_some()),
            Action::AddRoute(route) => {
                let same = |r: &Route| r.subnet == route.subnet && r.metric == route.metric;
                assert!(!kernel.routes.iter().any(same), "File exists");
                kernel.routes.insert(route);
            }
            Action::ReplaceRoute(route) => {
                kernel
                    .routes
                    .retain(|r| r.subnet != route.subnet || r.metric != route.metric);
                kernel.routes.insert(route);
            }
            Action::RemoveRoute(route) => assert!(kernel.routes.remove(&route)),
        }
    }
    kernel
}

/// Applies the difference, checks that the next difference is empty, and returns the actions and
/// the resulting state.
fn settle(desired: &KernelState, kernel: KernelState) -> (Vec<Action>, KernelState) {
    let actions = diff(desired, &kernel);
    let kernel = applied(kernel, &actions);
    assert_eq!(diff(desired, &kernel), [], "after {actions:?}");
    (actions, kernel)
}

fn settled(desired: &KernelState) -> KernelState {
    settle(desired, KernelState::default()).1
}

fn position(actions: &[Action], wanted: impl Fn(&Action) -> bool) -> usize {
    actions.iter().position(wanted).expect("the action")
}

#[test]
fn ipv6_does_not_configure_the_device() {
    let desired = desired(&[peer(2)]);
    let mut kernel = settled(&desired);
    let device = device(&mut kernel);
    device.configures_itself = true;
    device.addresses.insert(net("fe80::1/64"));
    // A route of the machine's owner.
    device.addresses.insert(net("2001:db8::1/64"));
    let (actions, kernel) = settle(&desired, kernel);
    let expected = [
        Action::ForbidAutoconfiguration,
        Action::RemoveAddress(net("fe80::1/64")),
    ];
    assert_eq!(actions, expected);
    let device = kernel.device.expect("a device");
    assert!(device.addresses.contains(&net("2001:db8::1/64")));
}

#[test]
fn an_empty_kernel_gets_everything_in_order() {
    let (actions, _) = settle(&desired(&[peer(2), peer(3)]), KernelState::default());
    assert_eq!(actions[0], Action::EnableForwarding);
    let device = position(&actions, |a| matches!(a, Action::CreateDevice(..)));
    let quiet = position(&actions, |a| *a == Action::ForbidAutoconfiguration);
    let up = position(&actions, |a| *a == Action::SetUp);
    assert!(
        device < quiet && quiet < up,
        "an address comes with the device's being up"
    );
    let neighbour = position(&actions, |a| matches!(a, Action::SetNeighbour(..)));
    let fdb = position(&actions, |a| matches!(a, Action::SetFdb(..)));
    let route = position(&actions, |a| matches!(a, Action::AddRoute(_)));
    assert!(device < up && up < neighbour && neighbour < fdb && fdb < route);
}

#[test]
fn a_peer_that_leaves_goes_route_first() {
    let kernel = settled(&desired(&[peer(2), peer(3)]));
    let with_one = desired(&[peer(2)]);
    let (actions, _) = settle(&with_one, kernel);
    assert_eq!(
        actions,
        [
            Action::RemoveRoute(route(&peer(3))),
            Action::RemoveFdb(peer(3).mac, peer(3).vtep),
            Action::RemoveNeighbour(peer(3).subnet.network()),
        ]
    );
}

#[test]
fn a_peer_with_a_new_mac_leaves_no_fdb_entry_behind() {
    let kernel = settled(&desired(&[peer(2)]));
    let changed = Peer {
        mac: MacAddr([2, 0, 0, 0, 9, 9]),
        ..peer(2)
    };
    let (actions, _) = settle(&desired(std::slice::from_ref(&changed)), kernel);
    assert_eq!(
        actions,
        [
            Action::SetNeighbour(changed.subnet.network(), changed.mac),
            Action::SetFdb(changed.mac, changed.vtep),
            Action::RemoveFdb(peer(2).mac, peer(2).vtep),
        ]
    );
}

#[test]
fn a_peer_with_a_new_address_is_replaced_in_place() {
    let kernel = settled(&desired(&[peer(2)]));
    let moved = Peer {
        vtep: IpAddr::from([192, 0, 2, 77]),
        ..peer(2)
    };
    let (actions, _) = settle(&desired(std::slice::from_ref(&moved)), kernel);
    assert_eq!(actions, [Action::SetFdb(moved.mac, moved.vtep)]);
}

#[test]
fn two_peers_with_one_mac_do_not_take_turns() {
    let twin = Peer {
        mac: peer(2).mac,
        ..peer(3)
    };
    settled(&desired(&[peer(2), twin]));
}

#[test]
fn a_device_made_anew_keeps_its_mac_and_gets_everything_again() {
    let mut want = desired(&[peer(2)]);
    let mut kernel = settled(&want);
    let mac = device(&mut kernel).mac;
    vxlan(&mut want).vni = 7;
    let (actions, kernel) = settle(&want, kernel);
    assert_eq!(actions[0], Action::DeleteDevice(RecreateReason::Vni));
    assert_eq!(kernel.device.expect("a device").mac, mac);
    assert_eq!(kernel.fdb.len(), 1);
}

#[test]
fn every_unchangeable_attribute_has_its_reason() {
    let base = desired(&[]);
    let kernel = settled(&base);
    let change = |edit: fn(&mut KernelState)| {
        let mut want = base.clone();
        edit(&mut want);
        settle(&want, kernel.clone()).0[0].clone()
    };
    let delete = Action::DeleteDevice;
    assert_eq!(change(|d| vxlan(d).vni = 7), delete(RecreateReason::Vni));
    assert_eq!(
        change(|d| vxlan(d).port = 4789),
        delete(RecreateReason::Port)
    );
    assert_eq!(
        change(|d| vxlan(d).underlay = 3),
        delete(RecreateReason::Underlay)
    );
    assert_eq!(
        change(|d| vxlan(d).local = Some([192, 0, 2, 9].into())),
        delete(RecreateReason::Local)
    );
    assert_eq!(change(|d| device(d).mtu = 8951), Action::SetMtu(8951));
    let mut bridge = kernel.clone();
    device(&mut bridge).vxlan = None;
    assert_eq!(diff(&base, &bridge)[0], delete(RecreateReason::Kind));
}

/// The change that is noted for an action is the one after which the kernel's state is as observed.
#[test]
fn an_action_tells_what_the_kernel_then_holds() {
    let moved = Peer {
        vtep: IpAddr::from([192, 0, 2, 77]),
        ..peer(3)
    };
    let want = desired(&[moved, peer(4), peer(5)]);
    let mut kernel = settled(&desired(&[peer(2), peer(3), peer(5)]));
    kernel.network = want.network;
    let flannels = |route: Route| Route {
        protocol: FLANNEL_ROUTE_PROTOCOL,
        ..route
    };
    kernel.routes.remove(&route(&peer(5)));
    kernel.routes.insert(flannels(route(&peer(5))));
    let (actions, after) = settle(&want, kernel.clone());
    for action in &actions {
        let change = action
            .change()
            .expect("a change of what hangs on the device");
        assert!(kernel.apply(&change), "{action}: no news");
    }
    assert_eq!(kernel, after);
    let tells = |action: Action| action.change().is_some();
    assert!(!tells(Action::SetUp) && !tells(Action::EnableForwarding));
}

#[test]
fn an_action_says_what_it_does_and_why() {
    for (reason, text) in [
        (RecreateReason::Kind, "it is not a VXLAN device"),
        (RecreateReason::Vni, "its VNI differs"),
    ] {
        let action = Action::DeleteDevice(reason);
        assert_eq!(action.to_string(), format!("delete device because {text}"));
    }
    let action = Action::SetFdb(peer(2).mac, peer(2).vtep);
    assert_eq!(action.to_string(), "set fdb 02:00:00:00:00:02 to 192.0.2.2");
}

#[test]
fn forwarding_is_never_switched_off() {
    let mut want = desired(&[]);
    let kernel = settled(&want);
    want.forwarding = false;
    assert_eq!(diff(&want, &kernel), []);
}
