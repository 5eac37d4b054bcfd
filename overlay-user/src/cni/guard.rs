//! The guard that prevents a pod from sending with another's address until an agent serves the pod.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};

use crate::datapath::tables::LocalPod;
use crate::datapath::{self, pins, pods};
use crate::deadline::Deadline;
use crate::kernel::guard;
use crate::kernel::links::Link;
use crate::observe::agent_file::AgentLock;

/// The agent's default run directory.
const RUN_DIR: &str = "/run/overlay";

/// The directories in which the agent of this node, running or not, leaves what the plugin needs.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The directory of its pins.
    pub pins: PathBuf,
    /// Run directory of the agent.
    pub run_dir: PathBuf,
}

impl Agent {
    /// Reads the same environment variables as the agent.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            // The agent keeps its pins in a directory of its own on that file system.
            pins: variable("OVERLAY_BPFFS").map_or_else(
                || pins::DEFAULT_ROOT.into(),
                |bpffs| Path::new(&bpffs).join("overlay"),
            ),
            run_dir: variable("OVERLAY_RUN_DIR")
                .unwrap_or_else(|| RUN_DIR.to_owned())
                .into(),
        }
    }

    /// Whether an agent will serve a new pod in a moment: the agent runs, and its sign of life is
    /// fresh. An agent that waits for its store gives no sign of life.
    fn takes_over(&self) -> bool {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |now| {
            let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
            seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
        });
        pods::alive_until(&self.pins).is_some_and(|until| now < until)
            && AgentLock::is_held(&self.run_dir)
    }
}

/// Guards a pod whose interface is not up yet. A failure is only reported, because the pod works
/// without the guard.
pub async fn raise(agent: &Agent, port: &str, pod: &LocalPod, deadline: Deadline) {
    let address = pod.address;
    // The program is not attached where the agent is about to do so, because attaching by tcx waits
    // some 10 ms for RCU, four times as long as all other work.
    if !agent.takes_over() {
        match pods::guard(&agent.pins, port, pod) {
            Ok(_) | Err(datapath::Error::Family(_)) => {}
            Err(error) => {
                tracing::warn!(%address, %error, "unguarded by programs before an agent runs");
            }
        }
    }
    if let IpAddr::V4(address) = address
        && let Err(error) = in_time(deadline, guard::pod::admit(port, address)).await
    {
        tracing::warn!(%address, error, "unguarded by nftables before an agent runs");
    }
}

/// Removes the guard of a pod whose device has been removed.
pub async fn lower(agent: &Agent, port: &Link, address: IpAddr, deadline: Deadline) {
    if let Err(error) = pods::forget_device(&agent.pins, port.index) {
        tracing::warn!(%address, %error, "the fast path still knows the device");
    }
    if let IpAddr::V4(address) = address
        && let Err(error) = in_time(deadline, guard::pod::dismiss(&port.name, address)).await
    {
        tracing::warn!(%address, error, "the guard still knows the pod");
    }
}

/// Runs `work` until the deadline; returns the reason, in words, if the work was not completed.
async fn in_time(
    deadline: Deadline,
    work: impl Future<Output = Result<(), guard::Error>>,
) -> Result<(), String> {
    match tokio::time::timeout(deadline.left(), work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!(
            "not done within {} s",
            deadline.allowed().as_secs()
        )),
    }
}
