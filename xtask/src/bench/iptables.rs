//! Writes many rules for iptables at a time.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result};
use overlay_tests::Node;
use overlay_tests::command::require_success;

/// Adds rules to a node; `text` is input for `iptables-restore`.
pub fn restore(node: &Node, text: &str) -> Result<()> {
    let namespace = node.namespace();
    let mut command = namespace.command("iptables-restore");
    command
        .args(["--noflush", "--wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = namespace.start(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).context("write rules")?;
    }
    let output = child.wait_with_output().context("iptables-restore")?;
    require_success("iptables-restore", output).map(drop)
}
