//! Two ways to detect a failure: pods that talk all the time, and the agents' logs.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Pod, Running, wait_until};

use crate::PATIENCE;

/// A conversation between two pods that must not lose a packet.
pub(super) struct Talk(Running, String);

impl Talk {
    fn begin(from: &Pod, to: &Pod) -> Result<Self> {
        let name = format!("{} to {}", from.name(), to.name());
        let target = to.address().to_string();
        Ok(Self(from.spawn(["ping", "-q", "-i0.005", &target])?, name))
    }

    fn end(self) -> Result<()> {
        let output = self.0.stop(Signal::SIGINT)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains(" 0% packet loss"), "{}: {text}", self.1);
        Ok(())
    }
}

/// Conversations within a node and across nodes.
pub(super) fn talks(lab: &Lab) -> Result<Vec<Talk>> {
    let mut talks = vec![Talk::begin(&lab.pod(1, 1), &lab.pod(1, 2))?];
    if lab.nodes().len() > 1 {
        talks.push(Talk::begin(&lab.pod(1, 1), &lab.pod(2, 1))?);
        talks.push(Talk::begin(&lab.pod(2, 2), &lab.pod(1, 2))?);
    }
    Ok(talks)
}

/// Ends the conversations, and searches every log for panics.
pub(super) fn all_is_well(lab: &Lab, talks: Vec<Talk>) -> Result<()> {
    talks.into_iter().try_for_each(Talk::end)?;
    for node in lab.nodes() {
        let log = fs::read_to_string(node.agent_log()).unwrap_or_default();
        ensure!(!log.contains("panicked"), "{}", node.agent_log_tail());
    }
    Ok(())
}

/// The agent's log since `start`.
pub(super) fn log_since(node: &Node, start: usize) -> String {
    let log = fs::read(node.agent_log()).unwrap_or_default();
    String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
}

pub(super) fn log_length(node: &Node) -> usize {
    fs::metadata(node.agent_log()).map_or(0, |it| it.len() as usize)
}

/// Waits until the agent has logged all of `words` since `start`.
pub(super) fn wait_log(node: &Node, start: usize, words: &[&str]) -> Result<()> {
    let told = || {
        let log = log_since(node, start);
        words.iter().all(|word| log.contains(word))
    };
    wait_until(&format!("a log with {words:?}"), PATIENCE, told)
        .with_context(|| log_since(node, start))
}
