//! The changes that a round can make.

use std::time::Duration;
use std::{env, fmt, fs, process};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::leases::{self, Invented};
use super::stage::{PODS, Stage, endpoint};
use crate::conversation::Transport;
use crate::{Lab, Node, command, fast_path, traffic, wait_until};

/// Number of invented nodes of one round.
const INVENTED: u8 = 8;
/// Longest time until the agents have followed the store.
const FOLLOWED: Duration = Duration::from_secs(20);

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Conversations with Services begin and end.
    Services,
    /// Pods are added, talk, and are removed: in order, without their namespace, without a DEL.
    Pods,
    /// Leases of invented nodes are added, moved and removed.
    Leases,
    /// Node 3 leaves the cluster and joins it again.
    Node,
    /// Node 1's agent is ended and started.
    Restart,
    /// Node 1's agent is killed and started.
    Kill,
    /// Node 1's fast path is switched off and on.
    Switch,
    /// Node 1's agent is replaced by another build.
    Upgrade,
    /// Node 1's programs are attached by clsact, and by tcx again.
    Attach,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Services => "services",
            Self::Pods => "pods",
            Self::Leases => "leases",
            Self::Node => "node",
            Self::Restart => "agent restarted",
            Self::Kill => "agent killed",
            Self::Switch => "fast path off and on",
            Self::Upgrade => "agent upgraded",
            Self::Attach => "clsact and tcx",
        })
    }
}

impl Kind {
    /// All kinds, in the order of a lap.
    pub const ALL: [Self; 9] = [
        Self::Services,
        Self::Pods,
        Self::Leases,
        Self::Node,
        Self::Restart,
        Self::Kill,
        Self::Switch,
        Self::Upgrade,
        Self::Attach,
    ];

    /// Makes the change and undoes it.
    pub fn play(self, stage: &Stage, lap: usize) -> Result<()> {
        let lab = &stage.lab;
        match self {
            Self::Services => services(stage),
            Self::Pods => pods(stage),
            Self::Leases => invented(lab),
            Self::Node => node(lab, lap),
            Self::Restart => again(&lab.node(1), Signal::SIGTERM, &[]),
            Self::Kill => again(&lab.node(1), Signal::SIGKILL, &[]),
            Self::Switch => switch(&lab.node(1)),
            Self::Upgrade => upgrade(lab),
            Self::Attach => {
                again(&lab.node(1), Signal::SIGTERM, &["--attach=clsact"])?;
                again(&lab.node(1), Signal::SIGTERM, &[])
            }
        }
    }
}

fn services(stage: &Stage) -> Result<()> {
    for from in [
        stage.lab.pod(1, 1),
        stage.lab.pod(2, 2),
        stage.lab.pod(3, 1),
    ] {
        for target in stage.services() {
            for transport in Transport::ALL {
                let conversation = stage.call(&from, *target, transport)?;
                conversation.server_speaks()?;
                conversation.client_speaks()?;
            }
        }
    }
    Ok(())
}

fn pods(stage: &Stage) -> Result<()> {
    let lab = &stage.lab;
    let made = [1, 1, 1, 2, 3].map(|node| lab.add_pod(node));
    let [ordered, crashed, forgotten, far, farther] = made;
    let (ordered, crashed, forgotten) = (ordered?, crashed?, forgotten?);
    let (far, farther) = (far?, farther?);
    for (from, to) in [
        (&ordered, &crashed),
        (&forgotten, &far),
        (&far, &ordered),
        (&farther, &crashed),
    ] {
        traffic::tcp(&endpoint(from), &endpoint(to), 100_000)
            .with_context(|| format!("{} to {}", from.name(), to.name()))?;
    }
    for service in stage.services() {
        stage
            .call(&ordered, *service, Transport::Tcp)?
            .client_speaks()?;
    }
    ordered.remove()?;
    far.remove()?;
    farther.remove()?;
    // As after a crash of the machine, the runtime calls DEL for a pod whose namespace no longer
    // exists.
    let node = crashed.node();
    let (container, path) = (crashed.container().to_owned(), crashed.namespace().path());
    let previous = [("prevResult", crashed.cni_result().clone())];
    crashed.lose()?;
    let output = node.cni("DEL", Some((&container, &path)), &previous)?;
    command::require_success("CNI DEL without a namespace", output)?;
    // As after a loss of the runtime's state, no process calls DEL.
    forgotten.lose()?;
    node.collect_garbage()?;
    for node in lab.nodes() {
        ensure!(node.pods().len() == PODS, "pods of the round are left");
        fast_path::wait_serving(&node)?;
    }
    Ok(())
}

