//! The agent as a service of systemd: the unchanged unit of `deploy/`, run by systemd itself.
//!
//! systemd is the first process of a process namespace inside a node of the lab, with the node's
//! network and `/run`, a separate control group, and no unit but this one. So the unit restricts
//! the agent in the same way as on a host: capabilities, system calls, address families, paths,
//! namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::wait::wait_for;
use overlay_tests::{Lab, Node, Options, fast_path, wait_until};

use crate::units::deploy;
use crate::{PATIENCE, executable};

const SYSTEMD: &str = "/lib/systemd/systemd";
/// The unit as systemd knows it.
const UNIT: &str = "overlayd.service";

/// A script that becomes the first process of a small system, and then systemd. Its arguments are
/// the agent's flags.
///
/// `/proc/sys` is the machine's: except for the network's part, which is the node's own, it stays
/// unchanged.
const BOOT: &str = r#"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$GROUP"
echo $$ > "/sys/fs/cgroup/$GROUP/cgroup.procs"
mkdir -p "$DIRECTORY/units/overlayd.service.d"
{
    printf '[Service]\nExecStart=\nExecStart=/usr/local/bin/overlayd %s\n' "$*"
    printf 'StandardOutput=append:%s\nStandardError=inherit\n%s\n' "$DIRECTORY/log" "$MORE"
} > "$DIRECTORY/units/overlayd.service.d/test.conf"
exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc sh -ec '
    umount /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t proc proc /proc
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,ro,bind /proc/sys
    mount -t tmpfs tmpfs /lib/systemd/system-generators
    mount -t tmpfs tmpfs /etc/systemd
    mount --bind "$DIRECTORY/units" /lib/systemd/system
    [ ! -d /etc/default ] || mount -t tmpfs tmpfs /etc/default
    mount -t tmpfs tmpfs /usr/local/bin
    touch /usr/local/bin/overlayd
    mount --bind "$AGENT" /usr/local/bin/overlayd
    exec env -i container=lab PATH="$PATH" "$SYSTEMD" --system --unit=test.target --log-target=null'
"#;

/// A system that runs the unit in a node.
struct Service {
    node: Node,
    directory: tempfile::TempDir,
    group: String,
    agent: PathBuf,
}

impl Service {
    fn of(lab: &Lab, node: Node) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let units = directory.path().join("units");
        fs::create_dir(&units)?;
        fs::write(units.join(UNIT), deploy(UNIT)?)?;
        let target = format!("[Unit]\nWants={UNIT}\nAllowIsolate=yes\n");
        fs::write(units.join("test.target"), target)?;
        // By default every service depends on these targets.
        for target in ["sysinit.target", "basic.target", "shutdown.target"] {
            fs::write(units.join(target), "[Unit]\n")?;
        }
        Ok(Self {
            group: format!("overlay-{}", node.namespace().name()),
            agent: lab.options().bin_dir.join("overlayd"),
            directory,
            node,
        })
    }

    /// Starts the service in place of the node's agent, with `more` lines for the unit.
    fn start(&self, more: &str) -> Result<()> {
        self.node.stop_agent(Signal::SIGKILL)?;
        let quoted = |path: &Path| format!("'{}'", path.display());
        let variables = [
            ("DIRECTORY", quoted(self.directory.path())),
            ("AGENT", quoted(&self.agent)),
            ("GROUP", format!("'{}'", self.group)),
            ("MORE", format!("'{more}'")),
            ("SYSTEMD", format!("'{SYSTEMD}'")),
        ];
        let variables = variables.map(|(name, value)| format!("export {name}={value}\n"));
        let script = self.directory.path().join("boot");
        // systemd runs in separate mount namespaces, so that the node's do not change.
        let text = format!(
            "[ \"$1\" = booting ] || exec unshare --mount \"$0\" booting \"$@\"\nshift\nset \
            -e\n{}{BOOT}",
            variables.concat()
        );
        executable(&script, &text)?;
        self.node.start_agent_from(&script, &[]).map(drop)
    }

    /// The agent's log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log"));
        log.unwrap_or_else(|error| format!("no log: {error}"))
    }

    /// The kernel's status of the agent's process.
    fn status(&self) -> Result<BTreeMap<String, String>> {
        let group = format!("/{}/system.slice/{UNIT}\n", self.group);
        let find = || {
            let processes = fs::read_dir("/proc").ok()?.flatten();
            let mut own = processes.map(|entry| entry.path()).filter(|process| {
                let groups = fs::read_to_string(process.join("cgroup"));
                let name = fs::read_to_string(process.join("comm"));
                groups.is_ok_and(|it| it.ends_with(&group))
                    && name.is_ok_and(|it| it == "overlayd\n")
            });
            fs::read_to_string(own.next()?.join("status")).ok()
        };
        let text = wait_for("the agent's process", PATIENCE, find)?;
        let field = |line: &str| {
            let (name, value) = line.split_once(":\t")?;
            Some((name.to_owned(), value.to_owned()))
        };
        Ok(text.lines().filter_map(field).collect())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.node.stop_agent(Signal::SIGKILL);
        // The processes end a moment later. Then the control groups can be removed, the innermost
        // first.
        let remove = format!(
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup
             find /sys/fs/cgroup/{0} -depth -type d -exec rmdir '{{}}' ';'
             [ ! -d /sys/fs/cgroup/{0} ]",
            self.group
        );
        let is_gone = || {
            let mut shell = Command::new("unshare");
            let output = shell.args(["--mount", "sh", "-c", &remove]).output();
            output.is_ok_and(|output| output.status.success())
        };
        if let Err(error) = wait_until("the control group to be empty", PATIENCE, is_gone) {
            eprintln!("{} is left: {error:#}", self.group);
        }
    }
}

