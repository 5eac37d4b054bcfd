//! The state of a node's kernel: equal to flannel's, and stable against changes by other programs.

mod company;
mod flannel;
mod settings;
mod stale;

use std::time::Duration;

use anyhow::Result;
use overlay_tests::Node;

/// Longest time for changes that netlink reports, because machines that run tests are slow.
const SOON: Duration = Duration::from_secs(15);

/// Runs a shell script on a node.
fn shell(node: &Node, script: &str) -> Result<String> {
    node.run(["sh", "-c", script])
}
