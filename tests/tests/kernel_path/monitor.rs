//! Changes appear as events.

use std::net::IpAddr;
use std::time::Duration;

use overlay_user::kernel::Kernel;
use overlay_user::kernel::monitor::{KernelEvent, Monitor, ROUNDS};
use overlay_user::mac::MacAddr;
use overlay_user::reconcile::KernelChange;
use tokio::time::timeout;

use super::namespace::{in_namespace, run};

async fn expect(monitor: &mut Monitor, what: &str, wanted: impl Fn(&KernelEvent) -> bool) {
    let wait = async {
        loop {
            let event = monitor.next().await.expect("an event");
            if wanted(&event) {
                break;
            }
        }
    };
    timeout(Duration::from_secs(5), wait).await.expect(what);
}

#[test]
fn every_kind_of_change_is_an_event() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        let mut monitor = Monitor::subscribe(ROUNDS).expect("subscribe");
        run("ip link add veth0 type veth peer name veth1");
        let ifindex = kernel.ifindex("veth0").await.expect("the device");
        expect(&mut monitor, "link", |event| {
            *event == KernelEvent::Link(ifindex)
        })
        .await;
        run("ip addr add 10.0.0.1/24 dev veth0; ip link set veth0 up; ip link set veth1 up");
        expect(&mut monitor, "address", |event| {
            *event == KernelEvent::Address(ifindex)
        })
        .await;
        run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev veth0");
        let mac = MacAddr([2, 0, 0, 0, 0, 2]);
        expect(&mut monitor, "neighbour", |event| match event {
            KernelEvent::Neighbour(it) => {
                it.ifindex == ifindex
                    && it.permanent() == KernelChange::Neighbour([10, 0, 0, 2].into(), Some(mac))
            }
            _ => false,
        })
        .await;
        run("ip route add 10.1.0.0/24 via 10.0.0.2");
        expect(&mut monitor, "route", |event| match event {
            KernelEvent::Route(it) => {
                it.destination.to_string() == "10.1.0.0/24"
                    && matches!(&it.main, Some(KernelChange::Added(route))
                        if route.device.as_deref() == Some("veth0"))
            }
            _ => false,
        })
        .await;
        run("ip rule add from 10.9.0.0/16 table 9");
        run("tc qdisc add dev veth0 clsact");
        expect(&mut monitor, "qdisc", |event| {
            *event == KernelEvent::TrafficControl(ifindex)
        })
        .await;
    });
}

#[test]
fn lost_events_are_told_and_the_monitor_goes_on() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        let mut monitor = Monitor::subscribe(ROUNDS).expect("subscribe");
        run("ip link add dummy0 type bridge && ip link set dummy0 up");
        let add = "i=0; while [ $i -lt 60000 ]; do \
                   echo route replace 10.$((i/250)).$((i%250)).0/24 dev dummy0; i=$((i+1)); done";
        run(&format!("({add}) | ip -batch -"));
        expect(&mut monitor, "overrun", |event| {
            *event == KernelEvent::Overrun
        })
        .await;
        run("ip link add dummy1 type bridge");
        let ifindex = kernel.ifindex("dummy1").await.expect("the device");
        expect(&mut monitor, "link", |event| {
            *event == KernelEvent::Link(ifindex)
        })
        .await;
    });
}

/// An earlier look with the events applied equals a fresh look.
#[test]
fn events_keep_a_look_fresh() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        let network = "10.244.0.0/16".parse().expect("a network");
        run("ip link add veth0 type veth peer name veth1; ip link set veth0 up; ip link set veth1 up
             ip addr add 10.0.0.1/24 dev veth0
             ip link add flannel.1 type vxlan id 1 local 10.0.0.1 dev veth0 dstport 8472 nolearning
             ip addr add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up");
        let mut known = kernel
            .observe(Some("flannel.1"), network)
            .await
            .expect("a look");
        let device = known.device.as_ref().expect("the device").ifindex;
        let mut monitor = Monitor::subscribe(ROUNDS).expect("subscribe");
        for (number, change) in (1..).zip([
            "ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 111",
            "ip route add 10.244.3.0/24 via 10.0.0.3",
            "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto 111",
            "ip route add 10.244.3.0/24 via 10.0.0.3 metric 50",
            "ip route add 172.16.0.0/12 via 10.0.0.3",
            "ip route add 192.168.7.0/24 via 10.0.0.3 proto 111",
            "ip route add 10.244.4.0/24 nexthop via 10.0.0.3 nexthop via 10.0.0.4",
            "ip route add 10.244.5.0/24 via 10.0.0.3 table 77",
            "ip route add blackhole 10.244.6.0/24",
            "ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
            "ip neigh add 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
            "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud reachable",
            "bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.2 self permanent",
            "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 10.0.0.9 self permanent",
            "bridge fdb add 02:00:00:00:00:07 dev flannel.1 dst 10.0.0.7 self permanent",
            "bridge fdb del 02:00:00:00:00:07 dev flannel.1 dst 10.0.0.7 self",
            "ip route del 10.244.3.0/24 metric 50",
            "ip route del 10.244.2.0/24",
            "ip neigh del 10.244.2.0 dev flannel.1",
        ]) {
            run(change);
            // A mark that comes after all events of the change, and has one event.
            let mark = IpAddr::from([192, 0, 2, number]);
            run(&format!(
                "ip neigh add {mark} lladdr 02:00:00:00:00:77 dev veth1 nud permanent"
            ));
            loop {
                match monitor.next().await.expect("an event") {
                    KernelEvent::Neighbour(it) if it.ifindex == device => {
                        known.apply(&it.permanent());
                    }
                    KernelEvent::Fdb { ifindex, change } if ifindex == device => {
                        known.apply(&change);
                    }
                    KernelEvent::Route(it) => {
                        it.main.iter().for_each(|change| {
                            known.apply(change);
                        });
                    }
                    KernelEvent::Neighbour(it) if it.address == mark => break,
                    _ => {}
                }
            }
            let fresh = kernel
                .observe(Some("flannel.1"), network)
                .await
                .expect("a look");
            assert_eq!(known, fresh, "after `{change}`");
        }
    });
}
