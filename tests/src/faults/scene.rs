//! The scene of a case: its lab and traffic, with the checks that cases share.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::run::Settings;
use crate::traffic::{self, Endpoint};
use crate::{Lab, Node, Pod, interrupt, status, wait_until};

/// Longest duration of a repair by the agent. A repair takes a second or two; machines that run
/// tests are slow.
pub(super) const REPAIR: Duration = Duration::from_secs(40);
/// Time between two checks of a condition that must hold.
const LOOK: Duration = Duration::from_millis(500);
pub(super) use crate::pins::PINS;

/// The lab, the traffic and the settings of a case.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub(super) lab: &'a Lab,
    pub(super) settings: &'a Settings,
}

impl Scene<'_> {
    /// The node that the faults are caused on.
    pub(super) fn node(&self) -> Node {
        self.lab.node(1)
    }

    /// Waits until every agent is ready and every pod on the fast path, and checks that pods reach
    /// each other.
    pub(super) fn wait_recovered(&self) -> Result<()> {
        for node in self.lab.nodes() {
            node.wait_ready(REPAIR)?;
            let peers = self.lab.nodes().len() - 1;
            let what = format!("routes to {peers} peers on {}", node.name());
            wait_until(&what, REPAIR, || {
                node.overlay_routes().is_ok_and(|routes| routes >= peers)
            })?;
            wait_until(&format!("the fast path of {}", node.name()), REPAIR, || {
                is_fast(&node)
            })
            .with_context(|| format!("{:?}", status::status(&node)))?;
        }
        let mut last = Ok(());
        wait_until("pods to reach each other", REPAIR, || {
            last = self.talk();
            last.is_ok()
        })
        .or_else(|error| last.context(error))
    }

    /// Checks that pods of the two nodes, and of one, reach each other, and that the first node
    /// reaches its own pods; on either path.
    pub(super) fn talk(&self) -> Result<()> {
        let [a, b, c] =
            [(1, 1), (2, 1), (1, 2)].map(|(node, pod)| Endpoint::from(&self.lab.pod(node, pod)));
        let host = Endpoint {
            name: self.node().name(),
            namespace: self.node().namespace(),
            address: self.node().underlay_address(),
        };
        for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&host, &b), (&host, &a)] {
            traffic::tcp(from, to, 50_000)
                .with_context(|| format!("{} to {}", from.name, to.name))?;
        }
        Ok(())
    }

    /// Checks that pods of the first node reach each other.
    pub(super) fn talk_locally(&self) -> Result<()> {
        let [a, b] = [1, 2].map(|pod| Endpoint::from(&self.lab.pod(1, pod)));
        traffic::tcp(&a, &b, 50_000).map(drop)
    }

    /// Checks repeatedly that a condition holds, for `time`.
    pub(super) fn holds_for(&self, time: Duration, look: impl Fn() -> Result<()>) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            look()?;
            interrupt::check()?;
            sleep(LOOK);
        }
        look()
    }

    /// A program on the first node that starts the agent in another way: `line` is shell, and ends
    /// with `exec`.
    pub(super) fn wrapper(&self, name: &str, line: &str) -> Result<PathBuf> {
        let agent = self.lab.options().bin_dir.join("overlayd");
        let script = format!("#!/bin/sh\n{line} {} \"$@\"\n", agent.display());
        self.put(name, script.as_bytes())
    }

    /// Damages the first node while its agent is stopped, so that the damage can be observed and
    /// lasts.
    pub(super) fn unseen_by_the_agent(&self, damage: impl FnOnce() -> Result<()>) -> Result<()> {
        let agent = self.node().agent().context("an agent")?;
        agent.signal(Signal::SIGSTOP)?;
        let result = damage();
        agent.signal(Signal::SIGCONT)?;
        result
    }

    /// Detaches programs while the agent is stopped, and checks that no hook has one and that the
    /// kernel path carries all packets.
    pub(super) fn without_programs(&self, damage: &str) -> Result<()> {
        self.unseen_by_the_agent(|| {
            shell(&self.node(), damage)?;
            let left = program_ids(&self.node())?;
            ensure!(left.is_empty(), "programs are left: {left:?}");
            self.talk()
        })
    }

    /// Writes a program, or another file, to the first node.
    pub(super) fn put(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = Path::new("/run").join(name);
        let write = || -> std::io::Result<()> {
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        self.node()
            .namespace()
            .inside(write)?
            .with_context(|| format!("write {} on {}", path.display(), self.node().name()))?;
        Ok(path)
    }
}

