//! The messages that an operator and a container runtime get during a fault.

use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Node;

/// Checks that `overlayctl` and the CNI plugin answer, or clearly say why they cannot.
pub(super) fn answer(node: &Node) -> Result<()> {
    let table = node.exec(["overlayctl", "status"])?;
    ensure_clear("overlayctl status", &table)?;
    let json = node.exec(["overlayctl", "status", "--output", "json"])?;
    ensure_clear("overlayctl status --output json", &json)?;
    if !json.stdout.is_empty() {
        serde_json::from_slice::<Value>(&json.stdout)?;
    }
    let status = node.cni("STATUS", None, &[])?;
    ensure_clear("CNI STATUS", &status)?;
    if !status.status.success() {
        let error: Value = serde_json::from_slice(&status.stdout)?;
        ensure!(
            error["code"].is_u64() && error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
            "CNI STATUS fails with {error}"
        );
    }
    Ok(())
}

/// Checks that a program ended by itself, and with a reason if it failed.
fn ensure_clear(what: &str, output: &Output) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.code().is_some() && !said.contains("panicked"),
        "{what} ended with {}: {said}",
        output.status
    );
    ensure!(
        output.status.success() || !said.trim().is_empty(),
        "{what} failed ({}) and does not say why",
        output.status
    );
    Ok(())
}
