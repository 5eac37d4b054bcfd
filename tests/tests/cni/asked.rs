//! Addresses that a runtime requests.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::Lab;
use serde_json::{Value, json};

use crate::{Attachment, lab, taken};

const MAC: &str = "02:11:22:33:44:55";

fn conf() -> Value {
    json!({"name": "cbr0", "type": "flannel", "cniVersion": "1.1.0"})
}

/// The ways in which an address and a MAC address can be requested, by the specification's
/// conventions.
fn ways(address: &str) -> Vec<(Value, String)> {
    let mut by_args = conf();
    by_args["args"] = json!({"cni": {"ips": [address], "mac": MAC}});
    let mut by_runtime = conf();
    by_runtime["runtimeConfig"] = json!({"ips": [format!("{address}/24")], "mac": MAC});
    vec![
        (conf(), format!("IgnoreUnknown=1;IP={address};MAC={MAC}")),
        (by_args, "IgnoreUnknown=1".to_owned()),
        (by_runtime, "IgnoreUnknown=1;K8S_POD_NAME=x".to_owned()),
    ]
}

fn free_address(lab: &Lab) -> Result<String> {
    let subnet = lab.node(1).subnet()?;
    let address = subnet.hosts().nth(76).context("a small subnet")?;
    Ok(address.to_string())
}

#[test]
fn a_pod_gets_the_address_and_mac_that_were_asked_for() -> Result<()> {
    let lab = lab("asked", 1, "auto")?;
    let wanted = free_address(&lab)?;
    let pod = Attachment::new(&lab, 1, "asking")?;
    for (conf, args) in ways(&wanted) {
        let result = pod.answer("ADD", &conf, &[("CNI_ARGS", &args)])?;
        let got = result["ips"][0]["address"].as_str().context("no address")?;
        ensure!(got == format!("{wanted}/24"), "{got}");
        ensure!(result["interfaces"][2]["mac"] == MAC, "{result}");
        let namespace = lab.namespace("asking")?;
        let shown = namespace.run(["ip", "-br", "link", "show", "dev", "eth0"])?;
        ensure!(shown.contains(MAC), "{shown}");
        namespace.run(["ping", "-c1", "-W2", &lab.pod(1, 1).address().to_string()])?;
        let mut checking = conf.clone();
        checking["prevResult"] = result;
        pod.answer("CHECK", &checking, &[("CNI_ARGS", &args)])?;
        pod.answer("DEL", &conf, &[("CNI_ARGS", &args)])?;
    }
    lab.down()
}

#[test]
fn what_cannot_be_given_is_said() -> Result<()> {
    let lab = lab("refused", 1, "off")?;
    let node = lab.node(1);
    let before = taken(&node)?;
    let pod = Attachment::new(&lab, 1, "asking")?;
    let subnet = node.subnet()?;
    let gateway = subnet.hosts().next().context("a gateway")?.to_string();
    let other = lab.pod(1, 1).address().to_string();
    let twice = format!("{},{}", free_address(&lab)?, other);
    let cases = [
        ("IP", other.as_str(), other.as_str()),
        ("IP", "10.9.9.9", "10.9.9.9"),
        ("IP", gateway.as_str(), gateway.as_str()),
        ("IP", "nonsense", "nonsense"),
        ("IP", twice.as_str(), "one address"),
        ("MAC", "01:00:5e:00:00:01", "01:00:5e:00:00:01"),
        ("MAC", "00:00:00:00:00:00", "00:00:00:00:00:00"),
        ("MAC", "x", "\\\"x\\\""),
    ];
    for (key, value, named) in cases {
        let args = format!("IgnoreUnknown=1;{key}={value}");
        let error = pod.error("ADD", &conf(), &[("CNI_ARGS", &args)])?;
        ensure!(error.to_string().contains(named), "{args}: {error}");
    }
    let error = pod.error("ADD", &conf(), &[("CNI_ARGS", "no pair")])?;
    ensure!(error["code"] == 4, "{error}");
    ensure!(taken(&node)? == before, "an address stays taken");
    // DEL ignores all of these.
    pod.answer("DEL", &conf(), &[("CNI_ARGS", "IP=nonsense")])?;
    lab.down()
}
