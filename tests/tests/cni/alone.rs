//! Pods that are added and deleted while no agent runs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::packet::RawSocket;
use overlay_tests::status::{status, wait_for_path};
use overlay_tests::{Lab, Node, Pod, wait_until};
use serde_json::json;

use crate::{Attachment, NOTICED, lab};
use overlay_tests::pins::PINS;

/// Time of silence after which no further packet is expected.
const QUIET: Duration = Duration::from_millis(500);
/// Sends from one address to another; returns whether any packet arrives.
fn arrives(from: &Pod, source: std::net::Ipv4Addr, to: &Pod) -> Result<bool> {
    let socket = RawSocket::open(&to.namespace(), "eth0")?;
    // An ARP request for a known address would still have the former source.
    from.run(["ip", "neigh", "flush", "dev", "eth0"])?;
    let line = format!("ping -c3 -i0.2 -W1 -I {source} {}", to.address());
    from.exec(line.split(' '))?;
    // Position of the source in an IPv4 header behind Ethernet.
    let is_it = |frame: &[u8]| {
        frame.get(12..14) == Some(&[8, 0]) && frame.get(26..30) == Some(&source.octets())
    };
    Ok(!socket.incoming(QUIET, is_it)?.is_empty())
}

/// Forged packets, and forged ARP, which comes first within a node.
fn refused(node: &Node) -> Result<u64> {
    let status = status(node)?;
    let of = |reason: &str, path: &str| status["refused"][reason][path].as_u64().unwrap_or(0);
    let by = |path| of("spoofed_source", path) + of("spoofed_arp", path);
    Ok(by("fast_path") + by("kernel_path"))
}

/// A pod that uses its neighbour's address is refused, towards a neighbour and another node; its
/// honest packets pass.
fn cannot_pretend(lab: &Lab, pod: &Pod) -> Result<()> {
    let neighbour = lab.pod(1, 1).address();
    for to in [lab.pod(1, 2), lab.pod(2, 1)] {
        let before = refused(&lab.node(1))?;
        ensure!(
            !arrives(pod, neighbour, &to)?,
            "{} hears {neighbour} from {}",
            to.name(),
            pod.name()
        );
        ensure!(refused(&lab.node(1))? > before, "no refusal is counted");
        ensure!(
            arrives(pod, pod.address(), &to)?,
            "{} is not heard by {}",
            pod.name(),
            to.name()
        );
    }
    Ok(())
}

/// The objects of a deleted pod that are left on a node.
fn left_of(node: &Node, pod: &Pod, device: &str, index: &str) -> Result<Vec<String>> {
    let script = format!(
        "ls {PINS}/links 2>/dev/null | grep '_{index}$'
         nft list table bridge overlay_guard 2>/dev/null | grep -w -e {device} -e {address}
         bpftool -j map dump pinned {PINS}/maps/ov_endpoints4 2>/dev/null | grep -o \
         '\"key\":{index},'
         ls {}/{address} 2>/dev/null
         ip -o link show dev {device} 2>/dev/null
         true",
        crate::ADDRESSES,
        address = pod.address(),
    );
    let found = node.run(["sh", "-c", &script])?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn without_an_agent(name: &str, fast_path: &str) -> Result<()> {
    let lab = lab(name, 2, fast_path)?;
    let node = lab.node(1);
    let is_fast = fast_path == "auto";
    if is_fast {
        // The agent pins all objects before it adopts the first pod.
        wait_for_path(&node, &lab.pod(1, 1).address().to_string(), "fast")?;
    }
    node.stop_agent(Signal::SIGKILL)?;
    if is_fast {
        // Without this table only programs judge.
        node.exec(["nft", "delete", "table", "bridge", "overlay_guard"])?;
    }
    let pods = [lab.add_pod(1)?, lab.add_pod(1)?];
    for pod in &pods {
        pod.run(format!("ip addr add {}/32 dev lo", lab.pod(1, 1).address()).split(' '))?;
        cannot_pretend(&lab, pod)?;
    }

    // One pod is deleted while no agent runs: nothing of it may be left.
    let [gone, stays] = pods;
    let device = gone.host_interface()?;
    let index = node.run(["cat", &format!("/sys/class/net/{device}/ifindex")])?;
    let seen = left_of(&node, &gone, &device, index.trim())?;
    ensure!(seen.len() >= 3, "this would not see what is left: {seen:?}");
    gone.clone().remove()?;
    let left = left_of(&node, &gone, &device, index.trim())?;
    ensure!(left.is_empty(), "left: {left:?}");

    node.start_agent(&[])?;
    if is_fast {
        wait_for_path(&node, &stays.address().to_string(), "fast")?;
    } else {
        wait_until("the agent to know its pods", NOTICED, || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.body.contains("pods: 3\n"))
        })?;
    }
    cannot_pretend(&lab, &stays)?;
    lab.down()
}

