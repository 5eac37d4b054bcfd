//! The cost of a program and of all programs that it starts.

use std::fs;
use std::ops::Sub;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use overlay_tests::Process;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

/// Jiffies per second in `/proc`, whatever the kernel's own unit (`USER_HZ` of
/// asm-generic/param.h).
const JIFFIES_PER_SECOND: f64 = 100.0;

/// Processor time in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Time of the program itself.
    pub own: f64,
    /// Time of the programs that it has started and waited for.
    pub children: f64,
}

impl Time {
    /// The time that a process has used so far.
    pub fn of(process: &Process) -> Result<Self> {
        let path = format!("/proc/{}/stat", process.pid);
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        time(&stat).with_context(|| format!("understand {path}"))
    }
}

impl Sub for Time {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            own: self.own - earlier.own,
            children: self.children - earlier.children,
        }
    }
}

/// Fields 14 to 17 of `/proc/PID/stat`: `utime`, `stime`, `cutime`, `cstime`. The second field is a
/// name in parentheses that may contain any character.
fn time(stat: &str) -> Option<Time> {
    let fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let jiffies: Vec<f64> = fields
        .skip(11)
        .take(4)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    match jiffies[..] {
        [user, system, children_user, children_system] => Some(Time {
            own: (user + system) / JIFFIES_PER_SECOND,
            children: (children_user + children_system) / JIFFIES_PER_SECOND,
        }),
        _ => None,
    }
}

/// Resident memory of a process in MiB, and its maximum so far.
pub fn memory(process: &Process) -> Result<(f64, f64)> {
    let path = format!("/proc/{}/status", process.pid);
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mebibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: f64 = line.strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes / 1024.0)
    };
    let now = mebibytes("VmRSS:").with_context(|| format!("VmRSS in {path}"))?;
    let most = mebibytes("VmHWM:").with_context(|| format!("VmHWM in {path}"))?;
    Ok((now, most))
}

/// A count of the programs that a process starts, and that those start in turn. The kernel counts,
/// so that no program is slowed down or missed.
pub struct Started(Vec<Counter>);

impl Started {
    /// Counts from now on. `directory` is a place to mount tracefs; the mount disappears with the
    /// lab's own file system.
    pub fn count(process: &Process, directory: &Path) -> Result<Self> {
        let tracing = directory.join("tracing");
        let id = tracing.join("events/sched/sched_process_exec/id");
        if !id.exists() {
            fs::create_dir_all(&tracing)
                .with_context(|| format!("create {}", tracing.display()))?;
            let (flags, none) = (MsFlags::empty(), None::<&str>);
            mount(Some("tracefs"), &tracing, Some("tracefs"), flags, none)
                .context("mount tracefs")?;
        }
        let id = fs::read_to_string(&id).with_context(|| format!("read {}", id.display()))?;
        let id = id.trim().parse().context("a tracepoint's number")?;
        let tasks = format!("/proc/{}/task", process.pid);
        let tasks = fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))?;
        let mut counters = Vec::new();
        for task in tasks {
            let name = task.context("list threads")?.file_name();
            let task = name.to_str().and_then(|name| name.parse().ok());
            let mut counter = Builder::new(Tracepoint::with_id(id))
                .observe_pid(task.context("a thread's number")?)
                .inherit(true)
                .exclude_kernel(false)
                .build()
                .context("count sched_process_exec")?;
            counter.enable().context("count sched_process_exec")?;
            counters.push(counter);
        }
        Ok(Self(counters))
    }

    /// The number of programs so far.
    pub fn so_far(&mut self) -> Result<u64> {
        let counts = self.0.iter_mut().map(|counter| counter.read());
        let sum: std::io::Result<u64> = counts.sum();
        sum.context("read the count of sched_process_exec")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_counted_apart() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 9 8 0 0 150 50 300 25 20 0 4 0 12345";
        let (own, children) = (2.0, 3.25);
        assert_eq!(time(stat), Some(Time { own, children }));
        assert_eq!(time("7 (short) S 1"), None);
    }

    #[test]
    fn our_own_memory_is_told() {
        let (now, most) = memory(&Process::current().unwrap()).unwrap();
        assert!(1.0 < now && now <= most, "{now} {most}");
    }
}
