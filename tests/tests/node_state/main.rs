//! The state of a node's kernel: what flannel would make of it, and what holds whatever others do
//! to it.

mod company;
mod flannel;
mod settings;
mod stale;

use std::time::Duration;

use anyhow::Result;
use overlay_tests::Node;

/// What netlink tells of; machines that run tests are slow.
const SOON: Duration = Duration::from_secs(15);

/// Runs a shell script on a node.
fn shell(node: &Node, script: &str) -> Result<String> {
    node.run(["sh", "-c", script])
}
