//! Bridges of another name.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::status::{status, wait_for_path};
use overlay_tests::{Lab, Options, StoreKind};
use serde_json::json;

use crate::{Attachment, lab};

#[test]
fn pods_on_a_bridge_of_another_name_are_fast_and_guarded() -> Result<()> {
    let lab = Lab::up(Options {
        pods: 0,
        store: StoreKind::Dir,
        ..Options::for_test("bridge")
    })?;
    let conf = json!({
        "name": "cbr0", "type": "flannel", "cniVersion": "1.1.0",
        "delegate": {"bridge": "br-pods", "isDefaultGateway": true},
    });
    let node = lab.node(1);
    let mut addresses = Vec::new();
    for name in ["one", "two"] {
        let pod = Attachment::new(&lab, 1, name)?;
        let result = pod.answer("ADD", &conf, &[])?;
        let address = result["ips"][0]["address"].as_str().context("an address")?;
        let address = address.split('/').next().context("an address")?.to_owned();
        wait_for_path(&node, &address, "fast")?;
        addresses.push(address);
    }
    let remote = lab.add_pod(2)?;
    let namespace = lab.namespace("one")?;
    for to in [&addresses[1], &remote.address().to_string()] {
        namespace.run(["ping", "-c2", "-i0.2", "-W1", to])?;
    }
    namespace.run([
        "ip",
        "addr",
        "add",
        &format!("{}/32", addresses[1]),
        "dev",
        "lo",
    ])?;
    let spoof = ["ping", "-c1", "-W1", "-I", &addresses[1]];
    namespace.exec(
        spoof
            .into_iter()
            .chain([remote.address().to_string().as_str()]),
    )?;
    let status = status(&node)?;
    let refused = &status["refused"]["spoofed_source"];
    ensure!(refused["fast_path"].as_u64() > Some(0), "{refused}");
    lab.down()
}

/// Two bridges would have the same subnet, and the node a route to only one of them.
#[test]
fn a_second_bridge_is_refused() -> Result<()> {
    let lab = lab("bridges", 1, "off")?;
    let conf = json!({
        "name": "cbr0", "type": "flannel", "cniVersion": "1.1.0",
        "delegate": {"bridge": "br-other"},
    });
    let error = Attachment::new(&lab, 1, "one")?.error("ADD", &conf, &[])?;
    let text = error.to_string();
    ensure!(text.contains("cni0") && text.contains("br-other"), "{text}");
    let links = lab.node(1).run(["ls", "/sys/class/net"])?;
    ensure!(!links.contains("br-other"), "{links}");
    lab.down()
}
