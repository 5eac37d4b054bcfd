//! The agent of one node: start, requests, end.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::state::Shared;
use super::store;
use crate::Namespace;
use crate::process::Process;

/// Port of the agent's HTTP server for health and metrics, on every node.
pub(super) const HEALTH_PORT: u16 = 8081;
/// Longest time until an agent ends after a signal. An agent that is killed inside of the kernel
/// waits for the locks of all namespaces of the machine, which others may hold for many seconds.
const END: Duration = Duration::from_secs(40);
/// Flags for every agent, separated by spaces: a whole run of tests with another variant of the
/// data path. Flags of a test itself have precedence.
pub const FLAGS_ENV: &str = "OVERLAY_LAB_AGENT_FLAGS";
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// A started agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The agent's process.
    pub process: Process,
    /// Stdout and stderr of the agent, behind those of the node's earlier agents.
    pub log: PathBuf,
}

/// The log file of a node's agent.
pub(super) fn log_path(shared: &Shared, node: &str) -> PathBuf {
    shared.directory().join(format!("{node}.log"))
}

/// Starts `program` as the agent of a node; `extra` flags replace the usual ones of the same name.
pub(super) fn start(
    shared: &Shared,
    index: usize,
    namespace: &Namespace,
    program: &Path,
    extra: &[&str],
) -> Result<Agent> {
    let (options, name) =
        shared.read(|state| (state.options.clone(), state.nodes[index].name.clone()));
    let mut flags = store::agent_flags(&options);
    flags.extend(["--iface=eth0", "--ip-masq", "--healthz-ip=0.0.0.0"].map(str::to_owned));
    flags.push(format!("--healthz-port={HEALTH_PORT}"));
    flags.push(format!("--fast-path={}", options.fast_path));
    let wanted = env::var(FLAGS_ENV).unwrap_or_default();
    replace_flags(&mut flags, &wanted.split_whitespace().collect::<Vec<_>>());
    replace_flags(&mut flags, &options.agent_args);
    replace_flags(&mut flags, extra);

    let log = log_path(shared, &name);
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let errors = output.try_clone().context("duplicate a file handle")?;
    let mut agent = Command::new(program);
    // The node's name, as in a DaemonSet.
    agent.env("NODE_NAME", &name);
    // Not a flag, because agents of earlier builds would refuse it.
    match shared.read(|state| state.nodes[index].group.clone()) {
        Some(group) => agent.env("OVERLAY_SERVICES_CGROUP", group),
        None => agent.env("OVERLAY_SERVICES", "off"),
    };
    agent.args(&flags).current_dir("/");
    agent
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0);
    let child = namespace.start(&mut agent)?;
    let process = Process::of(child.id())?;
    shared.update(|state| {
        state.nodes[index].agent = Some(process.clone());
        state.processes.push(process.clone());
    })?;
    Ok(Agent { process, log })
}

/// Ends the agent of a node with `signal`. Nothing happens where none runs.
pub(super) fn stop(shared: &Shared, index: usize, signal: Signal) -> Result<()> {
    let Some(process) = shared.read(|state| state.nodes[index].agent.clone()) else {
        return Ok(());
    };
    process.signal(signal)?;
    process.wait_gone(END)?;
    shared.update(|state| {
        state.nodes[index].agent = None;
        state.processes.retain(|other| *other != process);
    })
}

/// Adds flags of the form `--name` or `--name=value`, which replace those of the same name.
fn replace_flags<S: AsRef<str>>(flags: &mut Vec<String>, extra: &[S]) {
    let name = |flag: &str| flag.split('=').next().unwrap_or(flag).to_owned();
    for new in extra {
        let new = new.as_ref();
        if new.starts_with("--") {
            flags.retain(|old| name(old) != name(new));
        }
        flags.push(new.to_owned());
    }
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_replaces_its_namesake() {
        let mut flags = vec!["--iface=eth0".to_owned(), "--fast-path=auto".to_owned()];
        replace_flags(&mut flags, &["--fast-path=off", "--fast-path-x=1"]);
        assert_eq!(
            flags,
            ["--iface=eth0", "--fast-path=off", "--fast-path-x=1"]
        );
        replace_flags(&mut flags, &["--iface", "eth1"]);
        assert_eq!(
            flags,
            ["--fast-path=off", "--fast-path-x=1", "--iface", "eth1"]
        );
    }
}
