//! Every binary runs with exactly the capabilities that `deploy/` gives it; without one of them the
//! binary names the missing one.
//!
//! `setpriv` removes capabilities from root like systemd's `CapabilityBoundingSet` and a container
//! runtime's `drop`.

mod binaries;
mod files;
mod secrets;
mod service;
mod units;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_tests::Node;

/// A long timeout, because machines that run tests are slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent with its fast path, and `overlayd probe`.
const FAST_PATH: &[&str] = &["net_admin", "net_raw", "bpf", "perfmon"];
/// The agent with `--fast-path off`.
const KERNEL_PATH: &[&str] = &["net_admin", "net_raw"];
/// The CNI plugin, as started by the container runtime.
const PLUGIN: &[&str] = &["net_admin", "net_raw", "sys_admin"];
/// `overlayctl status`, also in the agent's container.
const STATUS: &[&str] = &["net_admin", "bpf"];
/// `overlayd cleanup`.
const CLEANUP: &[&str] = &["net_admin", "net_raw", "bpf"];

/// The words that run a program with these capabilities only, and without a way to get more.
fn confined(capabilities: &[&str]) -> String {
    let kept: String = capabilities.iter().map(|it| format!(",+{it}")).collect();
    format!("setpriv --no-new-privs --inh-caps=-all{kept} --bounding-set=-all{kept}")
}

/// All capabilities but one.
fn without<'a>(capabilities: &[&'a str], one: &str) -> Vec<&'a str> {
    capabilities
        .iter()
        .copied()
        .filter(|it| *it != one)
        .collect()
}

/// A script that runs a program with these capabilities only.
fn script(directory: &Path, program: &Path, capabilities: &[&str]) -> Result<PathBuf> {
    let path = directory.join(format!("with-{}", capabilities.join("-")));
    let words = confined(capabilities);
    executable(&path, &format!("exec {words} {} \"$@\"", program.display()))?;
    Ok(path)
}

/// An executable script.
fn executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    let mode = fs::Permissions::from_mode(0o755);
    Ok(fs::set_permissions(path, mode)?)
}

/// The agent's log since `start`.
fn log_since(node: &Node, start: u64) -> Result<String> {
    let log = fs::read(node.agent_log()).context("read the agent's log")?;
    let start = usize::try_from(start)?.min(log.len());
    Ok(String::from_utf8_lossy(&log[start..]).into_owned())
}

fn log_length(node: &Node) -> u64 {
    fs::metadata(node.agent_log()).map_or(0, |it| it.len())
}
