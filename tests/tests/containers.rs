//! Real containers, made by containerd and runc with our plugin, talk across nodes and leave
//! nothing behind.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::containers::{Container, Containerd, image};
use overlay_tests::pins::{LINKS, MAPS};
use overlay_tests::status::{Counts, status, wait_for_path};
use overlay_tests::{Lab, Node, Options, wait_until};

/// Longest time until the agent notices that a pod was added or removed.
const NOTICED: Duration = Duration::from_secs(5);
/// The command that serves a page.
const SERVE: &[&str] = &[
    "sh",
    "-c",
    "echo page >/www/index.html; exec httpd -f -p 80 -h /www",
];

#[test]
fn containers_talk_across_nodes_and_leave_nothing_behind() -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let archive = image(directory.path())?;
    let lab = Lab::up(Options {
        pods: 0,
        ..Options::for_test("ctr")
    })?;
    let nodes = lab.nodes();
    let runtimes = [
        Containerd::start(&nodes[0], &archive)?,
        Containerd::start(&nodes[1], &archive)?,
    ];
    // The bridge stays after the last pod, so the state before is taken with the bridge.
    for node in &nodes {
        ensure!(leftovers(node)?.is_empty(), "{:?}", leftovers(node)?);
    }
    // A container is added and removed before, so that a reused address is tested.
    for round in 1..=2 {
        let names = [format!("web{round}a"), format!("web{round}b")];
        let containers = [
            runtimes[0].run(&names[0], SERVE)?,
            runtimes[1].run(&names[1], SERVE)?,
        ];
        talk(&nodes, &runtimes, &containers).with_context(|| format!("round {round}"))?;
        for (runtime, container) in runtimes.iter().zip(containers) {
            runtime.end(container)?;
        }
        for node in &nodes {
            wait_until(&format!("{} to be clean", node.name()), NOTICED, || {
                leftovers(node).is_ok_and(|left| left.is_empty())
            })
            .with_context(|| format!("{:?}", leftovers(node)))?;
        }
    }
    Ok(())
}

/// Both fetch a page from the other, over the fast path.
fn talk(nodes: &[Node], runtimes: &[Containerd; 2], containers: &[Container; 2]) -> Result<()> {
    let addresses = [
        runtimes[0].address(&containers[0])?,
        runtimes[1].address(&containers[1])?,
    ];
    for (node, address) in nodes.iter().zip(&addresses) {
        wait_for_path(node, address, "fast")?;
    }
    for node in nodes {
        let found = leftovers(node)?;
        ensure!(
            found.len() >= 5,
            "this would not see what is left: {found:?}"
        );
    }
    let before = Counts::of(&nodes[0])?;
    for (here, there) in [(0, 1), (1, 0)] {
        let ask = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} 80",
            addresses[there]
        );
        let answer = runtimes[here].exec(&containers[here], &["sh", "-c", &ask])?;
        ensure!(
            answer.contains("200 OK") && answer.contains("page"),
            "{ask}: {answer}"
        );
    }
    let counts = &Counts::of(&nodes[0])? - &before;
    ensure!(
        counts.encapsulated > 0 && counts.decapsulated > 0,
        "{counts:?}"
    );
    Ok(())
}

/// Everything on a node that belongs to a pod.
fn leftovers(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let links = node.run(["ip", "-o", "link", "show", "type", "veth"])?;
    // The node's own end of the underlay's cable is a veth too.
    left.extend(
        links
            .lines()
            .filter(|line| !line.contains(": eth0@"))
            .map(str::to_owned),
    );
    let files = node.run(["find", "/var/lib/cni", "-type", "f"])?;
    left.extend(
        files
            .lines()
            .filter(|file| !file.ends_with("/lock") && !file.contains("/last_reserved_ip."))
            .map(str::to_owned),
    );
    let status = status(node)?;
    let pods = status["pods"].as_array().context("no pods in the status")?;
    left.extend(pods.iter().map(ToString::to_string));
    for map in ["ov_pods4", "ov_endpoints4"] {
        let pin = format!("{MAPS}/{map}");
        let entries = node.json(["bpftool", "--json", "map", "dump", "pinned", &pin])?;
        let entries = entries.as_array().context("a dump is a list")?;
        left.extend(entries.iter().map(|entry| format!("{map}: {entry}")));
    }
    let pins = node.run(["ls", &LINKS.to_string()])?;
    left.extend(
        pins.lines()
            .filter(|pin| pin.starts_with("pod_"))
            .map(str::to_owned),
    );
    // Network namespaces whose processes have ended appear as numbers only.
    left.extend(
        node.run(["ip", "netns", "list-id"])?
            .lines()
            .map(str::to_owned)
            .filter(|line| !line.contains("name:")),
    );
    Ok(left)
}
