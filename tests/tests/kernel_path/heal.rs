//! Every lost or changed object is restored, and no foreign object is touched.

use std::net::IpAddr;

use ipnet::IpNet;
use overlay_user::backend::{Backend as _, Here, Peer, UnderlayDevice, Vxlan, Way};
use overlay_user::kernel::{self, Kernel};
use overlay_user::mac::MacAddr;
use overlay_user::reconcile::{Action, KernelState, RecreateReason, diff};

use super::namespace::{in_namespace, node_with_peer, run};

async fn desired(kernel: &Kernel) -> KernelState {
    let here = Here {
        network: "10.244.0.0/16".parse().expect("a network"),
        subnet: "10.244.1.0/24".parse().expect("a subnet"),
        public_ip: [192, 0, 2, 1].into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        nic: UnderlayDevice {
            name: "underlay".into(),
            ifindex: kernel.ifindex("underlay").await.expect("the underlay"),
            mtu: 1500,
        },
        on_link: Vec::new(),
    };
    let peer = Peer {
        subnet: "10.244.2.0/24".parse().expect("a network"),
        vtep: IpAddr::from([192, 0, 2, 2]),
        way: Way::Vxlan {
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
        },
    };
    Vxlan::default().state(&here, &[peer])
}

fn network(desired: &KernelState) -> IpNet {
    desired.network.expect("a network")
}

/// Applies the difference and checks that the next one is empty. Returns the actions.
async fn settle(kernel: &Kernel, desired: &KernelState) -> Vec<Action> {
    let look = async || {
        kernel
            .observe(Some("flannel.1"), network(desired))
            .await
            .expect("observe")
    };
    let actions = diff(desired, &look().await);
    let failures = kernel.apply(desired, &actions).await;
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(diff(desired, &look().await), [], "after {actions:?}");
    actions
}

fn ping() {
    run("ping -c 1 -W 2 -I 10.244.1.0 10.244.2.0");
}

#[test]
fn what_is_lost_comes_back() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let desired = desired(&kernel).await;
        assert_eq!(settle(&kernel, &desired).await.len(), 8);
        ping();
        assert_eq!(settle(&kernel, &desired).await, []);
        run("ip link add other type vxlan id 77 dstport 8472 dev underlay");
        assert_eq!(
            kernel.other_vnis("flannel.1", 8472).await.expect("list"),
            [77].into()
        );
        for loss in [
            "ip neigh flush dev flannel.1 nud permanent",
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
            "bridge fdb replace 02:00:00:00:00:02 dst 192.0.2.77 dev flannel.1 self permanent",
            "ip route del 10.244.2.0/24",
            "ip link set flannel.1 down",
            "ip link set flannel.1 mtu 1300",
            "ip link set flannel.1 addrgenmode eui64",
            "ip addr add fe80::7/64 dev flannel.1",
            "sysctl -qw net/ipv6/conf/flannel.1/accept_ra=1",
            "ip addr del 10.244.1.0/32 dev flannel.1",
            "ip link set flannel.1 type vxlan learning",
            "ip link del flannel.1",
            "sysctl -qw net.ipv4.ip_forward=0",
        ] {
            run(loss);
            assert_ne!(settle(&kernel, &desired).await, [], "after {loss}");
            ping();
        }
    });
}

