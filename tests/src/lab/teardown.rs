//! Removes a lab: every step is tried, and the failures are reported together.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::{groups, state};
use crate::command;
use crate::process::Process;

/// The time that processes have to end by themselves.
const GRACE: Duration = Duration::from_secs(3);
/// The time that the kernel has to end a killed process.
const KILLED: Duration = Duration::from_secs(5);

/// Removes the lab of this prefix; returns whether there was one.
pub(super) fn remove(prefix: &str) -> Result<bool> {
    if !state::directory(prefix).exists() {
        return Ok(false);
    }
    let _lock = state::lock(prefix)?;
    remove_locked(prefix)
}

/// Removes ephemeral labs whose process ended without removing them.
pub(super) fn sweep_abandoned() -> Result<()> {
    let Ok(entries) = fs::read_dir(state::LABS) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let Ok(Some(found)) = state::remains(&entry.path()) else {
            continue;
        };
        if found.options.ephemeral && !found.owner.is_alive() {
            // Another process may be removing the same lab.
            let _ = remove(&found.options.prefix);
        }
    }
    Ok(())
}

/// Does the work of [`remove`] for a caller who holds the lock.
pub(super) fn remove_locked(prefix: &str) -> Result<bool> {
    let directory = state::directory(prefix);
    if !directory.exists() {
        return Ok(false);
    }
    let mut failures: Vec<String> = Vec::new();
    // A state that cannot be read stays, because without the state nobody would find the parts in
    // it.
    if let Some(found) = state::remains(&directory)? {
        end_all(&found.processes, &mut failures);
        for group in &found.control_groups {
            if let Err(error) = groups::remove(group) {
                failures.push(format!("{error:#}"));
            }
        }
        for name in &found.namespaces {
            if Path::new(crate::netns::NETNS_DIR).join(name).exists()
                && let Err(error) = command::ip(&format!("netns delete {name}"))
            {
                failures.push(format!("{error:#}"));
            }
        }
    }
    match umount2(&directory, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(error) => failures.push(format!("unmount {}: {error}", directory.display())),
    }
    if let Err(error) = groups::unmount_version_2() {
        failures.push(format!("{error:#}"));
    }
    if let Err(error) = fs::remove_dir_all(&directory) {
        failures.push(format!("remove {}: {error}", directory.display()));
    }
    if !failures.is_empty() {
        bail!("could not take everything down: {}", failures.join("; "));
    }
    Ok(true)
}

fn end_all(processes: &[Process], failures: &mut Vec<String>) {
    let alive = || processes.iter().filter(|process| process.is_alive());
    for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, KILLED)] {
        for process in alive() {
            if let Err(error) = process.signal(signal) {
                failures.push(format!("{error:#}"));
            }
        }
        // The loop does not use `wait_until`, because the removal has to continue after an
        // interrupt.
        let end = Instant::now() + patience;
        while alive().next().is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    failures.extend(alive().map(|process| format!("process {} does not end", process.pid)));
}
