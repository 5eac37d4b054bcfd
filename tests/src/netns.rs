//! Work inside the namespaces of a node or a pod.
//!
//! A thread can be in other namespaces than the rest of its process, so every piece of work gets a
//! separate thread that enters, works and ends; the calling thread never changes its namespaces.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{require_success, show};
use crate::process::Running;

/// Where `ip netns` keeps the names of network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace and, for a node, the mount namespace that belongs to it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    /// The file of the network namespace, where `ip netns` has no name for the namespace.
    network: Option<PathBuf>,
    mount: Option<PathBuf>,
    /// Control group (version 2) of the threads and programs inside.
    group: Option<PathBuf>,
    programs: Option<PathBuf>,
}

impl Namespace {
    /// The network namespace that `ip netns` calls `name`, with the machine's files.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            network: None,
            mount: None,
            group: None,
            programs: None,
        }
    }

    /// The network namespace of a process, which `ip netns` need not know, with the machine's
    /// files. The namespace exists as long as the process.
    pub fn of_process(name: impl Into<String>, pid: i32) -> Self {
        Self {
            network: Some(format!("/proc/{pid}/ns/net").into()),
            ..Self::new(name)
        }
    }

    /// Adds a mount namespace, kept alive by a bind mount on `mount`.
    pub fn with_mount(self, mount: impl Into<PathBuf>) -> Self {
        Self {
            mount: Some(mount.into()),
            ..self
        }
    }

    /// Adds a control group (version 2) that can contain threads.
    pub fn in_group(self, group: Option<PathBuf>) -> Self {
        Self { group, ..self }
    }

    /// Adds `programs`, a directory, at the begin of the PATH of programs that run inside.
    pub fn with_programs(self, programs: impl Into<PathBuf>) -> Self {
        Self {
            programs: Some(programs.into()),
            ..self
        }
    }

    /// The name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of the network namespace.
    pub fn path(&self) -> PathBuf {
        let named = || Path::new(NETNS_DIR).join(&self.name);
        self.network.clone().unwrap_or_else(named)
    }

    /// The file of the mount namespace, if any.
    pub fn mount_path(&self) -> Option<&Path> {
        self.mount.as_deref()
    }

    /// Runs `work` on a thread inside the namespaces and returns its result.
    ///
    /// Sockets opened by `work` stay in the network namespace wherever they are used later.
    ///
    /// # Errors
    /// When a namespace cannot be entered (because it no longer exists, or the caller is not root),
    /// or `work` panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
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

    /// A command with the PATH of this place; [`Namespace::start`] starts it inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let inherited = std::env::var("PATH").unwrap_or_default();
        let first = self
            .programs
            .as_ref()
            .map_or_else(String::new, |programs| format!("{}:", programs.display()));
        let mut command = Command::new(program);
        // System tools are often not on the PATH of CI.
        command.env("PATH", format!("{first}{inherited}:/usr/sbin:/sbin"));
        command
    }

    /// Starts a program inside. `/sys` has the namespace's own devices for the program, as under
    /// `ip netns exec`.
    ///
    /// # Errors
    /// When a namespace cannot be entered or the program cannot be started.
    pub fn start(&self, command: &mut Command) -> Result<Child> {
        if command.get_current_dir().is_none()
            && let Ok(here) = std::env::current_dir()
        {
            command.current_dir(here);
        }
        self.inside(|| {
            if self.mount.is_none() {
                show_own_devices().context("mount /sys")?;
            }
            let shown = show(command);
            command
                .spawn()
                .with_context(|| format!("start `{shown}` in {}", self.name))
        })?
    }

    /// Starts a program in the background; dropping the returned value ends it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Running> {
        let mut command = self.command_line(line)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Running::new(self.start(&mut command)?))
    }

    /// Runs a program to its end. The caller judges a bad exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Output> {
        self.spawn(line)?.wait()
    }

    /// Runs a program to its end, demands success and returns its stdout.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        let command = self.command_line(line)?;
        let shown = format!("{}: {}", self.name, show(&command));
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let output = require_success(&shown, self.exec(words)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program, such as `overlayctl status --output json`, and returns its output as JSON.
    ///
    /// # Errors
    /// When the program cannot be started, fails, or its output is not JSON.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        line: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        let text = self.run(line)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    fn command_line<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut words = line.into_iter();
        let mut command = self.command(words.next().context("nothing to run")?);
        command.args(words);
        Ok(command)
    }

    /// Moves the calling thread inside, permanently.
    fn enter(&self) -> Result<()> {
        let open =
            |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
        if let Some(group) = &self.group {
            let threads = group.join("cgroup.threads");
            // Zero stands for the thread that writes.
            fs::write(&threads, "0").with_context(|| format!("write {}", threads.display()))?;
        }
        let network = open(&self.path())?;
        let mount = self.mount.as_deref().map(open).transpose()?;
        setns(network, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {} (needs root)", self.name))?;
        if let Some(mount) = mount {
            // Only a thread that does not share root and working directory can enter a mount
            // namespace.
            unshare(CloneFlags::CLONE_FS).context("unshare the file system state of a thread")?;
            setns(mount, CloneFlags::CLONE_NEWNS)
                .with_context(|| format!("enter mount namespace of {}", self.name))?;
        }
        Ok(())
    }
}

/// Gives the calling thread a separate mount namespace whose `/sys` shows its network namespace.
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
