//! The network's configuration.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::StoreKind;

use crate::witness::{all_is_well, log_length, talks, wait_log};
use crate::{PATIENCE, lab};

#[test]
fn a_bad_network_configuration_is_explained_until_it_is_mended() -> Result<()> {
    let lab = lab("bad-conf", 1, StoreKind::Dir)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    let config = lab.directory().join("store/config");
    let good = fs::read_to_string(&config)?;
    let subnet = node.subnet()?;
    node.stop_agent(Signal::SIGTERM)?;
    fs::write(&config, "{")?;
    let mut log = log_length(&node);
    node.start_agent_unready(&[])?;
    for (text, words) in [
        ("{", &["not valid JSON"][..]),
        ("", &["not valid JSON"]),
        ("null", &["not valid JSON"]),
        (r#"{"Network": 5}"#, &["not valid JSON"]),
        (r#"{"Network": "10.244.0.0/99"}"#, &["not valid JSON"]),
        ("{}", &["has no Network", "for example"]),
        (r#"{"Network": "10.244.0.0/29"}"#, &["too small"]),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.5.0"}"#,
            &["SubnetMin 10.244.9.0 is above SubnetMax 10.244.5.0"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.9.0.0"}"#,
            &["not inside the network"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetLen": 31}"#,
            &["SubnetLen 31 is too long"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetLen": 300}"#,
            &["not valid JSON"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}"#,
            &["wireguard", "not supported", "vxlan"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 99999999}}"#,
            &["VNI 99999999 is out of range"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 99999}}"#,
            &["not valid JSON"],
        ),
    ] {
        fs::write(&config, text)?;
        wait_log(&node, log, words).with_context(|| text.to_owned())?;
        log = log_length(&node);
    }
    ensure!(
        node.http_get("/readyz")?.status == 503,
        "ready without a configuration"
    );
    ensure!(
        node.http_get("/livez")?.status == 200,
        "not alive without a configuration"
    );
    fs::remove_file(&config)?;
    wait_log(&node, log, &["network configuration", "config"])?;
    fs::write(&config, good)?;
    node.wait_ready(PATIENCE)?;
    ensure!(node.subnet()? == subnet, "the node lost its subnet");
    all_is_well(&lab, talks)
}
