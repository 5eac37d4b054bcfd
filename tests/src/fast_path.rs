//! The data path's counters, as the agent's metrics show them.

use anyhow::{Context, Result};

use crate::Node;

/// How many packets have ended in `verdict` at `hook` on a node since its programs were loaded; 0 where the
/// fast path is off.
///
/// # Errors
/// When the agent does not answer.
pub fn packets(node: &Node, hook: &str, verdict: &str) -> Result<u64> {
    let answer = node
        .http_get("/metrics")
        .with_context(|| format!("ask {} for its counters", node.name()))?;
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
