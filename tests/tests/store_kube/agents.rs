//! Three agents of a lab that take their leases from Kubernetes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, wait_until};
use serde_json::Value;

use super::MANIFEST;
use super::server::{Place, Server, bare, flannels};

const PATIENCE: Duration = Duration::from_secs(60);
/// The address of the lab's store.
const ADDRESS: &str = "192.168.66.254";

fn condition(server: &Server, node: &str) -> String {
    let node = server.node(node);
    let conditions = node["status"]["conditions"].as_array().cloned();
    let is_ours = |it: &Value| it["type"] == "NetworkUnavailable";
    let found = conditions.unwrap_or_default().into_iter().find(is_ours);
    found.map_or_else(String::new, |it| {
        format!("{} {}", it["status"], it["reason"])
    })
}

/// The events of a Node, each with its reason first.
fn events(server: &Server, node: &str) -> Vec<String> {
    let list = server.kubectl(&["get", "events", "--output=json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let of_node = |it: &&Value| it["involvedObject"]["name"] == node;
    let text = |it: &Value| format!("{} {}", it["reason"], it["message"]).replace('"', "");
    items.iter().filter(of_node).map(text).collect()
}

/// Waits for an event with a reason that says so.
fn wait_event(server: &Server, node: &str, reason: &str, said: &str) -> Result<()> {
    let is_it = |it: &String| it.starts_with(reason) && it.contains(said);
    let is_there = || events(server, node).iter().any(is_it);
    wait_until(&format!("{reason} of {node}: {said:?}"), PATIENCE, is_there)
        .with_context(|| format!("{:?}", events(server, node)))
}

/// A script that starts the agent like in a container without CAP_BPF.
fn without_bpf(server: &Server, lab: &Lab) -> Result<PathBuf> {
    let path = server.directory.path().join("without-bpf");
    let agent = lab.options().bin_dir.join("overlayd");
    let kept = "-all,+net_admin,+net_raw,+perfmon";
    let text = format!(
        "#!/bin/sh\nexec setpriv --inh-caps={kept} --bounding-set={kept} {} \"$@\"\n",
        agent.display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn agents_serve_the_pod_cidrs_and_outlive_the_api_server() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 3,
        pods: 0,
        start_agents: false,
        ..Options::for_test("kube")
    })?;
    let mut server = Server::start_at(Place {
        namespace: Some(lab.namespace("store")?),
        address: ADDRESS,
    });
    server.feed(&["apply", "--validate=false", "-f", "-"], MANIFEST);
    let cidr = |number: usize| format!("10.244.{}.0/24", 10 + number);
    // The first comes before its subnet.
    server.add_nodes(&[
        bare("n1", ""),
        bare("n2", &cidr(2)),
        bare("n3", &cidr(3)),
        flannels("loop", "10.244.77.0/24", "127.0.0.1", "02:00:00:00:00:77"),
    ]);
    let config = server.directory.path().join("net-conf.json");
    let flags = [
        "--store=kube".to_owned(),
        format!("--kubeconfig-file={}", server.kubeconfig("agent").display()),
        format!("--net-config-path={}", config.display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // A policy engine's rule, which the fast path would bypass.
    for line in [
        "-N cali-FORWARD",
        "-A FORWARD -j cali-FORWARD",
        "-A cali-FORWARD -p sctp -j DROP",
    ] {
        let words = ["iptables", "--wait"].into_iter().chain(line.split(' '));
        lab.node(2).run(words)?;
    }
    for node in lab.nodes() {
        node.start_agent_unready(&flags)?;
    }
    let readyz = |node: &Node| node.http_get("/readyz").map(|answer| answer.body);
    let first = lab.node(1);
    wait_until("n1 to say what it waits for", PATIENCE, || {
        readyz(&first).is_ok_and(|text| text.contains("node n1: no podCIDR yet"))
    })?;
    wait_until("the condition to say so", PATIENCE, || {
        condition(&server, "n1").contains("True")
    })?;
    wait_event(&server, "n1", "OverlayIsWaiting", "node n1: no podCIDR yet")?;
    server.set_cidr("n1", &cidr(1));
    lab.wait_converged()?;
    for node in lab.nodes() {
        let subnet = node.subnet()?.to_string();
        ensure!(subnet == cidr(node.number()), "{}: {subnet}", node.name());
        let name = node.name();
        wait_until("the condition to be good", PATIENCE, || {
            condition(&server, &name).contains("FlannelIsUp")
        })?;
        let text = readyz(&node)?;
        ensure!(
            text.contains("10.244.77.0-24 of node loop: the public IP 127.0.0.1"),
            "{text}"
        );
    }
    wait_event(
        &server,
        "n3",
        "LeaseRefused",
        "10.244.77.0-24 of node loop: the public IP 127.0.0.1",
    )?;
    wait_event(&server, "n2", "NetworkPoliciesFound", "calico")?;
    for number in 1..=3 {
        lab.add_pod(number)?;
    }
    lab.wait_converged()?;
    let ping = |from: usize, to: &overlay_tests::Pod| -> Result<()> {
        let target = to.address().to_string();
        lab.pod(from, 1).run(["ping", "-c1", "-W5", &target])?;
        Ok(())
    };
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        ping(from, &lab.pod(to, 1))?;
    }

    // Without a capability there is no fast path, and the cluster's owner gets a notice.
    let second = lab.node(2);
    second.stop_agent(Signal::SIGTERM)?;
    second.start_agent_from(&without_bpf(&server, &lab)?, &flags)?;
    let missing = "this process lacks CAP_BPF";
    wait_event(&server, "n2", "FastPathDown", missing)?;
    second.stop_agent(Signal::SIGTERM)?;
    second.start_agent_unready(&flags)?;
    lab.wait_converged()?;

    // Only the node's own memory has the state.
    server.stop_api();
    first.stop_agent(Signal::SIGKILL)?;
    first.start_agent_unready(&flags)?;
    ping(2, &lab.pod(1, 1)).context("a pod from before")?;
    let new = lab.add_pod(1).context("a pod that is made meanwhile")?;
    ensure!(
        cidr(1).starts_with(&new.address().to_string()[..9]),
        "{} is not in {}",
        new.address(),
        cidr(1)
    );
    ping(2, &new).context("a pod that was made meanwhile")?;
    server.start_api();
    first.wait_ready(PATIENCE)?;
    ping(3, &new).context("afterwards")?;

    // A later fault, and its end.
    server.delete_node("n3");
    server.add_nodes(&[bare("n3", "")]);
    wait_until("the condition to be bad again", PATIENCE, || {
        condition(&server, "n3") == r#""True" "OverlayCannotCarry""#
    })
    .with_context(|| condition(&server, "n3"))?;
    wait_event(
        &server,
        "n3",
        "OverlayCannotCarry",
        "lost, and not replaced yet",
    )?;
    server.set_cidr("n3", &cidr(3));
    wait_until("the condition to be good again", PATIENCE, || {
        condition(&server, "n3").contains("FlannelIsUp")
    })
    .with_context(|| condition(&server, "n3"))?;
    lab.down()
}
