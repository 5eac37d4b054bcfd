//! The store of the lab: a real etcd in a namespace, or a directory that all nodes see.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::options::StoreKind;
use super::state::Shared;
use super::underlay::{self, STORE_ADDRESS};
use crate::process::Process;
use crate::{Namespace, wait_until};

/// Name of etcd's namespace, without the lab's prefix.
const NAMESPACE: &str = "store";
/// flannel's key of the network configuration.
const CONFIG_KEY: &str = "/coreos.com/network/config";
/// Where nodes see the shared directory.
pub(super) const DIR_IN_NODE: &str = "/run/overlay-store";
const ETCD_UP: Duration = Duration::from_secs(20);
const ETCD_DOWN: Duration = Duration::from_secs(10);

/// What an agent's `--store` and its endpoint flags are.
pub(super) fn agent_flags(kind: StoreKind) -> Vec<String> {
    match kind {
        StoreKind::Etcd => {
            vec![
                "--store=etcd".into(),
                format!("--etcd-endpoints={}", endpoint(&kind)),
            ]
        }
        StoreKind::Dir => vec![format!("--store=dir:{DIR_IN_NODE}")],
    }
}

/// Where clients in the lab find the store.
pub(super) fn endpoint(kind: &StoreKind) -> String {
    match kind {
        StoreKind::Etcd => format!("http://{STORE_ADDRESS}:2379"),
        StoreKind::Dir => DIR_IN_NODE.to_owned(),
    }
}

/// The shared directory as the machine sees it.
pub(super) fn directory(shared: &Shared) -> PathBuf {
    shared.directory().join("store")
}

/// Makes the store and writes the network configuration into it.
pub(super) fn create(shared: &Shared) -> Result<()> {
    let (kind, network) =
        shared.read(|state| (state.options.store, state.options.network.to_string()));
    let data = directory(shared);
    fs::create_dir(&data).with_context(|| format!("create {}", data.display()))?;
    match kind {
        StoreKind::Etcd => {
            let namespace = super::add_namespace(shared, NAMESPACE)?;
            underlay::plug(shared, NAMESPACE, &namespace, STORE_ADDRESS)?;
            start(shared)?;
            etcdctl(shared, &["put", CONFIG_KEY, &network])?;
        }
        StoreKind::Dir => {
            let path = data.join("config");
            fs::write(&path, network).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Starts etcd and waits until it answers.
pub(super) fn start(shared: &Shared) -> Result<()> {
    let client = endpoint(&StoreKind::Etcd);
    let log = shared.directory().join("etcd.log");
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let errors = output.try_clone().context("duplicate a file handle")?;
    let mut etcd = Command::new("etcd");
    etcd.arg("--data-dir").arg(directory(shared));
    etcd.args([
        "--name",
        "lab",
        "--listen-peer-urls",
        "http://127.0.0.1:2380",
    ]);
    etcd.args([
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ]);
    etcd.stdin(Stdio::null()).stdout(output).stderr(errors);
    std::os::unix::process::CommandExt::process_group(&mut etcd, 0);
    let namespace = Namespace::new(format!("{}{NAMESPACE}", shared.prefix()));
    let child = namespace
        .start(&mut etcd)
        .context("etcd: install it with `cargo xtask setup`, or use `--store dir`")?;
    let process = Process::of(child.id())?;
    shared.update(|state| {
        state.store_process = Some(process.clone());
        state.processes.push(process.clone());
    })?;
    wait_until("etcd to answer", ETCD_UP, || {
        !process.is_alive() || etcdctl(shared, &["endpoint", "health"]).is_ok()
    })?;
    if !process.is_alive() {
        bail!(
            "etcd ended; its log is {}:\n{}",
            log.display(),
            super::agent::tail(&log)
        );
    }
    Ok(())
}

/// Ends etcd; its data stays.
pub(super) fn stop(shared: &Shared) -> Result<()> {
    let Some(process) = shared.read(|state| state.store_process.clone()) else {
        bail!("this lab runs no etcd");
    };
    process.signal(Signal::SIGTERM)?;
    process.wait_gone(ETCD_DOWN)?;
    shared.update(|state| {
        state.store_process = None;
        state.processes.retain(|other| *other != process);
    })
}

/// Runs etcdctl next to etcd.
pub(super) fn etcdctl(shared: &Shared, arguments: &[&str]) -> Result<String> {
    if shared.read(|state| state.options.store) != StoreKind::Etcd {
        bail!("this lab keeps its leases in a directory, not in etcd");
    }
    let endpoints = format!("--endpoints={}", endpoint(&StoreKind::Etcd));
    // The version of the API is a variable to etcdctl 3.4 and does not harm later ones.
    let mut line = vec!["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=2s"];
    line.extend(["--command-timeout=5s", &endpoints]);
    line.extend(arguments);
    Namespace::new(format!("{}{NAMESPACE}", shared.prefix())).run(line)
}
