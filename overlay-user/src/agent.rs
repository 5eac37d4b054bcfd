//! The node agent: takes this node's lease, learns the leases of the others, and keeps the kernel
//! path and the fast path programmed.

mod admitted;
mod announcer;
mod cleanup;
mod fast_path;
mod health;
mod kernel_path;
mod path_check;
mod plan;
mod policies;
mod reconciler;
mod rules;
mod seen;
mod services;
mod settings;
mod start;
mod underlay;
mod watchdog;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::flags::AgentFlags;

pub use cleanup::run as clean_up;

/// Runs the agent until SIGTERM or SIGINT; a second signal ends the agent at once.
///
/// # Errors
/// The reason why the agent cannot run at all: wrong flags, missing privileges, another agent.
pub async fn run(flags: &AgentFlags) -> anyhow::Result<()> {
    flags.check()?;
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    let agent = start::run(flags, cancel.clone());
    tokio::pin!(agent);
    tokio::select! {
        result = &mut agent => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: the data path stays as it is");
    cancel.cancel();
    tokio::select! {
        result = agent => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
