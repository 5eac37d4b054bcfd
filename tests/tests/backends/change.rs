//! A cluster changes from VXLAN to host-gw and back, node by node.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::fast_path::wait_serving;
use overlay_tests::reach::of_pod;
use overlay_tests::{BackendKind, Lab, Node, traffic, wait_until};

use super::{lab, route};

/// Longest time until a node notices the other's change.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn backends_change_without_leftovers() -> Result<()> {
    let lab = lab("backend-change", BackendKind::Vxlan, "auto", "auto")?;
    let (one, two) = (lab.node(1), lab.node(2));
    let pods_meet = || {
        let (from, to) = (of_pod(&lab.pod(1, 1)), of_pod(&lab.pod(2, 1)));
        traffic::tcp(&from, &to, 1000).map(drop)
    };
    pods_meet()?;

    set(
        &lab,
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#,
    )?;
    restart(&one)?;
    // The other node still uses VXLAN: both nodes name the other's backend.
    rejected(&one, "vxlan")?;
    rejected(&two, "host-gw")?;
    let links = one.run(["ip", "link"])?;
    ensure!(!links.contains("flannel.1"), "{links}");
    restart(&two)?;
    for (node, other) in [(&one, &two), (&two, &one)] {
        wait_until("a direct route", PATIENCE, || {
            route(node, other).is_ok_and(|route| route.contains("dev eth0 proto 111"))
        })?;
        wait_serving(node)?;
    }
    pods_meet()?;

    set(
        &lab,
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#,
    )?;
    restart(&one)?;
    restart(&two)?;
    for (node, other) in [(&one, &two), (&two, &one)] {
        wait_until("a route into the tunnel", PATIENCE, || {
            route(node, other).is_ok_and(|route| route.contains("dev flannel.1 proto 111"))
        })?;
        wait_serving(node)?;
    }
    pods_meet()
}

fn set(lab: &Lab, config: &str) -> Result<()> {
    lab.etcdctl(&["put", "/coreos.com/network/config", config])
        .map(drop)
}

fn restart(node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

fn rejected(node: &Node, kind: &str) -> Result<()> {
    wait_until("the other node's lease to be rejected", PATIENCE, || {
        let status = node.json(["overlayctl", "status", "--output", "json"]);
        status.is_ok_and(|status| {
            let text = status["rejected"].to_string();
            text.contains(&format!("the backend type is \\\"{kind}\\\""))
        })
    })
}
