//! Every change that the agent did not make is repaired: devices, neighbours, routes, rules, files,
//! programs and map entries. Each case prints the duration of the repair.

mod churn;
mod health;
mod kernel_state;
mod maps;

use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_tests::pins::MAPS;
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Node, Options, Pod, wait_until};

/// Longest repair of changes that netlink reports: two seconds, and more because machines that run
/// tests are slow.
const SOON: Duration = Duration::from_secs(4);
/// Longest repair of changes that no event reports: the agent looks for them every five seconds.
const RESYNC: Duration = Duration::from_secs(10);
/// Longest time until a store is reached over a new path.
const RECONNECT: Duration = Duration::from_secs(30);
fn endpoint(pod: &Pod) -> Endpoint {
    pod.into()
}

/// A lab whose agents know all their pods.
fn lab(options: Options) -> Result<Lab> {
    let lab = Lab::up(options)?;
    for node in lab.nodes() {
        let pods = format!("pods: {}\n", node.pods().len());
        wait_until(&format!("{} to know its {pods}", node.name()), SOON, || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.body.contains(&pods))
        })?;
    }
    Ok(lab)
}

fn shell(node: &Node, script: &str) -> Result<String> {
    node.run(["sh", "-c", script])
}

/// Checks that pods of the two nodes, and of one, reach each other, and that node 1 reaches its own
/// pods; on either path.
fn talk(lab: &Lab) -> Result<()> {
    let [a, b, c] = [(1, 1), (2, 1), (1, 2)].map(|(node, pod)| endpoint(&lab.pod(node, pod)));
    let host = Endpoint {
        name: "n1".to_owned(),
        namespace: lab.node(1).namespace(),
        address: lab.node(1).underlay_address(),
    };
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&host, &b), (&host, &a)] {
        traffic::tcp(from, to, 100_000)
            .with_context(|| format!("{} to {}", from.name, to.name))
            .with_context(|| lab.node(1).agent_log_tail())?;
    }
    Ok(())
}

/// A pinned map as JSON, entries in order.
fn dump(node: &Node, map: &str) -> Result<Vec<String>> {
    let entries = node.json([
        "bpftool",
        "-j",
        "map",
        "dump",
        "pinned",
        &format!("{MAPS}/{map}"),
    ])?;
    let entries = entries.as_array().cloned().unwrap_or_default();
    let mut lines: Vec<String> = entries
        .iter()
        .map(|entry| entry["key"].to_string() + &entry["value"].to_string())
        .collect();
    lines.sort();
    Ok(lines)
}
