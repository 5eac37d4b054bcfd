//! No pod and no node can pretend to be another pod or another node, on the kernel path either.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use overlay_user::kernel::guard::{self, Guard, GuardChange, GuardCounters, GuardState, Reason};

use super::namespace::{Namespace, in_namespace, node_with_peer, run};

/// Longest time of a packet from one namespace to the next.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// An index that no device has.
const NO_DEVICE: u32 = 0xffff;

pub(super) fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

pub(super) fn state() -> GuardState {
    let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
    GuardState {
        network: net("10.244.0.0/16"),
        own_subnet: net("10.244.1.0/24"),
        own_vtep: Ipv4Addr::new(192, 0, 2, 1),
        underlay: NO_DEVICE,
        vxlan: Some("flannel.1".into()),
        nic: None,
        bridge: "cni0".into(),
        port: 8472,
        vni: 1,
        other_vnis: BTreeSet::from([77]),
        peers: [
            (at(2), [net("10.244.2.0/24"), net("10.244.32.0/20")].into()),
            (at(3), [net("10.244.3.0/24")].into()),
        ]
        .into_iter()
        .collect(),
        pods: BTreeSet::from([("pod".to_owned(), Ipv4Addr::new(10, 244, 1, 5))]),
        judged: None,
        has_untracked: false,
        translates: false,
        lapse: Duration::from_secs(600),
    }
}

async fn apply(state: &GuardState) -> Guard {
    let mut guard = Guard::new();
    let change = guard.apply(state).await.expect("apply");
    assert_eq!(change, GuardChange::Whole);
    guard
}

/// A VXLAN payload: header, Ethernet, the fixed part of IPv4, and `padding` more bytes.
pub(super) fn vxlan(vni: u32, kind: u16, source: [u8; 4], padding: usize) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]);
    bytes.extend(source);
    bytes.extend([10, 244, 1, 5]);
    bytes.resize(bytes.len() + 8 + padding, 0);
    bytes
}

/// The counters, once they no longer change, because packets may still be on their way.
async fn counters() -> GuardCounters {
    let mut last = guard::counters().await.expect("counters");
    loop {
        tokio::time::sleep(ON_THE_WAY).await;
        let now = guard::counters().await.expect("counters");
        if now == last {
            return now;
        }
        last = now;
    }
}

pub(super) async fn counted() -> Vec<(Reason, u64)> {
    let now = counters().await;
    assert_eq!(now.0.len(), Reason::ALL.len());
    now.0
        .into_iter()
        .filter(|(_, packets)| *packets > 0)
        .collect()
}

#[test]
fn forged_vxlan_is_refused_and_counted() {
    forged_vxlan_is_told(|| if_nametoindex("underlay").expect("an index"));
}

#[test]
fn forged_vxlan_is_refused_on_whatever_device_it_arrives() {
    forged_vxlan_is_told(|| NO_DEVICE);
}