#[test]
fn what_is_not_wanted_goes_and_what_is_not_ours_stays() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let desired = desired(&kernel).await;
        settle(&kernel, &desired).await;
        run("ip route add 10.244.8.0/24 via 10.244.8.0 dev flannel.1 onlink proto 111");
        run("ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink proto boot");
        run("ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent");
        run("bridge fdb add 02:00:00:00:00:09 dst 192.0.2.9 dev flannel.1 self permanent");
        run("ip addr add 10.244.77.1/32 dev flannel.1");
        run("ip addr add 198.51.100.1/32 dev flannel.1");
        run("ip route add 203.0.113.0/24 dev underlay proto static");
        run("ip route add 10.244.7.0/24 dev underlay proto boot");
        run("ip neigh add 192.0.2.5 lladdr 02:00:00:00:00:05 dev underlay nud permanent");
        settle(&kernel, &desired).await;

        let routes = run("ip route");
        for gone in ["10.244.8.0/24", "10.244.9.0/24"] {
            assert!(!routes.contains(gone), "{routes}");
        }
        for stays in ["203.0.113.0/24", "10.244.7.0/24"] {
            assert!(routes.contains(stays), "{routes}");
        }
        assert!(!run("ip neigh").contains("10.244.9.0"));
        assert!(run("ip neigh").contains("192.0.2.5"));
        assert!(!run("bridge fdb").contains("02:00:00:00:00:09"));
        let addresses = run("ip addr show flannel.1");
        assert!(!addresses.contains("10.244.77.1") && addresses.contains("198.51.100.1"));
        ping();
    });
}

#[test]
fn flannels_state_is_taken_over_without_a_new_device() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let desired = desired(&kernel).await;
        run(
            "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dstport 8472 \
             local 192.0.2.1 dev underlay nolearning && ip addr add 10.244.1.0/32 dev flannel.1 && \
             ip link set flannel.1 up && \
             ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent && \
             bridge fdb add 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1 self permanent && \
             ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink && \
             sysctl -qw net.ipv4.ip_forward=1",
        );
        let route = desired.routes.first().expect("a route").clone();
        let mut actions = settle(&kernel, &desired).await;
        // flannel does not remove the device's automatic link-local address.
        assert_eq!(actions.remove(0), Action::ForbidAutoconfiguration);
        actions.retain(|action| !matches!(action, Action::RemoveAddress(IpNet::V6(_))));
        assert_eq!(actions, [Action::ReplaceRoute(route)]);
        assert!(!run("ip addr show flannel.1").contains("fe80:"));
        ping();
    });
}

#[test]
fn a_device_that_cannot_be_changed_is_made_anew_with_its_mac() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let mut desired = desired(&kernel).await;
        settle(&kernel, &desired).await;
        let device = desired.device.as_mut().expect("a device");
        device.vxlan.as_mut().expect("a VXLAN device").port = 4789;
        let actions = settle(&kernel, &desired).await;
        assert_eq!(
            actions.first(),
            Some(&Action::DeleteDevice(RecreateReason::Port))
        );
        let device = run("ip -d link show flannel.1");
        assert!(
            device.contains("02:00:00:00:00:01") && device.contains("dstport 4789"),
            "{device}"
        );
    });
}

#[test]
fn a_foreign_route_is_reported_and_left_alone() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let desired = desired(&kernel).await;
        run("ip route add 10.244.2.0/24 dev underlay proto static");
        let observed = kernel
            .observe(Some("flannel.1"), network(&desired))
            .await
            .expect("observe");
        let failures = kernel.apply(&desired, &diff(&desired, &observed)).await;
        let errors: Vec<_> = failures.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].contains("RTM_NEWROUTE 10.244.2.0/24: File exists"),
            "{errors:?}"
        );
        assert!(run("ip route").contains("10.244.2.0/24 dev underlay proto static"));
    });
}

#[test]
fn cleanup_takes_ours_and_leaves_the_rest() {
    in_namespace(|| async {
        let _peer = node_with_peer();
        let kernel = Kernel::connect().expect("netlink");
        let desired = desired(&kernel).await;
        settle(&kernel, &desired).await;
        run("ip link add cni0 type bridge");
        run("ip route add 10.250.0.0/24 dev underlay proto 111");
        run("ip route add 203.0.113.0/24 dev underlay proto static");
        for _ in 0..2 {
            kernel::cleanup(Some("flannel.1"), network(&desired))
                .await
                .expect("cleanup");
        }
        let (links, routes) = (run("ip link"), run("ip route"));
        assert!(
            !links.contains("flannel.1") && links.contains("cni0"),
            "{links}"
        );
        assert!(
            !routes.contains("10.250") && routes.contains("203.0.113.0/24"),
            "{routes}"
        );
        assert_eq!(run("nft list tables"), "");
    });
}
