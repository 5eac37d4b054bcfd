//! A node of flannel's, made by plain `ip` and `bridge` commands and a lease written by hand,
//! beside our nodes; and a node that changes from flannel to our agent.

mod plain;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use overlay_tests::fast_path::{has_tcx, packets, wait_serving};
use overlay_tests::traffic::{Answers, Endpoint, icmp, tcp, udp};
use overlay_tests::{Lab, Node, Options, reach, wait_until};
use serde_json::{Value, json};

use plain::{Lease, Plain};

/// Longest time until our nodes have followed a lease.
const FOLLOWED: Duration = Duration::from_secs(5);
const READY: Duration = Duration::from_secs(30);

/// A lab of bare nodes, of which only those named run our agent, each with a pod.
fn lab(name: &str, nodes: usize, ours: &[usize]) -> Result<Lab> {
    let lab = Lab::up(Options {
        nodes,
        start_agents: false,
        ..Options::for_test(name)
    })?;
    for number in ours {
        lab.node(*number).start_agent_unready(&[])?;
    }
    for number in ours {
        lab.node(*number).wait_ready(READY)?;
        lab.add_pod(*number)?;
        wait_serving(&lab.node(*number))?;
    }
    Ok(lab)
}

/// A subnet of the network that none of these nodes holds.
fn free_subnet(taken: &[Ipv4Net]) -> Result<Ipv4Net> {
    let candidates = (1..=9).map(|third| format!("10.244.{third}.0/24"));
    let mut free = candidates.filter_map(|text| text.parse().ok());
    free.find(|subnet| !taken.contains(subnet))
        .context("no free subnet")
}

/// The peer with this subnet in `overlayctl status`.
fn peer(node: &Node, subnet: Ipv4Net) -> Result<Option<Value>> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let subnet = json!(subnet.to_string());
    Ok(peers.into_iter().find(|peer| peer["subnet"] == subnet))
}

/// Waits until both paths of a node know a lease.
fn wait_known(node: &Node, lease: &Lease) -> Result<()> {
    wait_until(
        &format!("{} to know {lease:?}", node.name()),
        FOLLOWED,
        || {
            peer(node, lease.subnet).is_ok_and(|peer| {
                peer.is_some_and(|peer| {
                    peer["mac"] == lease.mac
                        && peer["vtep"] == lease.public.to_string()
                        && peer["mtu"] == 1450
                })
            })
        },
    )
    .with_context(|| node.agent_log_tail())
}

/// Sends traffic there and back, in both directions.
fn talk(a: &Endpoint, b: &Endpoint) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let what = || format!("{} to {}", from.name, to.name);
        icmp(from, to, 56).with_context(what)?;
        tcp(from, to, 2_000_000).with_context(what)?;
        for length in [1, 1422, 9000] {
            udp(from, to, length, Answers::Once).with_context(what)?;
        }
    }
    Ok(())
}

#[test]
fn a_plain_flannel_node_talks_with_ours() -> Result<()> {
    let lab = lab("interop", 3, &[1, 2])?;
    let ours = [lab.node(1), lab.node(2)];
    let leases = [Lease::of(&lab, &ours[0])?, Lease::of(&lab, &ours[1])?];
    let subnet = free_subnet(&[leases[0].subnet, leases[1].subnet])?;
    let mut plain = Plain::set_up(&lab, lab.node(3), subnet, "0e:1a:2b:3c:4d:5e")?;
    leases.iter().try_for_each(|lease| plain.add_peer(lease))?;
    let pods = [lab.pod(1, 1), lab.pod(2, 1)];
    let converse = |plain: &Plain, what: &str| -> Result<()> {
        plain.lease.write(&lab)?;
        for (node, pod) in ours.iter().zip(&pods) {
            wait_known(node, &plain.lease)?;
            let before = taken(node)?;
            talk(&reach::of_pod(pod), &plain.endpoint())
                .with_context(|| format!("{what}; {}", node.agent_log_tail()))?;
            let after = taken(node)?;
            ensure!(
                after.0 > before.0 + 30,
                "{what}: {} encapsulated {before:?}, then {after:?}",
                node.name()
            );
            // The kernel's VXLAN device writes a checksum into the outer header, which no device
            // has verified yet when the packet arrives over a veth.
            ensure!(
                after.1 > before.1 + 30,
                "{what}: {} got {before:?}, then {after:?}",
                node.name()
            );
        }
        talk(&reach::of_pod(&pods[0]), &reach::of_pod(&pods[1]))
    };
    converse(&plain, "at first")?;

    plain.lease.mac = "0e:5e:4d:3c:2b:1a".to_owned();
    let line = format!("ip link set flannel.1 address {}", plain.lease.mac);
    plain.node.run(line.split(' '))?;
    // The kernel removes a device's neighbours with its address.
    leases.iter().try_for_each(|lease| plain.add_peer(lease))?;
    converse(&plain, "with another MAC address")?;

    plain.lease.public = Ipv4Addr::new(192, 168, 66, 133);
    plain
        .node
        .run("ip address add 192.168.66.133/24 dev eth0".split(' '))?;
    plain.node.run("ip link delete flannel.1".split(' '))?;
    plain.make_device()?;
    leases.iter().try_for_each(|lease| plain.add_peer(lease))?;
    converse(&plain, "with another public address")?;

    lab.etcdctl(&["del", &plain.lease.key()])?;
    for node in &ours {
        forgotten(node, &plain.lease)?;
        let refused = packets(node, "net_in", "unknown_vtep")?;
        let pod = node.pods()[0].address().to_string();
        let answer = plain.pod.exec(["ping", "-c1", "-W1", &pod])?;
        ensure!(
            !answer.status.success(),
            "a node without a lease is still heard"
        );
        ensure!(
            packets(node, "net_in", "unknown_vtep")? > refused,
            "a node without a lease is not refused by name"
        );
    }
    talk(&reach::of_pod(&pods[0]), &reach::of_pod(&pods[1]))
}

