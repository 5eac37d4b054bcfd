//! Routes: ours, flannel's, and foreign ones.

use super::*;

#[test]
fn a_way_that_becomes_direct_is_replaced_without_a_gap() {
    let mut want = desired(&[peer(2), peer(3)]);
    let kernel = settled(&want);
    let direct = Route {
        gateway: Some(peer(2).vtep),
        device: Some("eth0".into()),
        onlink: false,
        ..route(&peer(2))
    };
    let with_direct = KernelState {
        routes: [direct.clone(), route(&peer(3))].into(),
        ..desired(&[peer(3)])
    };
    let (actions, kernel) = settle(&with_direct, kernel);
    let expected = [
        Action::ReplaceRoute(direct.clone()),
        Action::RemoveFdb(peer(2).mac, peer(2).vtep),
        Action::RemoveNeighbour(peer(2).subnet.network()),
    ];
    assert_eq!(actions, expected);

    // The same without any device, as with host-gw.
    want = KernelState {
        device: None,
        routes: [direct].into(),
        ..desired(&[])
    };
    let (actions, _) = settle(&want, kernel);
    assert_eq!(actions[0], Action::RemoveRoute(route(&peer(3))));
}

#[test]
fn without_a_device_of_ours_flannels_routes_are_others() {
    let want = KernelState {
        device: None,
        ..desired(&[])
    };
    let mut kernel = settled(&want);
    kernel.routes.insert(Route {
        protocol: FLANNEL_ROUTE_PROTOCOL,
        device: None,
        ..route(&peer(9))
    });
    assert_eq!(diff(&want, &kernel), []);
}

#[test]
fn routes_of_others_are_left_alone() {
    let want = desired(&[peer(2)]);
    let mut kernel = settled(&want);
    let foreign = |subnet: &str, protocol, device: &str, onlink| Route {
        subnet: net(subnet),
        gateway: None,
        device: Some(device.into()),
        onlink,
        protocol,
        metric: 0,
    };
    let kept = [
        foreign("0.0.0.0/0", FLANNEL_ROUTE_PROTOCOL, "eth0", false),
        foreign("10.244.7.0/24", FLANNEL_ROUTE_PROTOCOL, "eth0", true),
        foreign("10.99.0.0/24", FLANNEL_ROUTE_PROTOCOL, "flannel.1", true),
        foreign("10.244.8.0/24", 4, "flannel.1", true),
    ];
    kernel.routes.extend(kept);
    assert_eq!(diff(&want, &kernel), []);

    let flannels = foreign("10.244.9.0/24", FLANNEL_ROUTE_PROTOCOL, "flannel.1", true);
    kernel.routes.insert(flannels.clone());
    assert_eq!(settle(&want, kernel).0, [Action::RemoveRoute(flannels)]);
}

#[test]
fn flannels_route_is_replaced_without_a_gap() {
    let want = desired(&[peer(2)]);
    let mut kernel = settled(&want);
    let ours = route(&peer(2));
    kernel.routes = [Route {
        protocol: FLANNEL_ROUTE_PROTOCOL,
        ..ours.clone()
    }]
    .into();
    assert_eq!(settle(&want, kernel).0, [Action::ReplaceRoute(ours)]);
}

#[test]
fn a_route_by_another_device_outlives_the_device() {
    let want = desired(&[peer(2)]);
    let direct = Route {
        gateway: Some(peer(2).vtep),
        device: Some("eth0".into()),
        onlink: false,
        ..route(&peer(2))
    };
    let kernel = KernelState {
        routes: [direct].into(),
        ..KernelState::default()
    };
    let (actions, _) = settle(&want, kernel);
    assert!(actions.contains(&Action::ReplaceRoute(route(&peer(2)))));
}

#[test]
fn what_others_have_in_the_place_of_a_route_is_not_replaced() {
    let want = desired(&[peer(2)]);
    let wanted = route(&peer(2));
    let others = Route {
        protocol: 4,
        ..wanted.clone()
    };
    let flannels_elsewhere = Route {
        protocol: FLANNEL_ROUTE_PROTOCOL,
        device: Some("eth1".into()),
        ..wanted.clone()
    };
    for old in [others, flannels_elsewhere] {
        let mut kernel = settled(&want);
        kernel.routes = [old.clone()].into();
        let actions = diff(&want, &kernel);
        // The kernel refuses this route with EEXIST.
        assert_eq!(actions, [Action::AddRoute(wanted.clone())], "{old:?}");
    }
}

#[test]
fn a_route_beside_ours_does_not_take_its_place() {
    let want = desired(&[peer(2)]);
    let mut kernel = settled(&want);
    let odd = Route {
        metric: 50,
        ..route(&peer(2))
    };
    kernel.routes = [odd.clone()].into();
    let expected = [Action::AddRoute(route(&peer(2))), Action::RemoveRoute(odd)];
    assert_eq!(settle(&want, kernel).0, expected);
}

#[test]
fn our_route_at_another_metric_goes() {
    let want = desired(&[peer(2)]);
    let mut kernel = settled(&want);
    let odd = Route {
        metric: 50,
        ..route(&peer(2))
    };
    kernel.routes.insert(odd.clone());
    assert_eq!(settle(&want, kernel).0, [Action::RemoveRoute(odd)]);
}
