//! Pods are recognised by their links.

use overlay_user::kernel::Kernel;

use super::namespace::{Namespace, in_namespace, run};

#[test]
fn pods_are_ports_of_the_bridge_with_a_note() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        assert_eq!(kernel.pods("cni0").await.expect("list").bridge, None);
        let pod = Namespace::new();
        run("ip link add cni0 address 02:00:00:00:01:00 type bridge && ip link set cni0 up");
        run("ip addr add 10.244.1.1/24 dev cni0");
        for name in ["noted", "bare", "loose"] {
            run(&format!(
                "ip link add {name} type veth peer name p-{name} netns {}",
                pod.pid()
            ));
        }
        run("ip link set noted master cni0 up; ip link set bare master cni0 up");
        let note = "overlay/1 10.244.1.5 02:00:00:00:00:05 eth0 c0ffee";
        run(&format!(
            "ip link set noted alias \"{note}\"; ip link set loose alias \"{note}\""
        ));

        let found = kernel.pods("cni0").await.expect("list");
        let bridge = found.bridge.expect("the bridge");
        assert_eq!(bridge.mac.to_string(), "02:00:00:00:01:00");
        // The kernel gives the bridge a link-local address of IPv6 once a port has a carrier.
        let addresses = bridge.addresses.iter();
        let of_ipv4: Vec<_> = addresses.filter(|it| it.addr().is_ipv4()).collect();
        assert_eq!(of_ipv4, [&"10.244.1.1/24".parse().expect("an address")]);
        let [link] = &found.pods[..] else {
            panic!("{:?}", found.pods)
        };
        assert_eq!(
            (link.name.as_str(), link.note.to_string().as_str()),
            ("noted", note)
        );
        assert!(link.up && link.netns_id.is_some() && link.master == bridge.ifindex);

        // The note has the MAC address that ADD gave; another program may have given the pod
        // another one since.
        run(&format!(
            "nsenter -t {} -n ip link set p-noted address 02:00:00:00:00:77",
            pod.pid()
        ));
        let now = kernel.pods("cni0").await.expect("list").pods;
        assert_eq!(now[0].pod_mac.to_string(), "02:00:00:00:00:77");
        assert_eq!(now[0].note.mac.to_string(), "02:00:00:00:00:05");

        // A bridge without pods is not the pods' bridge, whatever its name.
        run("ip link add another type bridge; ip link set noted master another");
        let found = kernel.pods("cni0").await.expect("list");
        assert_eq!(found.bridge.expect("the bridge").name, "another");
        assert_eq!(found.pods.len(), 1);
        run("ip link set noted master cni0");

        let foreign = async || kernel.pods("cni0").await.expect("list").pods[0].has_foreign_qdisc;
        assert!(!foreign().await);
        run("tc qdisc add dev noted clsact");
        assert!(!foreign().await);
        run("tc filter add dev noted egress u32 match u32 0 0 classid 1:1");
        assert!(foreign().await);
        run("tc qdisc del dev noted clsact");
        assert!(!foreign().await);
        run("tc qdisc add dev noted root tbf rate 1mbit burst 10k latency 50ms");
        assert!(foreign().await);
    });
}

#[test]
fn a_port_without_a_note_is_a_pod_where_its_end_says_so() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        let ends = [Namespace::new(), Namespace::new()];
        run("ip link add cni0 type bridge && ip link set cni0 up");
        run("ip addr add 10.244.1.1/24 dev cni0");
        for (name, end) in ["one", "two"].iter().zip(&ends) {
            let peer = format!("peer name eth0 netns {}", end.pid());
            run(&format!("ip link add {name} type veth {peer}"));
            run(&format!("ip link set {name} master cni0 up"));
        }
        let learnt = async || {
            let pods = kernel.pods("cni0").await.expect("list").pods;
            let pods = pods.into_iter();
            pods.map(|pod| (pod.name, pod.note.addresses.to_string()))
                .collect::<Vec<_>>()
        };
        let pair = |name: &str, address: &str| (name.to_owned(), address.to_owned());
        assert_eq!(learnt().await, [], "without an address");
        // In this namespace the same index has an address, too, which is not the pod's.
        run("ip addr add 10.244.1.77/24 dev lo");
        assert_eq!(learnt().await, []);

        ends[0].run("ip link set eth0 address 02:00:00:00:00:09");
        ends[0].run("ip addr add 10.244.1.9/24 dev eth0 && ip link set eth0 up");
        assert_eq!(learnt().await, [pair("one", "10.244.1.9")]);
        let pods = kernel.pods("cni0").await.expect("list").pods;
        assert_eq!(pods[0].pod_mac.to_string(), "02:00:00:00:00:09");
        assert_eq!(pods[0].note.interface, "eth0");

        ends[1].run("ip addr add 10.244.1.9/24 dev eth0");
        assert_eq!(learnt().await, [], "two claim the address");
        let note = "overlay/1 10.244.1.9 02:00:00:00:00:09 eth0 c0ffee";
        run(&format!("ip link set one alias \"{note}\""));
        assert_eq!(
            learnt().await,
            [pair("one", "10.244.1.9")],
            "the plugin vouches for one of them"
        );
        ends[1].run("ip addr flush dev eth0; ip addr add 10.244.1.8/24 dev eth0");
        let both = [pair("one", "10.244.1.9"), pair("two", "10.244.1.8")];
        assert_eq!(learnt().await, both);
        run("ip link set two alias uplink");
        assert_eq!(learnt().await, both[..1], "a device of others");
    });
}

#[test]
fn every_reading_finds_every_filter() {
    in_namespace(|| async {
        let kernel = Kernel::connect().expect("netlink");
        run("ip link add eth0 type veth peer name eth1; tc qdisc add dev eth0 clsact");
        for side in ["ingress", "egress"] {
            run(&format!(
                "tc filter add dev eth0 {side} prio 7 u32 match u32 0 0 classid 1:1"
            ));
        }
        let device = kernel.ifindex("eth0").await.expect("eth0");
        // The kernel sometimes refuses requests that overlap.
        for reading in 0..2000 {
            let found = kernel.filters(device).await.expect("filters");
            assert!(
                found.iter().all(|filter| filter.priority == 7)
                    && found.iter().any(|filter| filter.egress)
                    && found.iter().any(|filter| !filter.egress),
                "reading {reading}: {found:?}"
            );
        }
        let gone = kernel.filters(device + 1000).await.expect("no device");
        assert_eq!(gone, []);
    });
}
