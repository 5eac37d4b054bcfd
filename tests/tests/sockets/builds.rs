//! Agents of other builds adopt a node's sockets from each other.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pins::{MAPS, PINS};
use overlay_tests::{Node, kube_proxy, wait_until};

use super::agent::{Standing, translated};
use super::load::{ACCEPTED, ECHOED, Load};
use super::stage::{self, PATIENCE, Stage, ask_peer, connected, service};

/// The maps of translations that outlive the agent.
const MEMORY: [&str; 4] = [
    "ov_affinity",
    "ov_connected",
    "ov_unconnected",
    "ov_socket_count",
];

fn shell(node: &Node, line: &str) -> Result<()> {
    node.run(["sh", "-ec", line]).map(drop)
}

#[test]
fn another_build_takes_over() -> Result<()> {
    let stage = Stage::up("sock-build")?;
    let servers = stage.both();
    let [_, far] = servers;
    let (node, client) = (stage.lab.node(1), stage.lab.pod(1, 1).namespace());
    let accepting = servers.map(stage::accepting);
    for (name, last, servers) in [
        ("echoed", ECHOED, servers),
        ("accepted", ACCEPTED, accepting),
    ] {
        stage.write_service(name, last)?;
        stage.write_servers(name, &servers.map(|server| (server, true)))?;
    }
    let by_kube_proxy = [
        stage::by_kube_proxy(ECHOED, &servers),
        stage::by_kube_proxy(ACCEPTED, &accepting),
    ];
    kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &by_kube_proxy)?;
    let own = stage.lab.options().bin_dir.join("overlayd");
    let aside = tempfile::tempdir()?;
    let copy = aside.path().join("overlayd");
    fs::copy(&own, &copy)?;

    let load = Load::of([client.clone(), node.namespace()]);
    let is_translated = |when: &str| -> Result<()> {
        let before = translated(&node)?;
        wait_until(&format!("a server {when}"), PATIENCE, || {
            translated(&node).is_ok_and(|now| now > before)
        })
        .with_context(|| node.agent_log_tail())?;
        load.go_on(when)
    };
    is_served(&node)?;
    let mut standing = Standing::of(&stage, far)?;
    standing.add(&stage, &servers)?;
    load.beside(|| {
        is_translated("with the first build")?;
        for (build, signal) in [(&copy, Signal::SIGTERM), (&own, Signal::SIGKILL)] {
            node.stop_agent(signal)?;
            node.start_agent_from(build, &[])?;
            node.wait_ready(PATIENCE)?;
            is_translated("with another build")?;
            standing.stands()?;
            standing.add(&stage, &servers)?;
        }
        Ok(())
    })
    .with_context(|| node.agent_log_tail())?;

    let is_given_a_server = |when: &str| -> Result<()> {
        let before = translated(&node)?;
        wait_until(&format!("a server {when}"), PATIENCE, || {
            let asked = connected(&client, service(ECHOED)).and_then(|socket| ask_peer(&socket));
            asked.is_ok() && translated(&node).is_ok_and(|now| now > before)
        })
        .with_context(|| node.agent_log_tail())
    };
    // The programs of another ABI version are detached, and the programs at the socket stay.
    load.beside(|| {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            node.stop_agent(signal)?;
            shell(&node, &format!("mv {PINS} /sys/fs/bpf/overlay/v99"))?;
            node.start_agent(&[])?;
            is_given_a_server("after another ABI version")?;
            standing.stands().context("after another ABI version")?;
            standing.add(&stage, &servers)?;
            load.go_on("after another ABI version")?;
        }
        Ok(())
    })
    .context("another ABI version")?;
    // The translations of sockets in another layout are not known; the sockets keep their servers.
    node.stop_agent(Signal::SIGTERM)?;
    for map in MEMORY {
        let pin = format!("{MAPS}/{map}");
        let other = format!("bpftool map create {pin} type hash key 4 value 8 entries 16");
        shell(&node, &format!("rm {pin} && {other} name {map}"))?;
    }
    node.start_agent(&[])?;
    is_given_a_server("after another layout")?;
    standing.is_answered().context("after another layout")?;
    let log = fs::read_to_string(node.agent_log())?;
    for map in MEMORY {
        let why = format!("pinned map {map} is a hash, key 4 B, value 8 B");
        ensure!(log.contains(&why), "the agent does not say {why:?}");
    }
    Ok(())
}

fn is_served(node: &Node) -> Result<()> {
    wait_until("programs at the socket", PATIENCE, || {
        let shown = node.run(["overlayctl", "status"]);
        shown.is_ok_and(|shown| shown.contains("at the socket: 4 addresses"))
    })
    .with_context(|| node.agent_log_tail())
}