/// Whether the fast path is active, serves every pod, and has every program on its hook.
fn is_fast(node: &Node) -> bool {
    let Ok(status) = status::status(node) else {
        return false;
    };
    let pods = status["pods"].as_array().map_or(&[][..], Vec::as_slice);
    status["fast_path"]["state"] == "active"
        && pods.len() == node.pods().len()
        && pods.iter().all(|pod| pod["path"] == "fast")
        && programs(&status).len() == hooks(node)
}

/// Number of hooks with programs: two for the node and two for each pod.
pub(super) fn hooks(node: &Node) -> usize {
    2 + 2 * node.pods().len()
}

/// The programs on hooks that have ours, as reported by `overlayctl`.
fn programs(status: &Value) -> Vec<&Value> {
    let hooks = status["attachments"].as_array().into_iter().flatten();
    hooks
        .filter_map(|hook| hook["programs"].as_array())
        .flatten()
        .collect()
}

/// The kernel's ids of the programs on a node's hooks.
pub(super) fn program_ids(node: &Node) -> Result<Vec<u64>> {
    let status = status::status(node)?;
    let ids = programs(&status).into_iter();
    Ok(ids.filter_map(|program| program["id"].as_u64()).collect())
}

/// Filters of ours that are attached on a node by clsact, with the kernel's ids of their programs.
pub(super) fn filters(node: &Node) -> Result<Vec<String>> {
    let text = shell(
        node,
        "for device in $(ls /sys/class/net); do
             tc filter show dev $device ingress; tc filter show dev $device egress
         done | grep -o 'ov_.* id [0-9]*' || true",
    )?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Checks that every program of a node is on its hook.
pub(super) fn ensure_attached(node: &Node) -> Result<()> {
    let (found, want) = (program_ids(node)?.len(), hooks(node));
    ensure!(found == want, "{found} programs are attached, not {want}");
    Ok(())
}

/// Whether a pod is in its node's pinned map.
pub(super) fn in_map(pod: &Pod) -> bool {
    let pin = format!("{PINS}/maps/ov_pods4");
    let dump = pod
        .node()
        .json(["bpftool", "map", "dump", "pinned", &pin])
        .unwrap_or_default();
    let key = serde_json::json!(pod.address().octets());
    let mut entries = dump.as_array().into_iter().flatten();
    entries.any(|entry| entry["key"] == key)
}

/// Runs a shell script on a node.
pub(super) fn shell(node: &Node, script: &str) -> Result<String> {
    node.run(["sh", "-c", script])
}

/// The state that a node's agent leaves in the kernel's network and on the disk, as text. The text
/// must be the same before and after a fault.
pub(super) fn footprint(node: &Node) -> Result<String> {
    shell(
        node,
        "ip -br link show; ip -br -4 address show
         ip -4 neighbour show dev flannel.1 nud permanent
         bridge fdb show dev flannel.1 | grep -v -e 33:33 -e 01:00:5e
         ip route show proto 111
         iptables-save | grep -e ^-A -e ^-P
         nft -s list table ip overlay_guard; nft -s list table bridge overlay_guard
         cat /run/flannel/subnet.env
         ls -A /run/flannel /run/overlay; find /sys/fs/bpf | sort",
    )
}

/// Fails with the lines that only one of the texts has.
pub(super) fn ensure_same(before: &str, after: &str) -> Result<()> {
    let only = |text: &str, other: &str, mark: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !other.lines().any(|there| there == *line))
            .map(|line| format!("{mark} {line}"))
            .collect()
    };
    if before != after {
        let lines = [only(before, after, "-"), only(after, before, "+")].concat();
        bail!(
            "what the agent leaves is not what it was:\n{}",
            lines.join("\n")
        );
    }
    Ok(())
}

/// Checks that the agent has logged `text`.
pub(super) fn ensure_logged(node: &Node, text: &str) -> Result<()> {
    let path = node.agent_log();
    let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(log.contains(text), "the agent does not say {text:?}");
    Ok(())
}

/// The path of a file of the lab as text, for people and programs.
pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}
