//! Processes: those that outlive the command that started them, and those that end with it.

use std::fs;
use std::process::{Child, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait_until;

/// A process, distinguished from later ones with the same id by its start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to the start of the process.
    pub started: u64,
}

impl Process {
    /// The running process with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("a process id beyond 2^31")?;
        let (_, started) = stat(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, started })
    }

    /// The process that runs this code.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn current() -> Result<Self> {
        Self::of(std::process::id())
    }

    /// Whether the process still runs. Reaps the process if it is our own child and has ended.
    pub fn is_alive(&self) -> bool {
        match stat(self.pid) {
            Some((state, started)) if started == self.started => {
                // A process whose first thread has ended before the others looks like a zombie,
                // too. A process that is not our child is reaped by its own parent.
                state != 'Z'
                    || waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG))
                        == Ok(WaitStatus::StillAlive)
            }
            _ => false,
        }
    }

    /// Sends a signal, unless the process has ended already.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("send {signal} to process {}", self.pid))
            }
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait_gone(&self, limit: Duration) -> Result<()> {
        wait_until(&format!("the end of process {}", self.pid), limit, || {
            !self.is_alive()
        })
    }
}

/// A program that runs in a namespace until this value is dropped.
pub struct Running(Option<Child>);

impl Running {
    pub(crate) fn new(child: Child) -> Self {
        Self(Some(child))
    }

    /// The number of the process, to send signals to.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn process(&self) -> Result<Process> {
        Process::of(
            self.0
                .as_ref()
                .context("a program that was waited for")?
                .id(),
        )
    }

    /// Waits until the program ends by itself, and returns its output.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(mut self) -> Result<Output> {
        let child = self.0.take().context("a program that was waited for")?;
        child.wait_with_output().context("wait for a program")
    }

    /// Ends the program with `signal`, and returns its output.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn stop(self, signal: Signal) -> Result<Output> {
        self.process()?.signal(signal)?;
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // A process that has ended by itself need not be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may contain any character, also spaces and
    // parentheses.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_ended_child_is_not_alive() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        process.signal(Signal::SIGKILL).unwrap();
        process.wait_gone(Duration::from_secs(5)).unwrap();
        let _ = child.wait();
    }

    #[test]
    fn another_process_with_the_same_number_is_not_meant() {
        let mut other = Process::current().unwrap();
        other.started -= 1;
        assert!(!other.is_alive());
    }
}
