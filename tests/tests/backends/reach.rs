//! All pods and nodes reach each other, by both paths, and no packet between pods is encapsulated.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::fast_path::packets;
use overlay_tests::status::Counts;
use overlay_tests::{BackendKind, Lab, reach, traffic, wait_until};

use super::{lab, route, wait_fast};

/// Longest time until a node knows its neighbour.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn host_gw_by_the_fast_path() -> Result<()> {
    let lab = lab("hostgw-fast", BackendKind::HostGw, "auto", "auto")?;
    wait_fast(&lab)?;
    is_as_flannel_leaves_it(&lab)?;
    takes_the_short_cut(&lab)
}

#[test]
fn host_gw_by_the_kernel_path() -> Result<()> {
    let lab = lab("hostgw-slow", BackendKind::HostGw, "off", "nftables")?;
    is_as_flannel_leaves_it(&lab)?;
    reach::require_all(&lab)
}

#[test]
fn direct_routing_by_the_fast_path() -> Result<()> {
    let lab = lab("direct-fast", BackendKind::DirectRouting, "auto", "auto")?;
    wait_fast(&lab)?;
    takes_the_short_cut(&lab)?;
    for node in lab.nodes() {
        // The device exists, for nodes on other links.
        node.run(["ip", "link", "show", "flannel.1"])?;
        ensure!(Counts::of(&node)?.encapsulated == 0);
    }
    Ok(())
}

/// All pods and nodes reach each other, and plain traffic takes the fast path both ways on every
/// node.
fn takes_the_short_cut(lab: &Lab) -> Result<()> {
    // A node's MAC address is unknown before nodes have talked to each other.
    let [one, two] = [(1, 1), (2, 1)].map(|(node, pod)| reach::of_pod(&lab.pod(node, pod)));
    let unproven = || -> Result<u64> {
        let nodes = lab.nodes().into_iter();
        nodes
            .map(|node| packets(&node, "net_in", "unproven_source"))
            .sum()
    };
    wait_until("next hops to be known", PATIENCE, || {
        let talk = || -> Result<bool> {
            let before = unproven()?;
            traffic::tcp(&one, &two, 1000)?;
            Ok(unproven()? == before)
        };
        talk().unwrap_or(false)
    })?;
    let before: Vec<_> = lab.nodes().iter().map(Counts::of).collect::<Result<_>>()?;
    reach::require_all(lab)?;
    for (node, before) in lab.nodes().into_iter().zip(before) {
        let (name, counts) = (node.name(), &Counts::of(&node)? - &before);
        let delivered = packets(&node, "net_in", "redirected")?;
        ensure!(
            counts.routed > 0 && delivered > 0,
            "{name}: {delivered} delivered, {counts:?}"
        );
        let ratio = counts.hit_ratio_without(&["fragment"]);
        ensure!(ratio >= 0.9, "{name}: hit ratio {ratio:.3}: {counts:?}");
    }
    Ok(())
}

/// Lease, routes, devices and MTU are like those of flannel's host-gw.
fn is_as_flannel_leaves_it(lab: &Lab) -> Result<()> {
    for (node, other) in [(lab.node(1), lab.node(2)), (lab.node(2), lab.node(1))] {
        let route = route(&node, &other)?;
        let wanted = format!("via {} dev eth0 proto 111", other.underlay_address());
        ensure!(route.contains(&wanted), "{route}");
        let links = node.run(["ip", "-d", "link"])?;
        ensure!(!links.contains("vxlan"), "{links}");
        let env = node.read_file("/run/flannel/subnet.env")?;
        ensure!(env.contains("FLANNEL_MTU=1500\n"), "{env}");
        let key = node.subnet()?.to_string().replace('/', "-");
        let lease = lab.etcdctl(&["get", &format!("/coreos.com/network/subnets/{key}")])?;
        let value = lease.lines().nth(1).context("no lease")?;
        let wanted = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"host-gw"}}"#,
            node.underlay_address()
        );
        ensure!(value == wanted, "{value}");
    }
    Ok(())
}
