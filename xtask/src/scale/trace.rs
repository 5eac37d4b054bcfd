//! A program's calls to the kernel: messages to netlink and bpf(2) calls, counted by strace(1).
//! strace slows the program down, so no times are measured meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use overlay_tests::{Process, wait_until};
use serde::Serialize;

/// The counted calls. `read` and `write` cannot be used on netlink sockets.
const CALLS: &str = "trace=sendto,sendmsg,recvfrom,recvmsg,bpf,execve";
/// Longest time until strace is attached to all threads.
const ATTACHED: Duration = Duration::from_secs(10);

/// The counts, of the program and all its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Calls {
    /// Netlink messages sent, counted singly also where a call has many.
    pub netlink_messages: f64,
    /// KiB received from netlink sockets: answers, dumps above all, and events.
    pub netlink_received_kib: f64,
    /// Calls of bpf(2): one for each entry that is read or written.
    pub bpf_calls: f64,
    /// Number of programs started.
    pub programs: f64,
}

impl Calls {
    /// The counts divided by `count`.
    pub fn per(self, count: usize) -> Self {
        let share = |value: f64| value / count as f64;
        Self {
            netlink_messages: share(self.netlink_messages),
            netlink_received_kib: share(self.netlink_received_kib),
            bpf_calls: share(self.bpf_calls),
            programs: share(self.programs),
        }
    }
}

/// A running strace. Dropping this value detaches strace from the program.
pub struct Trace {
    strace: Child,
    record: PathBuf,
}

impl Trace {
    /// Follows a process and its children; `record` is the file that strace writes.
    pub fn start(process: &Process, record: &Path) -> Result<Self> {
        let pid = process.pid.to_string();
        let mut command = Command::new("strace");
        // The options decode sockets, print all messages of a batch, and limit their payload.
        command.args([
            "-f",
            "-yy",
            "-v",
            "-s",
            "8",
            "-qq",
            "-e",
            "signal=none",
            "-e",
            CALLS,
        ]);
        command.arg("-o").arg(record).args(["-p", &pid]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let strace = command.spawn().context("start strace")?;
        let record = record.to_owned();
        let mut trace = Self { strace, record };
        let mut ended = false;
        wait_until("strace to attach", ATTACHED, || {
            ended = trace.strace.try_wait().is_ok_and(|status| status.is_some());
            ended || is_traced(process)
        })?;
        if ended {
            bail!("strace cannot follow process {pid}");
        }
        Ok(trace)
    }

    /// Detaches from the program and returns the counts.
    pub fn stop(mut self) -> Result<Calls> {
        self.end().context("end strace")?;
        let text =
            fs::read(&self.record).with_context(|| format!("read {}", self.record.display()))?;
        fs::remove_file(&self.record)
            .with_context(|| format!("remove {}", self.record.display()))?;
        Ok(count(&String::from_utf8_lossy(&text)))
    }

    fn end(&mut self) -> Result<()> {
        if self.strace.try_wait()?.is_none() {
            Process::of(self.strace.id())?.signal(Signal::SIGINT)?;
            self.strace.wait()?;
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // No caller could receive an error here; strace ends with the program that it follows.
        let _ = self.end();
    }
}

/// Whether a tracer follows every thread of a process.
fn is_traced(process: &Process) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.all(|task| {
        let status = fs::read_to_string(task.path().join("status"));
        status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    })
}

/// Counts the calls in strace's output: lines that begin with a thread's number.
fn count(record: &str) -> Calls {
    let mut calls = Calls::default();
    // Threads whose call to receive from netlink has not ended yet.
    let mut receiving = BTreeSet::new();
    for line in record.lines() {
        let Some((thread, call)) = line.trim_start().split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let (name, rest) = call.split_once('(').unwrap_or((call, ""));
        let to_netlink = rest
            .split(',')
            .next()
            .unwrap_or_default()
            .contains("<NETLINK:");
        match name {
            "sendto" | "sendmsg" if to_netlink => {
                calls.netlink_messages += rest.matches("nlmsg_type=").count() as f64;
            }
            "recvfrom" | "recvmsg" if to_netlink => {
                if rest.ends_with("<unfinished ...>") {
                    receiving.insert(thread);
                }
                calls.netlink_received_kib += result(rest) / 1024.0;
            }
            "bpf" => calls.bpf_calls += 1.0,
            "execve" => calls.programs += 1.0,
            _ if name.starts_with("<... recv") && receiving.remove(thread) => {
                calls.netlink_received_kib += result(call) / 1024.0;
            }
            _ => {}
        }
    }
    calls
}

/// The result of a call, where the result is a length.
fn result(call: &str) -> f64 {
    let result = call.rsplit_once(" = ").map(|(_, result)| result);
    result
        .and_then(|text| text.trim().parse().ok())
        .map_or(0.0, |length: f64| length.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_by_socket_and_one_by_one() {
        let record = "\
            10 sendto(9<NETLINK:[ROUTE:10]>, [[{nlmsg_len=36, nlmsg_type=RTM_GETROUTE}, {}]], 36, \
            0, NULL, 0) = 36\n\
            10 sendto(7<TCP:[1.1.1.1:1->1.1.1.2:2]>, \"nlmsg_type=\", 9, 0, NULL, 0) = 9\n\
            11 sendmsg(3<NETLINK:[NETFILTER:11]>, {msg_iov=[{iov_base=[[{nlmsg_len=20, \
            nlmsg_type=NFNL_MSG_BATCH_BEGIN}], \
             [{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_END}]]}]}, 0) = 40\n\
            10 recvfrom(9<NETLINK:[ROUTE:10]>,  <unfinished ...>\n\
            12 recvfrom(7<TCP:[1.1.1.1:1->1.1.1.2:2]>,  <unfinished ...>\n\
            10 <... recvfrom resumed>[{nlmsg_len=512}], 8192, 0, NULL, NULL) = 512\n\
            12 <... recvfrom resumed>\"x\", 8192, 0, NULL, NULL) = 4096\n\
            10 recvmsg(9<NETLINK:[ROUTE:10]>, {msg_namelen=12}, 0) = 512\n\
            10 recvmsg(9<NETLINK:[ROUTE:10]>, {msg_namelen=12}, 0) = -1 EAGAIN (Resource \
            temporarily unavailable)\n\
            10 bpf(BPF_MAP_LOOKUP_ELEM, {map_fd=4<anon_inode:bpf-map>},  <unfinished ...>\n\
            10 <... bpf resumed>32) = 0\n\
            13 execve(\"/usr/sbin/nft\", [\"nft\", \"-f\", \"-\"], [\"A=B\"]) = 0\n";
        let expected = Calls {
            netlink_messages: 3.0,
            netlink_received_kib: 1.0,
            bpf_calls: 1.0,
            programs: 1.0,
        };
        assert_eq!(count(record), expected);
        assert!((expected.per(2).netlink_messages - 1.5).abs() < 1e-9);
    }
}
