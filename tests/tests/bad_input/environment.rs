//! Bad flags, files, pins, privileges, ports and stores for an agent on its node.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, StoreKind, wait_until};
use serde_json::json;

use crate::cni::cni_error;
use crate::witness::{all_is_well, log_length, talks, wait_log};
use crate::{PATIENCE, lab};
use overlay_tests::pins::MAPS;

/// Longest run of a program that must end by itself, in seconds.
const END: &str = "10";

#[test]
fn a_bad_environment_is_explained_and_survived() -> Result<()> {
    let lab = lab("bad-env", 2, StoreKind::Etcd)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    flags_are_explained(&node)?;
    subnet_file(&node)?;
    pins(&node)?;
    permissions(&lab, &node)?;
    paths(&node)?;
    tools(&lab, &node)?;
    store_is_away(&lab, &node)?;
    all_is_well(&lab, talks)
}

/// Runs a second agent that must end by itself, and checks its message.
fn gives_up(node: &Node, flags: &[&str], words: &[&str]) -> Result<()> {
    let mut line = vec!["timeout", END, "overlayd"];
    line.extend(flags);
    let output = node.exec(line)?;
    let told = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    ensure!(
        !matches!(code, Some(0 | 101 | 124) | None),
        "{flags:?}: {code:?}: {told}"
    );
    ensure!(!told.contains("panicked"), "{flags:?}: {told}");
    for word in words {
        ensure!(told.contains(word), "{flags:?}: no {word:?} in: {told}");
    }
    Ok(())
}

fn flags_are_explained(node: &Node) -> Result<()> {
    let aside = "--run-dir=/run/aside";
    gives_up(node, &["--no-such-flag"], &["--no-such-flag", "--help"])?;
    gives_up(node, &["--fast-path=perhaps"], &["perhaps", "auto", "off"])?;
    gives_up(
        node,
        &["--store=nonsense"],
        &["nonsense", "etcd", "dir:PATH"],
    )?;
    gives_up(
        node,
        &["--store=dir:/run/nothing"],
        &["another overlayd", "/run/overlay"],
    )?;
    gives_up(
        node,
        &[
            aside,
            "--store=dir:/run/nothing",
            "--healthz-port=8081",
            "--healthz-ip=0.0.0.0",
        ],
        &["0.0.0.0:8081", "in use", "--healthz-port"],
    )?;
    // The error for a wrong device lists the existing ones.
    let store = "/run/aside-store";
    node.run(["mkdir", "-p", store])?;
    let write = format!("echo '{{\"Network\":\"10.9.0.0/16\"}}' > {store}/config");
    node.run(["sh", "-c", &write])?;
    let store = format!("--store=dir:{store}");
    gives_up(
        node,
        &[aside, &store, "--healthz-port=0", "--iface=eth7"],
        &["eth7", "eth0"],
    )?;
    gives_up(
        node,
        &[aside, &store, "--healthz-port=0", "--iface-regex=("],
        &["--iface-regex", "("],
    )?;
    // Two agents would overwrite each other's rules and pins.
    gives_up(
        node,
        &[aside, &store, "--healthz-port=0"],
        &["another overlayd", "network namespace"],
    )
}

/// A file that the node's network needs is malformed.
fn subnet_file(node: &Node) -> Result<()> {
    const FILE: &str = "/run/flannel/subnet.env";
    let good = node.read_file(FILE)?;
    for text in [
        "",
        "nonsense",
        "FLANNEL_SUBNET=10.244.999.1/24\n",
        "\\0\\377\\0",
    ] {
        // A running agent repairs the file in its next round.
        node.run(["sh", "-c", &format!("printf '{text}' > {FILE}")])?;
        wait_until("the file to be mended", 2 * PATIENCE, || {
            node.read_file(FILE).is_ok_and(|text| text == good)
        })
        .with_context(|| format!("{text:?}"))?;
        // Without an agent, the plugin names the problem and the cure.
        node.stop_agent(Signal::SIGTERM)?;
        node.run(["sh", "-c", &format!("printf '{text}' > {FILE}")])?;
        let status = node.cni("STATUS", None, &[("cniVersion", json!("1.1.0"))])?;
        let error = cni_error(&status).with_context(|| format!("{text:?}"))?;
        let told = format!("{} {}", error["msg"], error["details"]);
        ensure!(told.contains(FILE) && told.contains("overlayd"), "{told}");
        // A starting agent finds its subnet by its lease.
        node.start_agent(&[])?;
        ensure!(
            node.read_file(FILE)? == good,
            "the node has another subnet now"
        );
    }
    Ok(())
}

