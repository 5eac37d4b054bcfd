//! A test machine: qemu, one boot, bounded in time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use overlay_tests::interrupt;
use overlay_tests::machine::{BEGIN, END};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// The arguments for emulation. The machine's clock counts its instructions, one a nanosecond, and
/// skips to the next timer when the machine is idle: a busy host delays nothing inside, and
/// sleeping takes no time. The processor lacks the features that protect a kernel from its users,
/// because no test here needs them and they slow the emulation down: with them, starting programs
/// takes a sixth longer.
const EMULATION: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "clock=vm",
    "-cpu",
    "max,-la57,-smap,-smep,-umip,-pku",
];
/// Network cards: two on one wire (without another connection, as qemu warns), without offloads
/// that a driver disables for XDP; and one with offloads, whose other end is a tap device in a
/// network namespace of the emulator.
pub const CARDS: &[&str] = &[
    "-netdev",
    "hubport,id=left,hubid=0",
    "-device",
    "virtio-net-pci,netdev=left,romfile=",
    "-netdev",
    "hubport,id=right,hubid=0",
    "-device",
    "virtio-net-pci,netdev=right,romfile=",
    "-netdev",
    "tap,id=offloading,script=no,downscript=no",
    "-device",
    "virtio-net-pci,netdev=offloading,romfile=",
];
/// Starts a program in a separate network namespace, without root.
pub const IN_NAMESPACE: &[&str] = &["unshare", "--map-root-user", "--net", "--"];
/// Longest boot of a kernel. An emulated one takes seconds.
const BOOT: Duration = Duration::from_secs(120);
/// Interval of the checks for an interrupt by the user.
const LOOK: Duration = Duration::from_millis(200);
/// Number of lines of the kernel's messages in an error.
const CONSOLE_LINES: usize = 25;

/// The way in which a machine is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// By emulation, which works everywhere.
    Emulated,
    /// By the processor, where `/dev/kvm` can be used.
    Kvm,
}

/// The parts of a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub image: PathBuf,
    pub initramfs: PathBuf,
    pub acceleration: Acceleration,
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Longest duration of the commands.
    pub limit: Duration,
    /// The file for the kernel's messages.
    pub console: PathBuf,
    /// The file for the commands' output.
    pub log: PathBuf,
}

/// The end of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The commands ended with this exit status.
    Exited(i32),
    /// The kernel did not boot.
    NotBooted(String),
    /// The machine ended, or was ended, while the commands ran.
    Died(String),
}

impl Machine {
    /// Boots, passes every line of output to `tell`, and waits for the end.
    ///
    /// # Errors
    /// When qemu cannot be started, or the user interrupts.
    pub fn run(&self, mut tell: impl FnMut(&str)) -> Result<End> {
        let mut qemu = Qemu::start(self)?;
        let mut log = fs::File::create(&self.log)
            .with_context(|| format!("create {}", self.log.display()))?;
        let mut begun = false;
        let mut end = Instant::now() + BOOT;
        loop {
            interrupt::check()?;
            match qemu.lines.recv_timeout(LOOK) {
                Ok(line) => {
                    writeln!(log, "{line}").context("write the log")?;
                    if line == BEGIN {
                        begun = true;
                        end = Instant::now() + self.limit;
                    } else if let Some(status) = line.strip_prefix(END) {
                        let status = status.parse().context("the exit status")?;
                        return Ok(End::Exited(status));
                    } else {
                        tell(&line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = qemu.child.wait().context("wait for qemu")?;
                    return Ok(self.lost(begun, &format!("the machine went away ({status})")));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                    let waited = if begun { self.limit } else { BOOT };
                    return Ok(self.lost(begun, &format!("no end after {} s", waited.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn lost(&self, begun: bool, why: &str) -> End {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        let what = format!("{why}; the last of {}:\n{tail}", self.console.display());
        if begun {
            End::Died(what)
        } else {
            End::NotBooted(what)
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(IN_NAMESPACE[0]);
        command.args(&IN_NAMESPACE[1..]).arg(QEMU).args(CARDS);
        match self.acceleration {
            Acceleration::Emulated => {
                command.args(EMULATION);
            }
            Acceleration::Kvm => {
                command.args(["-accel", "kvm", "-cpu", "host"]);
            }
        }
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-smp",
                &self.cpus.to_string(),
                "-m",
                &self.memory.to_string(),
            ])
            // The kernel's check of the timer fails where the host does not let the machine run in
            // time. No program inside is hostile, and mitigations take time, too.
            .args([
                "-append",
                "console=ttyS0 panic=-1 oops=panic no_timer_check mitigations=off",
            ])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .arg("-serial")
            .arg(prefixed("file:", &self.console))
            .args(["-serial", "stdio"]);
        command
    }
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// A running emulator, which ends when this value is dropped.
struct Qemu {
    child: Child,
    lines: Receiver<String>,
}

impl Qemu {
    fn start(machine: &Machine) -> Result<Self> {
        let mut child = machine
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{QEMU}: install it with `cargo xtask setup`"))?;
        let output = child.stdout.take().context("the output of qemu")?;
        let (to, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // A terminal ends lines with a carriage return, too.
                let line = String::from_utf8_lossy(&line);
                if to.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // This fails where the emulator has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
