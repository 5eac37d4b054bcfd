//! Changes show as events.

use std::time::Duration;

use overlay_user::kernel::Kernel;
use overlay_user::kernel::monitor::{Event, Monitor};
use tokio::time::timeout;

use super::namespace::{in_namespace, run};

async fn expect(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Event) -> bool) {
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
        let mut monitor = Monitor::subscribe().expect("subscribe");
        run("ip link add veth0 type veth peer name veth1");
        let ifindex = kernel.ifindex("veth0").await.expect("the device");
        expect(&mut monitor, "link", |event| *event == Event::Link(ifindex)).await;
        run("ip addr add 10.0.0.1/24 dev veth0; ip link set veth0 up; ip link set veth1 up");
        expect(&mut monitor, "address", |event| {
            *event == Event::Address(ifindex)
        })
        .await;
        run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev veth0");
        expect(&mut monitor, "neighbour", |event| {
            *event == Event::Neighbour(ifindex)
        })
        .await;
        run("ip route add 10.1.0.0/24 via 10.0.0.2");
        expect(&mut monitor, "route", |event| *event == Event::Route).await;
        run("tc qdisc add dev veth0 clsact");
        expect(&mut monitor, "qdisc", |event| {
            *event == Event::TrafficControl(ifindex)
        })
        .await;
    });
}

#[test]
fn lost_events_are_told_and_the_monitor_goes_on() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        let mut monitor = Monitor::subscribe().expect("subscribe");
        run("ip link add dummy0 type bridge && ip link set dummy0 up");
        let add = "i=0; while [ $i -lt 60000 ]; do \
                   echo route replace 10.$((i/250)).$((i%250)).0/24 dev dummy0; i=$((i+1)); done";
        run(&format!("({add}) | ip -batch -"));
        expect(&mut monitor, "overrun", |event| *event == Event::Overrun).await;
        run("ip link add dummy1 type bridge");
        let ifindex = kernel.ifindex("dummy1").await.expect("the device");
        expect(&mut monitor, "link", |event| *event == Event::Link(ifindex)).await;
    });
}