/// The capabilities that a process can acquire, in the form of `/proc/PID/status`.
fn bounding_set() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|it| it.strip_prefix("CapBnd:\t"));
    u64::from_str_radix(line.context("no CapBnd")?, 16).context("CapBnd")
}

/// The capabilities of the unit in the kernel's form. A container may have fewer to give.
fn capability_mask(unit: &str) -> Result<String> {
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("no CapabilityBoundingSet")?;
    // Numbers of linux/capability.h.
    let number = |name: &str| match name {
        "CAP_NET_ADMIN" => Some(12),
        "CAP_NET_RAW" => Some(13),
        "CAP_SYS_RESOURCE" => Some(24),
        "CAP_PERFMON" => Some(38),
        "CAP_BPF" => Some(39),
        _ => None,
    };
    let mut mask = 0_u64;
    for name in line.split(' ') {
        mask |= 1 << number(name).with_context(|| format!("a number for {name}"))?;
    }
    Ok(format!("{:016x}", mask & bounding_set()?))
}

#[test]
fn the_agent_serves_as_the_unit_has_it_run() -> Result<()> {
    let lab = Lab::up(Options::for_test("lp-unit"))?;
    let node = lab.node(1);
    // There is no state before, so that everything has to be made: programs, maps, device, rules.
    node.stop_agent(Signal::SIGTERM)?;
    node.run(["overlayd", "cleanup", "--store=dir:/run/nowhere"])?;
    let service = Service::of(&lab, lab.node(1))?;

    service.start("")?;
    node.wait_ready(PATIENCE).with_context(|| service.log())?;
    fast_path::wait_serving(&node)?;
    let before = fast_path::packets(&node, "net_in", "decapsulated")?;
    let target = lab.pod(2, 1).address().to_string();
    let ping = ["ping", "-c3", "-i0.1", "-W2", &target];
    lab.pod(1, 1).run(ping)?;
    ensure!(
        fast_path::packets(&node, "net_in", "decapsulated")? >= before + 3,
        "not by the fast path"
    );
    let rules = node.run(["iptables-save"])?;
    ensure!(rules.contains("MASQUERADE"), "no rules:\n{rules}");
    let status = service.status()?;
    let wanted = capability_mask(&deploy(UNIT)?)?;
    for (field, wanted) in [
        ("CapBnd", wanted.as_str()),
        ("CapEff", &wanted),
        ("NoNewPrivs", "1"),
        // A filter of system calls.
        ("Seccomp", "2"),
    ] {
        ensure!(status[field] == wanted, "{field}: {}", status[field]);
    }

    // systemd's restrictions are effective: without a system call that the agent needs, the agent
    // reports an error.
    service.start("SystemCallFilter=~bpf")?;
    let mut last = String::new();
    wait_until("the agent to miss bpf(2)", PATIENCE, || {
        last = node
            .http_get("/readyz")
            .map_or_else(|error| error.to_string(), |answer| answer.body);
        last.contains("fast path: down")
    })
    .with_context(|| format!("{last}\n{}", service.log()))?;
    drop(service);
    lab.down()
}
