//! The agent runs out of memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::Case;
use super::scene::{Scene, ensure_attached, ensure_same, footprint, text};
use crate::wait_until;

/// Longest duration of a start that is expected to fail.
const START: Duration = Duration::from_secs(20);
/// Smallest limit of an agent's memory, and the factor from one attempt to the next.
const LEAST: u64 = 2 << 20;
const GROWTH: (u64, u64) = (3, 2);
/// A limit that is more than enough.
const MOST: u64 = 512 << 20;

pub(super) const CASES: &[Case] = &[Case {
    name: "agent-out-of-memory",
    fault: "the agent starts with too little memory, again and again with more, and is killed at \
        another point each time",
    invariant: "programs stay on their hooks; the first agent that has enough puts \
        everything right",
    quick: false,
    run: out_of_memory,
    ..Case::USUAL
}];

/// A control group with a limit of memory.
struct Group {
    path: PathBuf,
    /// Whether the group is of the second version.
    unified: bool,
}

impl Group {
    fn create(name: &str) -> Result<Self> {
        let (first, second) = (
            Path::new("/sys/fs/cgroup/memory"),
            Path::new("/sys/fs/cgroup"),
        );
        let unified = !first.is_dir();
        let root = if unified { second } else { first };
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let group = Self { path, unified };
        ensure!(
            group.limit_file().exists(),
            "{} has no limit of memory: this machine's control groups do not count it",
            group.path.display()
        );
        Ok(group)
    }

    fn limit_file(&self) -> PathBuf {
        self.path.join(if self.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        })
    }

    fn limit(&self, bytes: u64) -> Result<()> {
        let path = self.limit_file();
        fs::write(&path, bytes.to_string()).with_context(|| format!("write {}", path.display()))
    }

    /// Number of processes that the kernel has killed for lack of memory.
    fn killed(&self) -> Result<u64> {
        let name = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = line.with_context(|| format!("no oom_kill in {}", path.display()))?;
        count.trim().parse().context("a count")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty group can be removed; a group that is left harms nothing.
        let _ = fs::remove_dir(&self.path);
    }
}

fn out_of_memory(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let before = footprint(&node)?;
    let group = Group::create(&format!("overlay-{}", node.namespace().name()))?;
    let agent = scene.wrapper(
        "overlayd-with-little-memory",
        &format!("echo $$ > {}/cgroup.procs && exec", text(&group.path)),
    )?;
    node.stop_agent(Signal::SIGKILL)?;
    let mut limit = LEAST;
    let killed = loop {
        if limit > MOST {
            bail!("the agent does not start with {MOST} bytes");
        }
        group.limit(limit)?;
        let process = node.start_agent_from(&agent, &[])?.process;
        let ready = || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.status == 200)
        };
        wait_until("the agent's end, or success", START, || {
            !process.is_alive() || ready()
        })?;
        if process.is_alive() {
            break group.killed()?;
        }
        node.stop_agent(Signal::SIGKILL)?;
        ensure_attached(&node).with_context(|| format!("after an end with {limit} bytes"))?;
        limit = limit * GROWTH.0 / GROWTH.1;
    };
    println!("agent killed {killed} times for want of memory; {limit} bytes were enough");
    ensure!(killed > 0, "the agent was never killed");
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])?;
    scene.wait_recovered()?;
    ensure_same(&before, &footprint(&node)?)
}
