//! IPsec between nodes: packets that policies apply to take the kernel path, which applies the
//! policies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{Lab, Node, Options, fast_path, wait_until};

/// Policies are read in rounds.
const SOON: Duration = Duration::from_secs(20);

fn notes(node: &Node, text: &str) -> bool {
    node.http_get("/readyz")
        .is_ok_and(|answer| answer.body.contains(text))
}

/// A policy applies in both directions, and no packet bypasses it; without the policy the fast path
/// returns.
#[test]
fn policies_between_nodes_are_kept() -> Result<()> {
    const LEFT: &str = "IPsec policies";
    let lab = Lab::up(Options::for_test("xfrm"))?;
    let (node, peer) = (lab.node(1), lab.node(2));
    let (pod, remote) = (lab.pod(1, 1), lab.pod(2, 1));
    fast_path::wait_serving(&node)?;
    fast_path::wait_serving(&peer)?;
    let (from, to) = (pod.address().to_string(), remote.address().to_string());
    let echo = |target: &str| pod.exec(["ping", "-c", "1", "-W", "1", target]);
    let others = lab.pods();
    let neighbour = others
        .iter()
        .find(|other| other.node().number() == 1 && other.address() != pod.address());
    ensure!(echo(&to)?.status.success(), "{from} does not reach {to}");
    let own = node.underlay_address();
    let address = peer.underlay_address();
    for (direction, source, destination) in [("out", own, address), ("in", address, own)] {
        let policy = format!("src {source}/32 dst {destination}/32 dir {direction}");
        let add = format!("ip xfrm policy add {policy} action block");
        node.run(["sh", "-c", &add])?;
        wait_until("the policy to be noted", SOON, || notes(&node, LEFT))
            .with_context(|| node.agent_log_tail())?;
        ensure!(
            !echo(&to)?.status.success(),
            "{from} reaches {to} past the policy {policy}"
        );
        if let Some(neighbour) = neighbour {
            let before = fast_path::packets(&node, "pod_in", "redirected")?;
            ensure!(echo(&neighbour.address().to_string())?.status.success());
            ensure!(
                fast_path::packets(&node, "pod_in", "redirected")? > before,
                "pods of one node are left to the kernel as well"
            );
        }
        node.run(["sh", "-c", &format!("ip xfrm policy delete {policy}")])?;
        wait_until("the fast path to come back", SOON, || !notes(&node, LEFT))
            .with_context(|| node.agent_log_tail())?;
        let before = fast_path::packets(&node, "pod_in", "encapsulated")?;
        ensure!(echo(&to)?.status.success(), "{from} does not reach {to}");
        ensure!(
            fast_path::packets(&node, "pod_in", "encapsulated")? > before,
            "the fast path is not back"
        );
    }
    lab.down()
}
