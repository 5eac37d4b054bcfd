//! What keeps a pod from sending in another's name until an agent takes it over.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};

use crate::datapath::tables::LocalPod;
use crate::datapath::{self, pins, pods};
use crate::deadline::Deadline;
use crate::kernel::guard;
use crate::kernel::links::Link;
use crate::observe::agent_file::AgentLock;

/// Where an agent keeps its run directory, unless it is told otherwise.
const RUN_DIR: &str = "/run/overlay";

/// Where the agent of this node, which may or may not run, leaves what the plugin needs of it.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The directory of its pins.
    pub pins: PathBuf,
    /// Run directory of the agent.
    pub run_dir: PathBuf,
}

impl Agent {
    /// By the variables that the agent knows as well.
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

    /// Whether an agent is at work that takes a new pod over in a moment: one that runs, and whose
    /// sign of life is fresh. One that waits for its store gives none.
    fn takes_over(&self) -> bool {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |now| {
            let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
            seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
        });
        pods::alive_until(&self.pins).is_some_and(|until| now < until)
            && AgentLock::is_held(&self.run_dir)
    }
}

/// Guards a pod whose interface is not up yet. The pod works without, so that what fails is only
/// reported.
pub async fn raise(agent: &Agent, port: &str, pod: &LocalPod, deadline: Deadline) {
    let address = pod.address;
    // Attaching by tcx waits some 10 ms for RCU, four times as long as all the rest: not where the
    // agent is about to.
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

/// Takes away what guarded a pod whose device is gone.
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

/// Does a piece of work until the deadline, and returns in words why it is not done.
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