fn forged_vxlan_is_told(underlay: fn() -> u32) {
    in_namespace(move || async move {
        let peer = node_with_peer();
        peer.run("ip addr add 192.0.2.9/24 dev underlay");
        let state = GuardState {
            underlay: underlay(),
            ..state()
        };
        let mut guard = apply(&state).await;
        // No socket has the port, so that a packet that passes causes an ICMP error; counters show
        // the rest.
        let send = |from: &'static str, payload: Vec<u8>| {
            peer.within(move || {
                let socket = UdpSocket::bind((from, 0)).expect("bind");
                socket.send_to(&payload, "192.0.2.1:8472").expect("send");
            });
        };
        let (known, unknown) = ("192.0.2.2", "192.0.2.9");
        let mut expected = Vec::new();
        for (from, payload, reason) in [
            (known, vxlan(1, 0x0800, [10, 244, 2, 7], 0), None),
            (known, vxlan(1, 0x0800, [10, 244, 47, 255], 0), None),
            (known, vxlan(1, 0x0800, [198, 51, 100, 7], 0), None),
            (unknown, vxlan(77, 0x0800, [10, 244, 3, 7], 0), None),
            (
                unknown,
                vxlan(1, 0x0800, [10, 244, 2, 7], 0),
                Some(Reason::UnknownVtep),
            ),
            (
                unknown,
                vxlan(1, 0x0800, [10, 244, 2, 7], 3000),
                Some(Reason::UnknownVtep),
            ),
            (
                known,
                vxlan(2, 0x0800, [10, 244, 2, 7], 0),
                Some(Reason::WrongVni),
            ),
            (
                known,
                vxlan(1, 0x8100, [10, 244, 2, 7], 0),
                Some(Reason::InnerVlan),
            ),
            (
                known,
                vxlan(1, 0x0806, [10, 244, 3, 7], 0),
                Some(Reason::InnerProtocol),
            ),
            (
                known,
                vxlan(1, 0x86dd, [10, 244, 2, 7], 0),
                Some(Reason::InnerProtocol),
            ),
            (
                known,
                vxlan(1, 0x86dd, [10, 244, 2, 7], 3000),
                Some(Reason::InnerProtocol),
            ),
            (
                known,
                vxlan(1, 0x0800, [10, 244, 3, 7], 0),
                Some(Reason::ForeignInnerSource),
            ),
            (
                known,
                vxlan(1, 0x0800, [10, 244, 1, 7], 0),
                Some(Reason::ForeignInnerSource),
            ),
            (
                known,
                vxlan(1, 0x0800, [10, 244, 48, 0], 0),
                Some(Reason::ForeignInnerSource),
            ),
            (
                known,
                vxlan(1, 0x0800, [10, 244, 3, 7], 3000),
                Some(Reason::ForeignInnerSource),
            ),
        ] {
            send(from, payload);
            match (
                reason,
                expected.iter_mut().find(|(r, _)| Some(*r) == reason),
            ) {
                (Some(_), Some((_, packets))) => *packets += 1,
                (Some(reason), None) => expected.push((reason, 1)),
                (None, _) => {}
            }
            expected.sort();
            assert_eq!(counted().await, expected);
        }
        // A socket with the same port for TCP has no effect.
        let listener = TcpListener::bind("192.0.2.1:8472").expect("listen");
        peer.within(|| TcpStream::connect("192.0.2.1:8472").expect("connect"));
        listener.accept().expect("accept");
        assert_eq!(counted().await, expected);
        // An update keeps the counters and applies the new address.
        let mut state = state;
        let subnet = "10.244.9.0/24".parse().expect("a net");
        state.peers.insert(at(9), [subnet].into());
        let change = guard.apply(&state).await.expect("apply again");
        assert_eq!(change, GuardChange::Elements(3));
        assert_eq!(guard.apply(&state).await.expect("again"), GuardChange::None);
        send(unknown, vxlan(1, 0x0800, [10, 244, 9, 7], 0));
        assert_eq!(counted().await, expected);
        guard::cleanup().await.expect("cleanup");
        guard::cleanup().await.expect("cleanup again");
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn tables_of_another_version_are_replaced_and_counters_go_on() {
    in_namespace(|| async {
        run("nft add table ip overlay_guard");
        run("nft add set ip overlay_guard vteps \\{ type ether_addr\\; \\}");
        run("nft add counter ip overlay_guard wrong_vni \\{ packets 7 bytes 700\\; \\}");
        run("nft add table inet overlay_guard");
        apply(&state()).await;
        assert_eq!(counted().await, [(Reason::WrongVni, 7)]);
        assert!(run("nft list set ip overlay_guard sources_24").contains("192.0.2.3"));
        assert!(!run("nft list tables").contains("inet"));
    });
}

#[test]
fn unknown_ports_are_left_alone() {
    in_namespace(|| async {
        let outside = Namespace::new();
        let name = "unknown type veth peer name unknown";
        run(&format!("ip link add {name} netns {}", outside.pid()));
        run("ip link add cni0 type bridge && ip link set cni0 up");
        run("ip link set unknown master cni0 up && ip addr add 10.244.1.1/24 dev cni0");
        apply(&state()).await;
        outside.run("ip link set unknown up && ip addr add 10.244.1.99/24 dev unknown");
        outside.run("ping -c 1 -W 2 10.244.1.1");
        assert_eq!(counted().await, []);
    });
}

#[test]
fn pods_cannot_pretend() {
    in_namespace(|| async {
        let pod = Namespace::new();
        run(
            "ip link add cni0 address 02:00:00:00:01:00 type bridge && ip link set cni0 up && ip \
            addr add 10.244.1.1/24 dev cni0",
        );
        run("ip addr add 192.0.2.1/32 dev lo");
        run(&format!(
            "ip link add pod type veth peer name eth0 netns {}",
            pod.pid()
        ));
        run("ip link set pod master cni0 up");
        pod.run("ip addr add 10.244.1.5/24 dev eth0 && ip link set eth0 up");
        pod.run("ip route add default via 10.244.1.1");
        apply(&state()).await;

        let send = |from: &'static str, to: &'static str| {
            pod.within(move || {
                let socket = UdpSocket::bind((from, 0)).expect("bind");
                socket.send_to(b"x", to).expect("send");
            });
        };
        pod.run("ping -c 1 -W 2 10.244.1.1");
        assert_eq!(counted().await, []);
        send("10.244.1.5", "192.0.2.1:8472");
        assert_eq!(counted().await, [(Reason::PodVxlan, 1)]);

        pod.run("ip addr add 10.244.1.99/32 dev eth0 && ip addr add 198.51.100.9/32 dev eth0");
        send("198.51.100.9", "10.244.1.1:9");
        assert_eq!(
            counted().await,
            [(Reason::PodVxlan, 1)],
            "a source outside is not ours to refuse"
        );
        send("10.244.1.99", "10.244.1.1:9");
        let expected = [(Reason::PodVxlan, 1), (Reason::SpoofedSource, 1)];
        assert_eq!(counted().await, expected);

        // Without its neighbours the pod sends ARP requests with the false address.
        pod.run("ip neigh flush dev eth0");
        send("10.244.1.99", "10.244.1.7:9");
        let arp = counters().await.get(Reason::SpoofedArp);
        assert!(arp > 0, "{:?}", counted().await);

        // Further requests of the pod itself would be counted in between.
        pod.run("ip addr del 10.244.1.99/32 dev eth0 && ip neigh del 10.244.1.7 dev eth0");
        // Priority tags hide nothing, because the kernel removes them before the IP stack.
        let gateway = "020000000100";
        let udp = "4500001d00010000401164670af401630af40101000900090009000078";
        let arp = "0001080006040001020000000005 0af40163 000000000000 0af40101".replace(' ', "");
        let mut expected = counters().await;
        for (frame, reason) in [
            (format!("81000000 0800 {udp}"), Reason::SpoofedSource),
            (format!("81000000 0806 {arp}"), Reason::SpoofedArp),
            (format!("81000000 81000000 0800 {udp}"), Reason::StackedVlan),
            (format!("88a80000 81000000 0806 {arp}"), Reason::StackedVlan),
        ] {
            let frame = format!("{gateway} 020000000005 {frame}").replace(' ', "");
            pod.send("eth0", &frame);
            *expected.0.entry(reason).or_default() += 1;
            let now = counters().await;
            assert_eq!(now.get(reason), expected.get(reason), "{frame}");
        }
    });
}