#[test]
fn a_pod_made_without_an_agent_cannot_pretend_where_programs_judge() -> Result<()> {
    without_an_agent("alone", "auto")
}

#[test]
fn a_pod_made_without_an_agent_cannot_pretend_where_nftables_judge() -> Result<()> {
    without_an_agent("alone-nft", "off")
}

/// The plugin tells the programs which container has an address: a container with two interfaces
/// may send from the address of one by the other.
#[test]
fn a_container_made_without_an_agent_may_answer_by_its_other_interface() -> Result<()> {
    let lab = lab("siblings", 1, "auto")?;
    let (node, target) = (lab.node(1), lab.pod(1, 1).address());
    wait_for_path(&node, &target.to_string(), "fast")?;
    node.stop_agent(Signal::SIGKILL)?;
    // Without this table only programs judge.
    node.exec(["nft", "delete", "table", "bridge", "overlay_guard"])?;
    let conf = json!({"name": "cbr0", "type": "flannel", "cniVersion": "1.1.0"});
    let container = Attachment::new(&lab, 1, "two")?;
    let first = container.answer("ADD", &conf, &[])?;
    let netns = format!("--net={}", container.netns);
    let inside = |script: &str| node.run(["nsenter", &netns, "sh", "-c", script]);
    // The routes are those of the second interface, which are the duty of the caller that attaches
    // it.
    inside("ip route del 10.244.0.0/16; ip route del default; true")?;
    container.answer("ADD", &conf, &[("CNI_IFNAME", "net1")])?;
    let own = first["ips"][0]["address"].as_str().context("an address")?;
    let own = own.split('/').next().unwrap_or(own);
    let before = (refused(&node)?, slow(&node, "sibling_source")?);
    inside(&format!(
        "ip route add {target}/32 dev net1; ping -c2 -i0.2 -W1 -I {own} {target}; true"
    ))?;
    ensure!(refused(&node)? == before.0, "refused: {}", status(&node)?);
    ensure!(
        slow(&node, "sibling_source")? > before.1,
        "{}",
        status(&node)?
    );
    lab.down()
}

/// Packets that programs have left to the kernel path for this cause.
fn slow(node: &Node, cause: &str) -> Result<u64> {
    Ok(status(node)?["slow_path"][cause].as_u64().unwrap_or(0))
}

/// Pins of another version, or missing pins, do not matter.
#[test]
fn a_pod_is_made_whatever_is_pinned() -> Result<()> {
    let lab = lab("pinned", 1, "auto")?;
    let node = lab.node(1);
    node.stop_agent(Signal::SIGKILL)?;
    let target = lab.pod(1, 1).address().to_string();
    let states = [
        format!("mv {PINS}/programs {PINS}/programs_away"),
        format!("mkdir -p /sys/fs/bpf/overlay/v999/maps && rm -r {PINS}"),
        "umount /sys/fs/bpf".to_owned(),
    ];
    for state in states {
        node.run(["sh", "-ec", &state])?;
        let pod = lab.add_pod(1)?;
        pod.run(["ping", "-c1", "-W2", &target])?;
        pod.remove()?;
    }
    lab.down()
}
