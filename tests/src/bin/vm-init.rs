//! The first process of a test machine: sets up a bare kernel, runs the commands in the initramfs,
//! reports their exit status, and powers the machine off. `cargo xtask vmtest` puts this program
//! into the initramfs as `/init`.
//!
//! The kernel's own messages go to the first serial port; the output of the commands and, as the
//! last line, their exit status go to the second. With `rootfstype=9p` on the kernel's command
//! line, this program hands over to the init of the host's file system instead, as the vmtest
//! program expects.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, chdir, chroot, execv, sync};
use overlay_tests::machine::{BEGIN, COMMANDS, END, MODULES, OUTPUT, SLOWNESS};
use overlay_tests::wait::SLOWNESS_ENV;

/// The directory in which the host's file system is set up before it becomes the root.
const NEW_ROOT: &str = "/root";
/// The directories in which programs are looked up.
const PATH: &str = "/vm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-init is the first process of a test machine: run `cargo xtask vmtest`");
        std::process::exit(2);
    }
    if let Err(error) = live() {
        // Where the second serial port cannot be opened, the console shows the error.
        eprintln!("vm-init: {error:#}");
        let _ = File::options()
            .write(true)
            .open(OUTPUT)
            .and_then(|mut output| writeln!(output, "vm-init: {error:#}"));
    }
    sync();
    let error = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("vm-init: power off: {error:?}");
}

fn live() -> Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount_fresh(kind, target)?;
    }
    let command_line =
        fs::read_to_string("/proc/cmdline").context("read the kernel's command line")?;
    load_modules()?;
    if command_line
        .split_whitespace()
        .any(|word| word == "rootfstype=9p")
    {
        match enter_host(&command_line)? {}
    }
    for (kind, target) in [
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount_fresh(kind, target)?;
    }
    let mut output = File::options()
        .write(true)
        .open(OUTPUT)
        .with_context(|| format!("open {OUTPUT}"))?;
    writeln!(output, "{BEGIN}").with_context(|| format!("write to {OUTPUT}"))?;
    let status = run_all(&output)?;
    writeln!(output, "{END}{status}").with_context(|| format!("write to {OUTPUT}"))
}

fn mount_fresh(kind: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount {kind} on {target}"))
}

/// Loads every module in the initramfs, in the order of their dependencies.
fn load_modules() -> Result<()> {
    let list = fs::read_to_string(MODULES).with_context(|| format!("read {MODULES}"))?;
    for path in list.lines() {
        let file = File::open(path).with_context(|| format!("open {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            // A driver for a device that this machine does not have.
            Err(nix::errno::Errno::ENODEV) => {}
            Err(errno) => bail!("load {path}: {errno}"),
        }
    }
    Ok(())
}

/// Runs the commands in the initramfs one after the other; returns the exit status of the last one
/// that failed, or 0.
fn run_all(output: &File) -> Result<i32> {
    let commands = fs::read_to_string(COMMANDS).with_context(|| format!("read {COMMANDS}"))?;
    let mut status = 0;
    for line in commands.lines() {
        let mut words = line.split_whitespace();
        let Some(program) = words.next() else {
            continue;
        };
        let code = run(Command::new(program).args(words), output)
            .with_context(|| format!("run `{line}`"))?;
        if code != 0 {
            status = code;
        }
    }
    Ok(status)
}

/// Runs a command to its end. Other processes that end meanwhile are orphans, whose parent is this
/// process, and are reaped.
fn run(command: &mut Command, output: &File) -> Result<i32> {
    let errors = output.try_clone().context("duplicate a file handle")?;
    let child = command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("OVERLAY_BIN_DIR", "/vm/bin")
        .env(SLOWNESS_ENV, SLOWNESS.to_string())
        .stdout(output.try_clone().context("duplicate a file handle")?)
        .stderr(errors)
        .spawn()
        .context("start it")?;
    let child = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    loop {
        match wait().context("wait for it")? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            // The status in the form that shells report.
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}

/// Makes the host's file system the root, with a layer above for writes, and starts the init that
/// the kernel's command line names.
fn enter_host(command_line: &str) -> Result<Infallible> {
    let option = |name: &str| {
        command_line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let source = option("root").unwrap_or("/dev/root");
    let flags = option("rootflags").unwrap_or("trans=virtio");
    let init = option("init").context("the kernel's command line names no init")?;
    for directory in ["/host", "/layer", NEW_ROOT] {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    mount(
        Some(source),
        "/host",
        Some("9p"),
        MsFlags::MS_RDONLY,
        Some(flags),
    )
    .with_context(|| format!("mount the host's file system ({flags})"))?;
    mount_fresh("tmpfs", "/layer")?;
    for directory in ["/layer/upper", "/layer/work"] {
        fs::create_dir(directory).with_context(|| format!("create {directory}"))?;
    }
    let layers = "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work";
    mount(
        Some("overlay"),
        NEW_ROOT,
        Some("overlay"),
        MsFlags::empty(),
        Some(layers),
    )
    .context("put a layer above the host's file system")?;
    mount(
        Some("/dev"),
        &Path::new(NEW_ROOT).join("dev"),
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .context("move /dev")?;
    // The host's init mounts these itself, and fails where they are mounted already.
    for target in ["/proc", "/sys"] {
        umount(target).with_context(|| format!("unmount {target}"))?;
    }
    chdir(NEW_ROOT).context("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the new root")?;
    chroot(".").context("change the root")?;
    ensure!(Path::new(init).exists(), "the host has no {init}");
    let program = CString::new(init).context("the name of the init")?;
    execv(&program, &[&program]).with_context(|| format!("execute {init}"))
}
