//! The store of the lab: a real etcd in a namespace, or a directory that all nodes see.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::options::{Options, StoreKind};
use super::state::Shared;
use super::underlay::{self, STORE_ADDRESS};
use crate::process::Process;
use crate::{Namespace, wait_until};

/// Name of etcd's namespace, without the lab's prefix.
const NAMESPACE: &str = "store";
/// flannel's key of the network configuration.
const CONFIG_KEY: &str = "/coreos.com/network/config";
/// The path of the shared directory in a node.
pub(super) const DIR_IN_NODE: &str = "/run/overlay-store";
const ETCD_UP: Duration = Duration::from_secs(20);
const ETCD_DOWN: Duration = Duration::from_secs(10);

/// The agent's flags for the store and its endpoints.
pub(super) fn agent_flags(options: &Options) -> Vec<String> {
    match options.store {
        StoreKind::Etcd => {
            vec![
                "--store=etcd".into(),
                format!("--etcd-endpoints={}", endpoint(options)),
            ]
        }
        StoreKind::Dir => vec![format!("--store=dir:{DIR_IN_NODE}")],
    }
}

/// The address of the store for clients in the lab.
pub(super) fn endpoint(options: &Options) -> String {
    match options.store {
        StoreKind::Etcd => {
            let urls: Vec<_> = (1..=options.store_members).map(client_url).collect();
            urls.join(",")
        }
        StoreKind::Dir => DIR_IN_NODE.to_owned(),
    }
}

/// The URL at which a member of etcd, counted from 1, serves clients.
fn client_url(number: usize) -> String {
    format!("http://{STORE_ADDRESS}:{}", 2369 + 10 * number)
}

/// The URL at which the member serves the other members.
fn peer_url(number: usize) -> String {
    format!("http://127.0.0.1:{}", 2370 + 10 * number)
}

/// The member's data directory.
pub(super) fn data(shared: &Shared, number: usize) -> PathBuf {
    directory(shared).join(format!("member{number}"))
}

/// The shared directory in the machine's mount namespace.
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
            start(shared, &[])?;
            etcdctl(shared, &["put", CONFIG_KEY, &network])?;
        }
        StoreKind::Dir => {
            let path = data.join("config");
            fs::write(&path, network).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Starts the members of etcd that do not run and waits until all answer. `through` is a program
/// with its arguments that starts the member by `exec`; usually empty.
pub(super) fn start(shared: &Shared, through: &[&str]) -> Result<()> {
    let members = shared.read(|state| state.options.store_members);
    for number in 1..=members {
        let known = shared.read(|state| state.store_processes.get(&number).cloned());
        if !known.is_some_and(|process| process.is_alive()) {
            start_member(shared, number, members, through)?;
        }
    }
    let alive = || shared.read(|state| state.store_processes.values().all(Process::is_alive));
    wait_until("etcd to answer", ETCD_UP, || {
        !alive() || etcdctl(shared, &["endpoint", "health"]).is_ok()
    })?;
    if !alive() {
        let log = log(shared);
        bail!(
            "etcd ended; its log is {}:\n{}",
            log.display(),
            super::agent::tail(&log)
        );
    }
    Ok(())
}

fn log(shared: &Shared) -> PathBuf {
    shared.directory().join("etcd.log")
}

fn start_member(shared: &Shared, number: usize, members: usize, through: &[&str]) -> Result<()> {
    let log = log(shared);
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let errors = output.try_clone().context("duplicate a file handle")?;
    let namespace = Namespace::new(format!("{}{NAMESPACE}", shared.prefix()));
    let line: Vec<&str> = through.iter().copied().chain(["etcd"]).collect();
    let mut etcd = namespace.command(line[0]);
    etcd.args(&line[1..]);
    let name = |number| format!("lab{number}");
    let cluster: Vec<_> = (1..=members)
        .map(|number| format!("{}={}", name(number), peer_url(number)))
        .collect();
    etcd.arg("--data-dir").arg(data(shared, number));
    for (flag, value) in [
        ("--name", name(number)),
        ("--listen-client-urls", client_url(number)),
        ("--advertise-client-urls", client_url(number)),
        ("--listen-peer-urls", peer_url(number)),
        ("--initial-advertise-peer-urls", peer_url(number)),
        ("--initial-cluster", cluster.join(",")),
    ] {
        etcd.arg(flag).arg(value);
    }
    etcd.stdin(Stdio::null()).stdout(output).stderr(errors);
    std::os::unix::process::CommandExt::process_group(&mut etcd, 0);
    let child = namespace
        .start(&mut etcd)
        .context("etcd: install it with `cargo xtask setup`, or use `--store dir`")?;
    let process = Process::of(child.id())?;
    shared.update(|state| {
        if let Some(old) = state.store_processes.insert(number, process.clone()) {
            state.processes.retain(|other| *other != old);
        }
        state.processes.push(process);
    })
}

/// Ends etcd; the data stays.
pub(super) fn stop(shared: &Shared) -> Result<()> {
    let processes = shared.read(|state| state.store_processes.clone());
    if processes.is_empty() {
        bail!("this lab runs no etcd");
    }
    for process in processes.values() {
        process.signal(Signal::SIGTERM)?;
    }
    for process in processes.values() {
        process.wait_gone(ETCD_DOWN)?;
    }
    shared.update(|state| {
        state.store_processes.clear();
        let is_etcd = |other: &Process| processes.values().any(|process| process == other);
        state.processes.retain(|other| !is_etcd(other));
    })
}

/// Runs etcdctl next to etcd.
pub(super) fn etcdctl(shared: &Shared, arguments: &[&str]) -> Result<String> {
    if shared.read(|state| state.options.store) != StoreKind::Etcd {
        bail!("this lab keeps its leases in a directory, not in etcd");
    }
    let endpoints = shared.read(|state| format!("--endpoints={}", endpoint(&state.options)));
    // etcdctl 3.4 reads the version of the API from a variable, which does not disturb later
    // versions.
    let mut line = vec!["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=2s"];
    line.extend(["--command-timeout=5s", &endpoints]);
    line.extend(arguments);
    Namespace::new(format!("{}{NAMESPACE}", shared.prefix())).run(line)
}