/// Whether the fast path carries a pod's packets.
fn fast_path(node: &Node, pod: &Endpoint) -> Result<bool> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let pods = status["pods"].as_array().context("no pods")?;
    let address = json!(pod.address.to_string());
    let mut pods = pods.iter();
    Ok(pods.any(|it| it["address"] == address && it["path"] == "fast"))
}

/// Packets that a node's fast path sent, and packets from the network that it received.
fn taken(node: &Node) -> Result<(u64, u64)> {
    Ok((
        packets(node, "pod_in", "encapsulated")?,
        packets(node, "net_in", "decapsulated")?,
    ))
}

/// Waits until no entry of a lease is left, and checks that the fast path removes its entries
/// before the kernel path does.
fn forgotten(node: &Node, lease: &Lease) -> Result<()> {
    let base = lease.subnet.network().to_string();
    let mut out_of_order = false;
    wait_until(
        &format!("{} to forget {lease:?}", node.name()),
        FOLLOWED,
        || {
            let nothing_of = |line: &str, needle: &str| {
                node.run(line.split(' '))
                    .is_ok_and(|text| !text.contains(needle))
            };
            let routed = !nothing_of("ip route show", &base);
            let mapped = peer(node, lease.subnet)
                .is_ok_and(|peer| peer.is_some_and(|peer| !peer["mtu"].is_null()));
            out_of_order |= mapped && !routed;
            !routed
                && !mapped
                && nothing_of("ip neigh show dev flannel.1", &base)
                && nothing_of("bridge fdb show dev flannel.1", &lease.mac)
                && peer(node, lease.subnet).is_ok_and(|peer| peer.is_none())
        },
    )
    .with_context(|| node.agent_log_tail())?;
    ensure!(
        !out_of_order,
        "the kernel's route went before the map's entry"
    );
    Ok(())
}

/// The number of answers that `ping` reports as missing.
fn lost(pings: &str) -> Result<u32> {
    let number = |what: &str| -> Option<u32> {
        let before = pings.split_once(what)?.0;
        before.rsplit([' ', '\n']).next()?.parse().ok()
    };
    let sent = number(" packets transmitted").context("ping tells nothing")?;
    let received = number(" received").context("ping tells nothing")?;
    Ok(sent - received)
}

