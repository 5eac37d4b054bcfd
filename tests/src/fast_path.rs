//! The fast path of a node: whether it serves, and its counters.

use std::time::Duration;

use crate::pins::LINKS;
use anyhow::{Context, Result, ensure};
use overlay_common::verdict::{Hook, Verdict};

use crate::{AGENT_FLAGS_ENV, Node, wait_until};

/// Longest time until the agent serves pods on the fast path.
const SERVING: Duration = Duration::from_secs(15);

/// Waits until the fast path of a node serves every pod. A pod runs as soon as the CNI plugin has
/// connected it; the agent learns of the pod a moment later.
///
/// # Errors
/// When that takes too long; the agent's last log lines are part of the error.
pub fn wait_serving(node: &Node) -> Result<()> {
    let pods = node.pods().len();
    wait_until("the fast path to serve every pod", SERVING, || {
        node.json(["overlayctl", "status", "--output", "json"])
            .is_ok_and(|status| {
                let served = status["pods"].as_array().is_some_and(|served| {
                    served.len() == pods && served.iter().all(|pod| pod["path"] == "fast")
                });
                served && status["fast_path"]["state"] == "active"
            })
    })
    .with_context(|| node.agent_log_tail())
}

/// Whether the kernel attaches programs by tcx links (Linux 6.6); otherwise programs are filters of
/// a clsact qdisc.
///
/// # Errors
/// When the kernel has no fast path at all, or the agent's program cannot be run.
pub fn has_tcx(node: &Node) -> Result<bool> {
    let probes = node.json(["overlayd", "probe", "--output", "json"])?;
    let tcx = probes.as_array().and_then(|probes| {
        let mut probes = probes.iter();
        probes.find(|probe| probe["feature"] == "tcx links")
    });
    let answer = &tcx.context("`overlayd probe` tells nothing of tcx")?["answer"];
    Ok(answer["answer"] == "yes")
}

/// Detaches all our programs from the hooks of pods and of the underlay, as an operator would.
///
/// # Errors
/// When a tool is missing or fails.
pub fn detach(node: &Node) -> Result<()> {
    node.run(["sh", "-ec", &detach_script(node)?]).map(drop)
}

/// The script for a node's shell that [`detach`] runs.
///
/// # Errors
/// When the node's kernel cannot be probed.
pub fn detach_script(node: &Node) -> Result<String> {
    Ok(if has_tcx(node)? {
        format!("for link in {LINKS}/*; do bpftool link detach pinned $link; done")
    } else {
        // tc reports an error for a device without the qdisc, which has no filters.
        "for device in $(ls /sys/class/net); do
             for way in ingress egress; do tc filter del dev $device $way 2>/dev/null || true; done
         done"
            .to_owned()
    })
}

/// The slow-path causes of packets that this run's agents leave to the kernel path because of flags
/// for all agents.
pub fn left_by_request() -> &'static [&'static str] {
    let flags = std::env::var(AGENT_FLAGS_ENV).unwrap_or_default();
    if flags
        .split_whitespace()
        .any(|flag| flag == "--aggregates=kernel")
    {
        &["aggregate"]
    } else {
        &[]
    }
}

/// How many packets have ended in `verdict` at `hook` on a node since its programs were loaded.
///
/// # Errors
/// When the agent does not answer, counts nothing at all, or knows no such hook or verdict.
pub fn packets(node: &Node, hook: &str, verdict: &str) -> Result<u64> {
    ensure!(
        Hook::ALL.iter().any(|known| known.name() == hook)
            && Verdict::ALL.iter().any(|known| known.name() == verdict),
        "there is no counter of {verdict} at {hook}"
    );
    let answer = node
        .http_get("/metrics")
        .with_context(|| format!("ask {} for its counters", node.name()))?;
    // Counters of zero are left out.
    ensure!(
        answer.body.contains("# TYPE overlay_datapath_packets "),
        "{} counts no packets:\n{}",
        node.name(),
        answer.body
    );
    let hook = format!("hook=\"{hook}\"");
    let verdict = format!("verdict=\"{verdict}\"");
    let line = answer
        .body
        .lines()
        .filter(|line| line.starts_with("overlay_datapath_packets_total{"))
        .find(|line| line.contains(&hook) && line.contains(&verdict));
    let Some(line) = line else {
        return Ok(0);
    };
    let value = line.rsplit(' ').next().unwrap_or_default();
    value
        .parse()
        .with_context(|| format!("the counter {line:?}"))
}
