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
/// What makes it emulate. The machine's clock counts its instructions, one a nanosecond, and leaps
/// to the next timer when there is nothing to do: nothing is late inside because the host is busy,
/// and sleeping takes no time. The processor lacks what protects a kernel from its users, which
/// nothing here looks at and which makes emulation slower: with it, starting programs takes a sixth
/// longer.
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
/// Network cards: two on one wire (which leads nowhere else, as qemu warns), with nothing that a
/// driver gives up for XDP; and one whose other end, a tap device in a network namespace of the
/// emulator's own, has it take offloads over.
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
/// Starts a program in a network namespace of its own, by anybody.
pub const IN_NAMESPACE: &[&str] = &["unshare", "--map-root-user", "--net", "--"];
/// How long a kernel may take to boot. Emulated it takes seconds.
const BOOT: Duration = Duration::from_secs(120);
/// How often to look whether the user has had enough.
const LOOK: Duration = Duration::from_millis(200);
/// Lines of the kernel's messages that an error shows.
const CONSOLE_LINES: usize = 25;

/// How a machine is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// Emulated, which works everywhere.
    Emulated,
    /// By the processor, where `/dev/kvm` is good for it.
    Kvm,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Machine {
    pub image: PathBuf,
    pub initramfs: PathBuf,
    pub acceleration: Acceleration,
    pub cpus: u32,
    /// In MiB.
    pub memory: u32,
    /// How long the commands may take.
    pub limit: Duration,
    /// Where the kernel's messages go.
    pub console: PathBuf,
    /// Where the commands' output goes.
    pub log: PathBuf,
}

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The commands ran; their exit status.
    Exited(i32),
    /// The kernel did not come up.
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
            // The check of the timer fails where the host gives the machine no time to be
            // interrupted in. Nothing inside is hostile, and mitigations take time, too.
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

/// A running emulator, which ends with this value.
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
        // Fails where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
