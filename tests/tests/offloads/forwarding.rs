//! Pods that forward packets.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::traffic::PATIENCE;

use crate::support::{Flow, STREAM, carried, ethtool, lab};

#[test]
fn a_pod_that_forwards_cuts_super_packets_right() -> Result<()> {
    let lab = lab("forward")?;
    let (sender, router, behind) = (lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 2));
    let behind_name = behind.namespace().name().to_owned();
    let cable = format!("ip link add inner type veth peer name inner netns {behind_name}");
    router.run(cable.split(' '))?;
    for (pod, address) in [(&router, "172.31.9.1/30"), (&behind, "172.31.9.2/30")] {
        pod.run(["ip", "address", "add", address, "dev", "inner"])?;
        pod.run(["ip", "link", "set", "inner", "mtu", "1450", "up"])?;
    }
    let back = lab.node(1).subnet()?.to_string();
    behind.run(["ip", "route", "add", &back, "via", "172.31.9.1"])?;
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    let translate =
        "iptables -w -t nat -A PREROUTING -d ADDRESS -j DNAT --to-destination 172.31.9.2";
    let translate = translate.replace("ADDRESS", &router.address().to_string());
    router.run(translate.split(' '))?;

    let listen = SocketAddr::from((Ipv4Addr::new(172, 31, 9, 2), 0));
    for offloads in [
        "tso on gso on",
        "tso off gso off",
        "tso off gso off tx off sg off",
    ] {
        ethtool(&router.namespace(), "inner", offloads)?;
        let before = carried(&lab)?;
        let listener = behind.namespace().inside(|| TcpListener::bind(listen))??;
        let target = SocketAddr::from((router.address(), listener.local_addr()?.port()));
        let client = sender
            .namespace()
            .inside(|| TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("connect, {offloads}"))?;
        let mut flow = Flow::new(client, listener.accept()?.0)?;
        flow.carry(STREAM)
            .with_context(|| format!("TCP, {offloads}"))?;
        let after = carried(&lab)?;
        ensure!(
            after.1 > before.1 + 20,
            "{offloads}: the fast path carried {before:?}, then {after:?} packets"
        );
    }
    Ok(())
}

#[test]
fn a_pod_that_forwards_into_the_overlay_loses_nothing() -> Result<()> {
    let lab = lab("relay")?;
    let (sender, relay) = (lab.pod(1, 1), lab.pod(2, 1));
    relay.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    relay.run("iptables -w -t nat -A POSTROUTING -j MASQUERADE".split(' '))?;
    for target in [lab.pod(1, 2), lab.pod(2, 2)] {
        let (here, there) = (relay.address(), target.address());
        relay.run(["iptables", "-w", "-t", "nat", "-F", "PREROUTING"])?;
        let line =
            format!("iptables -w -t nat -A PREROUTING -d {here} -j DNAT --to-destination {there}");
        relay.run(line.split(' '))?;
        let before = carried(&lab)?;
        let listener = target
            .namespace()
            .inside(|| TcpListener::bind((there, 0)))??;
        let address = SocketAddr::from((here, listener.local_addr()?.port()));
        let client = sender
            .namespace()
            .inside(|| TcpStream::connect_timeout(&address, PATIENCE))?
            .with_context(|| format!("connect by the relay to {}", target.name()))?;
        let mut flow = Flow::new(client, listener.accept()?.0)?;
        flow.carry(STREAM)
            .with_context(|| format!("TCP by the relay to {}", target.name()))?;
        let after = carried(&lab)?;
        ensure!(
            after.1 > before.1 + 20,
            "the fast path carried {before:?}, then {after:?} packets"
        );
    }
    Ok(())
}
