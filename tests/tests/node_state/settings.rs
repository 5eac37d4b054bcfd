//! Settings of operators, and the time at which they take effect.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::traffic::{self, Answers, Endpoint};
use overlay_tests::{Lab, Options, wait_until};

use crate::{SOON, shell};

/// Network policies in netfilter's FORWARD chain.
#[test]
fn policies_in_forward_hold_on_the_kernel_path() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".to_owned(),
        ..Options::for_test("policy")
    })?;
    let [from, to, other] = [(1, 1), (2, 1), (2, 2)].map(|(node, pod)| lab.pod(node, pod));
    let talk = |to| traffic::tcp(&Endpoint::from(&from), &Endpoint::from(to), 10_000);
    talk(&to)?;
    let policy = format!("FORWARD -s {} -d {} -j DROP", from.address(), to.address());
    let node = lab.node(1);
    shell(&node, &format!("iptables -I {policy}"))?;
    ensure!(talk(&to).is_err(), "a policy does not hold");
    talk(&other).context("a pod that no policy is about")?;
    shell(&node, &format!("iptables -D {policy}"))?;
    talk(&to)?;
    lab.down()
}

#[test]
fn the_network_configuration_is_read_at_the_start_only() -> Result<()> {
    let lab = Lab::up(Options::for_test("set-once"))?;
    let node = lab.node(1);
    let before = node.read_file("/run/flannel/subnet.env")?;
    let config = r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#;
    lab.etcdctl(&["put", "/coreos.com/network/config", config])?;
    // A lease that is written later is noticed later.
    let key = "/coreos.com/network/subnets/10.244.250.0-24";
    let value = "{\"PublicIP\":\"192.0.2.9\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
        \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:09\"}}";
    lab.etcdctl(&["put", key, value])?;
    wait_until("the route to a new peer", SOON, || {
        node.overlay_routes().is_ok_and(|routes| routes == 2)
    })?;
    let after = node.read_file("/run/flannel/subnet.env")?;
    ensure!(after == before, "{before} became {after}");
    let devices = shell(&node, "ip -o link show type vxlan")?;
    ensure!(
        devices.lines().count() == 1 && devices.contains("flannel.1"),
        "{devices}"
    );
    node.wait_ready(SOON)?;
    let [from, to] = [(1, 1), (2, 1)].map(|(node, pod)| Endpoint::from(&lab.pod(node, pod)));
    traffic::udp(&from, &to, 100, Answers::Once)?;
    lab.down()
}