#[test]
fn a_flannel_node_becomes_ours_without_a_gap() -> Result<()> {
    let lab = lab("takeover", 2, &[2])?;
    let peer_lease = Lease::of(&lab, &lab.node(2))?;
    let subnet = free_subnet(&[peer_lease.subnet])?;
    let plain = Plain::set_up(&lab, lab.node(1), subnet, "0e:aa:bb:cc:dd:ee")?;
    let node = &plain.node;
    plain.add_peer(&peer_lease)?;
    // A peer that left while flanneld did not run; flanneld itself would keep these entries for
    // ever.
    let gone = Lease {
        subnet: "10.244.251.0/24".parse()?,
        public: Ipv4Addr::new(192, 168, 66, 77),
        mac: "0e:00:00:00:00:77".to_owned(),
    };
    plain.add_peer(&gone)?;
    plain.lease.write(&lab)?;
    let file = format!(
        "mkdir -p /run/flannel && printf 'FLANNEL_NETWORK=10.244.0.0/16\\n\
         FLANNEL_SUBNET={}/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n' \
         >/run/flannel/subnet.env",
        plain.gateway()
    );
    node.run(["sh", "-c", &file])?;
    wait_known(&lab.node(2), &plain.lease)?;
    let target = lab.pod(2, 1);
    talk(&plain.endpoint(), &reach::of_pod(&target))?;
    let index = || node.run(["cat", "/sys/class/net/flannel.1/ifindex"]);
    let device = index()?;

    let routes = node.spawn(["ip", "monitor", "route"])?;
    let address = target.address().to_string();
    let pings = plain
        .pod
        .spawn(["ping", "-i", "0.02", "-W", "1", &address])?;
    std::thread::sleep(Duration::from_millis(300));
    node.start_agent(&[])?;
    std::thread::sleep(Duration::from_millis(500));
    let pings = pings.stop(Signal::SIGINT)?;
    let routes = routes.stop(Signal::SIGTERM)?;

    ensure!(
        node.subnet()? == subnet,
        "another subnet: {}",
        node.subnet()?
    );
    let lease = Lease::of(&lab, node)?;
    ensure!(
        lease.mac == plain.lease.mac,
        "another MAC address: {}",
        lease.mac
    );
    ensure!(index()? == device, "the device was made anew");
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    let deleted = format!("Deleted {}", peer_lease.subnet);
    ensure!(
        !routes.contains(&deleted),
        "the route was gone for a while:\n{routes}"
    );
    let route = node.run(["ip", "route", "show", &peer_lease.subnet.to_string()])?;
    ensure!(
        route.lines().count() == 1 && route.contains("proto 111") && route.contains("onlink"),
        "the route is not ours now: {route}"
    );
    let pings = String::from_utf8_lossy(&pings.stdout).into_owned();
    // A qdisc of filters interrupts a device that is up for a few milliseconds, once: each
    // interruption, at NIC, VXLAN device and veth, may cost one of these pings.
    let may_be_lost = if has_tcx(node)? { 0 } else { 3 };
    ensure!(lost(&pings)? <= may_be_lost, "packets were lost: {pings}");
    forgotten(node, &gone)?;

    // The former pod is not of our plugin, but on the fast path like a new one.
    let fresh = lab.add_pod(1)?;
    for (what, from) in [
        ("the pod of before", plain.endpoint()),
        ("a new pod", reach::of_pod(&fresh)),
    ] {
        wait_until(&format!("{what} on the fast path"), FOLLOWED, || {
            fast_path(node, &from).is_ok_and(|it| it)
        })
        .with_context(|| node.agent_log_tail())?;
        let before = taken(node)?;
        talk(&from, &reach::of_pod(&target)).context(what)?;
        let after = taken(node)?;
        ensure!(
            after.0 > before.0 + 30 && after.1 > before.1 + 30,
            "{what}: {before:?}, then {after:?}"
        );
    }
    // The former pod may send from its own address only, too.
    let refused = packets(node, "pod_in", "spoofed_source")?;
    let false_address = fresh.address().to_string();
    for line in [
        format!("ip address add {false_address}/32 dev lo"),
        format!("ping -c1 -W1 -I {false_address} {}", target.address()),
    ] {
        plain.pod.exec(line.split(' '))?;
    }
    ensure!(
        packets(node, "pod_in", "spoofed_source")? > refused,
        "a pod of flannel's may pretend to be another"
    );
    talk(&reach::of_pod(&fresh), &reach::of_pod(&target))
}

/// The agent has ended, its programs still run, and flanneld makes the VXLAN device anew: packets
/// for the node must not be handed in at the former device.
#[test]
fn a_node_given_back_to_flannel_hears_its_answers() -> Result<()> {
    let lab = lab("given", 2, &[1, 2])?;
    let (node, target) = (lab.node(1), lab.pod(2, 1));
    let (own, peer) = (Lease::of(&lab, &node)?, Lease::of(&lab, &lab.node(2))?);
    node.stop_agent(Signal::SIGKILL)?;
    node.run("ip link delete flannel.1".split(' '))?;
    let flannel = Plain {
        pod: lab.pod(1, 1).namespace(),
        lease: own,
        node,
    };
    flannel.make_device()?;
    flannel.add_peer(&peer)?;
    tcp(
        &reach::of_node(&flannel.node),
        &reach::of_pod(&target),
        10_000,
    )?;
    lab.down()
}
