//! Working inside the namespaces of a node or a pod.
//!
//! A thread can be in other namespaces than the rest of its process, so every piece of work gets a thread
//! of its own that enters, works and ends; the calling thread never moves.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` keeps the names of network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace and, for a node, the mount namespace that goes with it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    mount: Option<PathBuf>,
}

impl Namespace {
    /// The network namespace that `ip netns` calls `name`, seeing the files of the machine.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mount: None,
        }
    }

    /// The same together with a mount namespace, kept alive by a bind mount on `mount`.
    pub fn with_mount(name: impl Into<String>, mount: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            mount: Some(mount.into()),
        }
    }

    /// The name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the network namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// The file that stands for the mount namespace, where there is one.
    pub fn mount_path(&self) -> Option<&Path> {
        self.mount.as_deref()
    }

    /// Runs `work` on a thread inside the namespaces and returns its answer.
    ///
    /// Sockets opened by `work` stay in the network namespace wherever they are used later.
    ///
    /// # Errors
    /// When a namespace cannot be entered (it is gone, or the caller is not root), or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("work in namespace {} panicked", self.name))?
        })
    }

    /// Starts a program inside. It sees the namespace's own devices in `/sys`, as under `ip netns exec`.
    ///
    /// # Errors
    /// When a namespace cannot be entered or the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        if command.get_current_dir().is_none()
            && let Ok(here) = std::env::current_dir()
        {
            command.current_dir(here);
        }
        self.run(|| {
            if self.mount.is_none() {
                show_own_devices().context("mount /sys")?;
            }
            let shown = crate::command::show(command);
            command
                .spawn()
                .with_context(|| format!("start `{shown}` in {}", self.name))
        })?
    }

    /// Runs a program inside to its end and collects what it writes.
    ///
    /// # Errors
    /// When it cannot be started; a bad exit status is the caller's to judge.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        use std::process::Stdio;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawn(command)?;
        child
            .wait_with_output()
            .context("wait for a program in a namespace")
    }

    /// Moves the calling thread inside, for good.
    fn enter(&self) -> Result<()> {
        let open =
            |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
        let network = open(&self.path())?;
        let mount = self.mount.as_deref().map(open).transpose()?;
        setns(network, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {} (needs root)", self.name))?;
        if let Some(mount) = mount {
            // A mount namespace can only be entered by a thread that shares root and cwd with nobody.
            unshare(CloneFlags::CLONE_FS).context("unshare the file system state of a thread")?;
            setns(mount, CloneFlags::CLONE_NEWNS)
                .with_context(|| format!("enter mount namespace of {}", self.name))?;
        }
        Ok(())
    }
}

/// Gives the calling thread a mount namespace of its own whose `/sys` shows its network namespace.
fn show_own_devices() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    )?;
    mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        None::<&str>,
    )
}
