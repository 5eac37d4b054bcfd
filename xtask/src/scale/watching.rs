//! The load of one client's watch of Nodes on the API server: the agent's, and that of a watch by
//! client-go, which flannel's informer makes as well.

use std::fmt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::interrupt;
use serde::Serialize;

use super::kube::{Kube, Sent};
use super::leases::{Invented, LeaseChange};
use super::stage::Stage;
use crate::shell;

/// Number of changes of one Node that each client watches.
const CHANGES: u32 = 50;
/// A watch has settled when the server has sent nothing for this time.
const QUIET: Duration = Duration::from_secs(1);
/// Longest time until then.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server sends to watches of Nodes for one change of a Node.
#[derive(Serialize)]
pub struct Load {
    events: f64,
    kib: f64,
}

/// The loads of two clients.
#[derive(Serialize)]
pub struct Loads {
    agent: Load,
    /// `kubectl get nodes --watch`.
    client_go: Load,
}

impl fmt::Display for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, client_go } = self;
        write!(
            f,
            "sent to a watch of Nodes for one change: overlayd {:.2} events, {:.1} KiB; kubectl \
             get nodes --watch {:.2} events, {:.1} KiB",
            agent.events, agent.kib, client_go.events, client_go.kib
        )
    }
}

/// Measures the agent's watch, then ends the agent and measures client-go's. The server's own
/// watches are subtracted.
pub fn measure(stage: &Stage, kube: &Kube) -> Result<Loads> {
    shell::progress("load of a watch on the API server");
    let agent = load(kube)?;
    stage.process.signal(Signal::SIGTERM)?;
    stage.process.wait_gone(PATIENCE)?;
    let nobody = load(kube)?;
    let alone = kube.watches()?;
    let mut kubectl = kube.kubectl();
    kubectl
        .args(["get", "nodes", "--watch", "--output=name"])
        .stdout(Stdio::null());
    let mut child = kube.namespace.start(&mut kubectl)?;
    let client_go = wait_watched(kube, alone).and_then(|()| load(kube));
    // kubectl watches until its end.
    child.kill().context("end kubectl")?;
    child.wait().context("wait for kubectl")?;
    let without = |load: Load| Load {
        events: load.events - nobody.events,
        kib: load.kib - nobody.kib,
    };
    Ok(Loads {
        agent: without(agent),
        client_go: without(client_go?),
    })
}

/// Changes a Node again and again.
fn load(kube: &Kube) -> Result<Load> {
    let before = settled(kube)?;
    for number in 0..CHANGES {
        interrupt::check()?;
        let moved = number % 2 == 0;
        kube.write(LeaseChange::Is(Invented {
            moved,
            ..Invented::new(1)
        }))?;
    }
    let after = settled(kube)?;
    let per_change = |count: u64| count as f64 / f64::from(CHANGES);
    Ok(Load {
        events: per_change(after.events - before.events),
        kib: per_change(after.bytes - before.bytes) / 1024.0,
    })
}

/// Waits until the server sends nothing more.
fn settled(kube: &Kube) -> Result<Sent> {
    let end = Instant::now() + PATIENCE;
    let mut last = kube.sent()?;
    loop {
        interrupt::check()?;
        thread::sleep(QUIET);
        let now = kube.sent()?;
        if now == last {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "the API server sends and sends");
        last = now;
    }
}

/// Waits until there are more watches than before.
fn wait_watched(kube: &Kube, before: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while kube.watches()? <= before {
        interrupt::check()?;
        ensure!(Instant::now() < end, "kubectl does not watch");
        thread::sleep(QUIET);
    }
    Ok(())
}