fn invented(lab: &Lab) -> Result<()> {
    let others = lab.nodes().len() - 1;
    let everywhere = |what: &str, peers: usize| {
        lab.nodes()
            .iter()
            .try_for_each(|node| follows(node, what, peers))
    };
    let all = || (0..INVENTED).map(Invented::new);
    all().try_for_each(|node| node.write(lab))?;
    everywhere("to know made-up nodes", others + usize::from(INVENTED))?;
    all().try_for_each(|node| node.moved().write(lab))?;
    let moved = Invented::new(0).moved().vtep();
    wait_until("a made-up node to have moved", FOLLOWED, || {
        let fdb = lab
            .node(1)
            .run(["bridge", "fdb", "show", "dev", "flannel.1"]);
        fdb.is_ok_and(|fdb| fdb.contains(&format!("dst {moved} ")))
    })?;
    all().try_for_each(|node| node.delete(lab))?;
    everywhere("to forget made-up nodes", others)
}

/// Waits until a node has routes to the given number of peers.
fn follows(node: &Node, what: &str, peers: usize) -> Result<()> {
    wait_until(&format!("{} {what}", node.name()), FOLLOWED, || {
        node.overlay_routes().is_ok_and(|routes| routes == peers)
    })
    .with_context(|| node.agent_log_tail())
}

fn node(lab: &Lab, lap: usize) -> Result<()> {
    let leaver = lab.node(3);
    let subnet = leaver.subnet()?;
    let signal = if lap.is_multiple_of(2) {
        Signal::SIGKILL
    } else {
        Signal::SIGTERM
    };
    leaver.stop_agent(signal)?;
    lab.etcdctl(&["del", &leases::key(subnet)])?;
    for node in [lab.node(1), lab.node(2)] {
        follows(&node, "to forget the node that left", 1)?;
    }
    leaver.start_agent(&[])?;
    ensure!(
        leaver.subnet()? == subnet,
        "{subnet} became {}",
        leaver.subnet()?
    );
    lab.wait_converged()?;
    fast_path::wait_serving(&leaver)?;
    traffic::tcp(
        &endpoint(&lab.pod(3, 1)),
        &endpoint(&lab.pod(1, 1)),
        100_000,
    )
    .context("the node that is back")
    .map(drop)
}

/// Ends the agent and starts it with other flags.
fn again(node: &Node, signal: Signal, flags: &[&str]) -> Result<()> {
    node.stop_agent(signal)?;
    node.start_agent(flags)?;
    fast_path::wait_serving(node)
}

fn switch(node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--fast-path=off"])?;
    again(node, Signal::SIGTERM, &[])
}

/// The kernel gives programs new ids with every load, so to the kernel a copy of the same code is
/// another build.
fn upgrade(lab: &Lab) -> Result<()> {
    let node = lab.node(1);
    // Nodes cannot see the lab's own directory.
    let other = env::temp_dir().join(format!("overlayd-{}", process::id()));
    fs::copy(lab.options().bin_dir.join("overlayd"), &other)
        .with_context(|| format!("copy the agent to {}", other.display()))?;
    let upgraded = node
        .stop_agent(Signal::SIGTERM)
        .and_then(|()| node.start_agent_from(&other, &[]))
        .and_then(|_| fast_path::wait_serving(&node))
        .and_then(|()| again(&node, Signal::SIGTERM, &[]));
    fs::remove_file(&other).with_context(|| format!("remove {}", other.display()))?;
    upgraded
}
