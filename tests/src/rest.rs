//! Whether an agent stops making rounds when nothing changes any more.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Node, wait_until};

/// Longer than an agent's pause between two rounds, on the slowest machine that runs tests.
const QUIET: Duration = Duration::from_secs(5);
/// Longest duration of the rounds after a start.
const LIMIT: Duration = Duration::from_secs(30);

/// The number of rounds that the reconciler of a node's agent has made.
///
/// # Errors
/// When the agent does not answer, or has no such counter.
pub fn rounds(node: &Node) -> Result<u64> {
    let answer = node.http_get("/metrics")?;
    let mut lines = answer.body.lines();
    let count = lines.find_map(|line| line.strip_prefix("overlay_rounds_total "));
    let count = count.with_context(|| format!("no count of rounds in {}", answer.body))?;
    count.parse().context("the count of rounds")
}

/// Waits until a node's agent has made no round for some time. An agent whose rounds cause further
/// rounds never stops.
///
/// # Errors
/// When there is always another round, or the agent does not answer.
pub fn wait_at_rest(node: &Node) -> Result<()> {
    let mut before = rounds(node)?;
    println!("{before} rounds of {} before it rests", node.name());
    wait_until("the agent to come to rest", LIMIT, || {
        sleep(QUIET);
        rounds(node).is_ok_and(|now| std::mem::replace(&mut before, now) == now)
    })
    .with_context(|| format!("{before} rounds so far\n{}", node.agent_log_tail()))?;
    println!("{before} rounds of {} in all", node.name());
    Ok(())
}