/// The pins are not those that the agent left.
fn pins(node: &Node) -> Result<()> {
    let swap = |script: &str| -> Result<usize> {
        node.stop_agent(Signal::SIGTERM)?;
        node.run(["sh", "-ec", script])?;
        let log = log_length(node);
        node.start_agent(&[])?;
        Ok(log)
    };
    let log = swap(&format!(
        "rm {MAPS}/ov_peers4; bpftool map create {MAPS}/ov_peers4 type hash key 8 value 8 entries \
        3 name ov_peers4"
    ))?;
    wait_log(node, log, &["ov_peers4", "key 8 B", "key 4 B"])?;
    let log = swap(&format!(
        "for map in ov_config4 ov_pods4 ov_counters; do rm {MAPS}/$map; \
         bpftool map create {MAPS}/$map type array key 4 value 4 entries 1 name $map; done"
    ))?;
    wait_log(node, log, &["ov_config4", "ov_pods4", "ov_counters"])?;
    // Missing pins need no message, but must not cost a packet either.
    swap(&format!("rm {MAPS}/ov_peers4 {MAPS}/ov_vteps4"))?;
    // A pin of another kind than a map: a program.
    let log = swap(&format!(
        "rm {MAPS}/ov_vteps4; \
         id=$(bpftool -j prog show name ov_net_in | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/'); \
         bpftool prog pin id $id {MAPS}/ov_vteps4"
    ))?;
    wait_log(node, log, &["ov_vteps4", "no map"])?;
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    ensure!(
        status["fast_path"]["state"] == "active",
        "{}",
        status["fast_path"]
    );

    // There is no BPF file system at the flag's path: the kernel path carries all packets, and the
    // node reports the cause.
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--bpffs=/tmp"])?;
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("not on a BPF file system") && answer.contains("mount -t bpf"),
        "{answer}"
    );
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// Files that cannot be written at the flags' paths.
fn paths(node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    gives_up(
        node,
        &["--run-dir=/proc/none", "--healthz-port=0"],
        &["/proc/none"],
    )?;
    node.start_agent_unready(&["--subnet-file=/proc/none/subnet.env"])?;
    wait_unready(node, &["subnet file", "cannot write /proc/none"])?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// The packet filter's tools are not installed: the agent names the parts that need them, and all
/// other parts work.
fn tools(lab: &Lab, node: &Node) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let script = wrapped_agent(lab, directory.path(), "/usr/bin/env PATH=/nowhere")?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent_from(&script, &[])?;
    wait_unready(
        node,
        &[
            "iptables-save: program not found; install it",
            "guard unavailable: nft: program not found",
        ],
    )?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// Waits until the agent reports that it is not ready, with all of `words`.
fn wait_unready(node: &Node, words: &[&str]) -> Result<()> {
    let told = || {
        let answer = node.http_get("/readyz")?;
        let complete = words.iter().all(|word| answer.body.contains(word));
        anyhow::Ok(answer.status == 503 && complete)
    };
    wait_until(&format!("not ready, with {words:?}"), PATIENCE, || {
        told().is_ok_and(|told| told)
    })
    .with_context(|| format!("{:?} {}", node.http_get("/readyz"), node.agent_log_tail()))
}

/// An agent that lacks a needed permission.
fn permissions(lab: &Lab, node: &Node) -> Result<()> {
    // The directory is outside of `/run`, because nodes have separate ones.
    let directory = tempfile::tempdir()?;
    let without = |capabilities: &[&str]| {
        let drop: Vec<String> = capabilities.iter().map(|it| format!("-{it}")).collect();
        let drop = drop.join(",");
        let wrapper = format!("setpriv --inh-caps={drop} --bounding-set={drop}");
        wrapped_agent(lab, directory.path(), &wrapper)
    };
    node.stop_agent(Signal::SIGTERM)?;
    let script = without(&["bpf", "perfmon", "sys_admin"])?;
    node.start_agent_from(&script, &[])?;
    node.wait_ready(PATIENCE)?;
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("CAP_BPF") && answer.contains("fast path"),
        "{answer}"
    );
    node.stop_agent(Signal::SIGTERM)?;

    let script = without(&["net_admin"])?;
    let log = log_length(node);
    node.start_agent_from(&script, &[])?;
    wait_log(node, log, &["CAP_NET_ADMIN"])?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// A script that starts the agent by another program.
fn wrapped_agent(lab: &Lab, directory: &Path, wrapper: &str) -> Result<PathBuf> {
    let agent = lab.options().bin_dir.join("overlayd");
    let script = directory.join("agent");
    let text = format!("#!/bin/sh\nexec {wrapper} {} \"$@\"\n", agent.display());
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// The store does not answer when the agent starts.
fn store_is_away(lab: &Lab, node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    lab.stop_store()?;
    let log = log_length(node);
    node.start_agent_unready(&[])?;
    wait_log(
        node,
        log,
        &[
            "cannot read the network configuration",
            &lab.store_endpoint(),
        ],
    )?;
    ensure!(
        node.http_get("/readyz")?.status == 503,
        "ready without a store"
    );
    lab.start_store()?;
    node.wait_ready(2 * PATIENCE)
}

#[test]
fn a_taken_vxlan_port_is_told_and_taken_over_when_it_is_free() -> Result<()> {
    let lab = Lab::up(Options {
        start_agents: false,
        store: StoreKind::Dir,
        nodes: 1,
        ..Options::for_test("bad-port")
    })?;
    let node = lab.node(1);
    let thief = node
        .namespace()
        .inside(|| UdpSocket::bind("0.0.0.0:8472"))??;
    node.start_agent_unready(&[])?;
    wait_unready(&node, &["UDP port 8472 is in use", "ss -ulpn"])?;
    drop(thief);
    node.wait_ready(2 * PATIENCE)?;
    all_is_well(&lab, Vec::new())
}
