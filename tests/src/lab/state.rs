//! The parts of the lab, on disk.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

use super::groups::Group;
use super::options::{Options, PREFIX_ENV};
use super::teardown;
use crate::process::Process;

/// All labs of this machine.
pub(super) const LABS: &str = "/run/overlay-lab";
/// Directory of the lab that has no prefix.
const UNNAMED: &str = "default";

/// The parts of the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub options: Options,
    /// The process on which the lab depends, if the lab is ephemeral.
    pub owner: Process,
    /// Whether all parts were made.
    pub complete: bool,
    /// Every network namespace, recorded before it is made.
    pub namespaces: Vec<String>,
    pub nodes: Vec<NodeRecord>,
    pub pods: Vec<PodRecord>,
    /// The members of etcd that were started.
    pub store_processes: BTreeMap<usize, Process>,
    /// Every process that may still run.
    pub processes: Vec<Process>,
    /// Every control group, recorded after it was made.
    pub control_groups: Vec<PathBuf>,
}

/// The part of a lab's state that is needed to remove the lab. Labs outlive the build that made
/// them, and the state of another build may have other fields; these fields have existed from the
/// first version on.
#[derive(Debug, Deserialize)]
pub(super) struct Remains {
    pub options: Kind,
    pub owner: Process,
    pub complete: bool,
    pub namespaces: Vec<String>,
    pub processes: Vec<Process>,
    /// This field was added later than the others.
    #[serde(default)]
    pub control_groups: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Kind {
    pub prefix: String,
    pub ephemeral: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub name: String,
    pub namespace: String,
    /// Bind mount that keeps the mount namespace alive.
    pub mount: PathBuf,
    pub underlay: Ipv4Addr,
    pub agent: Option<Process>,
    /// Control group of version 2, where nodes have separate groups.
    pub group: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PodRecord {
    pub name: String,
    /// Number of the pod's node, from 1.
    pub node: usize,
    pub namespace: String,
    pub container: String,
    /// Address and prefix length, as the plugin reported it.
    pub address: Ipv4Net,
    /// The plugin's whole result, which later calls get as `prevResult`.
    pub result: serde_json::Value,
}

/// The state in memory and on disk, shared by the handles of a lab.
pub(super) struct Shared {
    directory: PathBuf,
    state: Mutex<State>,
    /// Control groups that this process has made.
    pub groups: Mutex<Vec<Group>>,
}

/// Directory of the lab with this prefix.
pub(super) fn directory(prefix: &str) -> PathBuf {
    let name = if prefix.is_empty() { UNNAMED } else { prefix };
    Path::new(LABS).join(name)
}

/// Blocks other commands on the lab of this prefix while the lab is made or removed.
pub(super) fn lock(prefix: &str) -> Result<File> {
    let path = directory(prefix).with_extension("lock");
    fs::create_dir_all(LABS).with_context(|| format!("create {LABS}"))?;
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another command is making or removing this lab"),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Why a lab cannot be made while there is another of the same prefix, and the cure.
fn obstacle(old: &Remains, new: &Options) -> Option<String> {
    let pid = old.owner.pid;
    if !old.complete {
        let made = || format!("process {pid} is making this lab");
        return old.owner.is_alive().then(made);
    }
    if new.ephemeral {
        // This is the lab of a test, which nobody has to take down by hand.
        return Some(format!(
            "process {pid} has a lab with the prefix {:?}: another run of the same test is under \
            way; `cargo xtask test` runs in namespaces of its own, or set {PREFIX_ENV}=x-",
            new.prefix
        ));
    }
    let prefix = match new.prefix.as_str() {
        "" => String::new(),
        prefix => format!("{PREFIX_ENV}={prefix} "),
    };
    Some(format!(
        "a lab is up already: enter it with `{prefix}cargo xtask lab exec n1 -- bash`, take it \
        down with `{prefix}cargo xtask lab down`, or start over with --force"
    ))
}

impl Shared {
    /// Begins a new lab, over the remains of one that was never complete.
    pub fn create(options: Options) -> Result<Self> {
        let directory = directory(&options.prefix);
        let _lock = lock(&options.prefix)?;
        if let Some(old) = remains(&directory)?
            && let Some(obstacle) = obstacle(&old, &options)
        {
            bail!(obstacle);
        }
        teardown::remove_locked(&options.prefix)?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        // The directory is a separate private mount, because namespaces can be kept on such a
        // mount, and one unmount removes all of them.
        mount(
            Some("overlay-lab"),
            &directory,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("mount a tmpfs on {}", directory.display()))?;
        mount(
            None::<&str>,
            &directory,
            None::<&str>,
            MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .with_context(|| format!("make {} private", directory.display()))?;
        let state = State {
            options,
            owner: Process::current()?,
            complete: false,
            namespaces: Vec::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
            store_processes: BTreeMap::new(),
            processes: Vec::new(),
            control_groups: Vec::new(),
        };
        save(&directory, &state)?;
        Ok(Self {
            directory,
            state: Mutex::new(state),
            groups: Mutex::default(),
        })
    }

    /// Opens the lab that another process made.
    pub fn open(prefix: &str) -> Result<Self> {
        let directory = directory(prefix);
        if !directory.join(FILE).exists() {
            bail!("no lab is up: start one with `cargo xtask lab up`");
        }
        let state = load(&directory).context(
            "this lab is of another build: take it down with `cargo xtask lab down`, or use \
            that build",
        )?;
        Ok(Self {
            directory,
            state: Mutex::new(state),
            groups: Mutex::default(),
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn prefix(&self) -> String {
        self.read(|state| state.options.prefix.clone())
    }

    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state in memory and on disk.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut state);
        save(&self.directory, &state)?;
        Ok(answer)
    }
}

/// Name of the file that holds the state.
const FILE: &str = "lab.json";

fn load(directory: &Path) -> Result<State> {
    let path = directory.join(FILE);
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

/// The parts to remove; `None` where the lab has made no part yet.
pub(super) fn remains(directory: &Path) -> Result<Option<Remains>> {
    let path = directory.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let remains = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} does not say what there is to take away: end the lab's processes, delete its \
            namespaces and unmount {}",
            path.display(),
            directory.display()
        )
    })?;
    Ok(Some(remains))
}

fn save(directory: &Path, state: &State) -> Result<()> {
    let path = directory.join(FILE);
    let new = directory.join("lab.json.new");
    let text = serde_json::to_vec_pretty(state).context("write the lab's state as JSON")?;
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remains(options: &Options, complete: bool) -> Remains {
        Remains {
            options: Kind {
                prefix: options.prefix.clone(),
                ephemeral: options.ephemeral,
            },
            owner: Process::current().unwrap(),
            complete,
            namespaces: Vec::new(),
            processes: Vec::new(),
            control_groups: Vec::new(),
        }
    }

    #[test]
    fn a_test_never_advises_to_take_a_lab_down() {
        let options = Options::for_test("some");
        let advice = obstacle(&remains(&options, true), &options).unwrap();
        assert!(!advice.contains("lab down"), "{advice}");
        assert!(advice.contains(PREFIX_ENV), "{advice}");
    }

    #[test]
    fn advice_is_for_the_lab_of_the_prefix() {
        let options = Options {
            prefix: "x-".to_owned(),
            ..Options::default()
        };
        let advice = obstacle(&remains(&options, true), &options).unwrap();
        assert!(
            advice.contains(&format!("{PREFIX_ENV}=x- cargo xtask lab down")),
            "{advice}"
        );
    }

    #[test]
    fn only_the_remains_of_a_lab_that_is_not_being_made_are_replaced() {
        let options = Options::default();
        let mut old = remains(&options, false);
        assert!(obstacle(&old, &options).is_some());
        old.owner.started -= 1;
        assert_eq!(obstacle(&old, &options), None);
    }
}
