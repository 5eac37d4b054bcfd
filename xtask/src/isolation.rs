//! Separate namespaces for commands that make labs.
//!
//! A lab gives fixed names to network namespaces, pins and files. In separate namespaces a run
//! collides neither with another run nor with a lab in use, finds no remains of an earlier run, and
//! leaves none: when the first process ends for any reason, the kernel ends the others and removes
//! their objects.

use std::fs;
use std::io::Write as _;
use std::process;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use overlay_tests::command;

/// Moves this process and all its later children into separate mount, network and process
/// namespaces, permanently. The machine's network cannot be reached from there, so files must be
/// fetched before.
///
/// Two processes stay behind and wait: the one that was called, in the namespaces of the machine,
/// and the first one of the new process namespace, which reaps orphans.
///
/// # Errors
/// When this process has threads, or the kernel refuses a namespace or a mount.
#[expect(unsafe_code, reason = "fork(2) is safe while there is one thread")]
pub fn enter() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").context("list this process's threads")?;
    ensure!(
        threads.count() == 1,
        "only a process of one thread can go on as another process"
    );
    let _ = std::io::stdout().flush();
    unshare(CloneFlags::CLONE_NEWPID).context("unshare the process namespace (needs root)")?;
    // SAFETY: there is one thread, so that no lock is held in the child.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => stand_by(child),
        ForkResult::Child => {}
    }
    set_pdeathsig(Signal::SIGKILL).context("ask to end with the parent")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare the mount and network namespaces")?;
    mount_own()?;
    command::ip("link set lo up")?;
    // SAFETY: as above.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => bury(child),
        ForkResult::Child => Ok(()),
    }
}

/// Mounts over the directories that labs share with the rest of the machine.
fn mount_own() -> Result<()> {
    let propagation = |flags: MsFlags| {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | flags,
            None::<&str>,
        )
        .context("change the propagation of / (in a chroot it is no mount: use pivot_root)")
    };
    propagation(MsFlags::MS_PRIVATE)?;
    // Network namespaces that are named here have to appear in the mount namespaces of a lab's
    // nodes.
    propagation(MsFlags::MS_SHARED)?;
    for (kind, target) in [
        ("proc", "/proc"),
        ("tmpfs", "/run"),
        ("tmpfs", "/var/lib/cni"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
        let data = (kind == "tmpfs").then_some("mode=0755");
        mount(Some(kind), target, Some(kind), MsFlags::empty(), data)
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    for directory in ["/run/lock", "/run/netns"] {
        fs::create_dir(directory).with_context(|| format!("create {directory}"))?;
    }
    Ok(())
}

/// Waits in the machine's namespaces and ends with the other process's result. A signal ends this
/// process at once, and all others with it.
#[expect(unsafe_code, reason = "the default action of a signal is restored")]
fn stand_by(child: Pid) -> ! {
    for deadly in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        // SAFETY: no handler is installed, the default action is restored.
        let _ = unsafe { signal(deadly, SigHandler::SigDfl) };
    }
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            ended => process::exit(ended.ok().and_then(exit_code).unwrap_or(1)),
        }
    }
}

/// The first process of a namespace: the parent of all orphans, until `child` ends.
fn bury(child: Pid) -> ! {
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(child) => {
                if let Some(code) = exit_code(status) {
                    process::exit(code);
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => process::exit(1),
        }
    }
}

/// The exit code in the form of shells; `None` while the process runs.
fn exit_code(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}
