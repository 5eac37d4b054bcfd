//! Ends the agent when an indispensable task has ended, and sends systemd signs of life.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::liveness::Liveness;

/// Longest silence of a task of the agent that is well: each deadline of a call is far shorter.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Interval of the looks at the tasks.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Runs `main` beside the lease keeper until `cancel`. Whichever ends first ends the other.
///
/// # Errors
/// The error of `main`; or the keeper ended before `cancel`.
pub async fn supervise(
    main: impl Future<Output = anyhow::Result<()>>,
    mut keeper: JoinHandle<()>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let result = tokio::select! {
        result = main => result,
        ended = &mut keeper => {
            let told_to = cancel.is_cancelled();
            cancel.cancel();
            ended.context("the lease keeper failed, and nobody would renew this node's lease")?;
            if !told_to {
                bail!("the lease keeper ended of itself, and nobody would renew this node's lease");
            }
            return Ok(());
        }
    };
    cancel.cancel();
    keeper.await.context("the lease keeper failed")?;
    result
}

/// Logs tasks that make no progress. While every task makes progress, notifies systemd's watchdog,
/// if the unit has one (`WatchdogSec=`).
pub async fn feed(liveness: Liveness) {
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(LOOK_EVERY, |deadline| LOOK_EVERY.min(deadline / 3));
    loop {
        let stuck = liveness.stuck();
        for task in &stuck {
            tracing::error!("{task}");
        }
        if stuck.is_empty()
            && watchdog.is_some()
            && let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog])
        {
            tracing::debug!("sd_notify: {error}");
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outcome(keeper: JoinHandle<()>, cancel: CancellationToken) -> Result<(), String> {
        let main = async {
            cancel.cancelled().await;
            Ok(())
        };
        let ended = supervise(main, keeper, &cancel).await;
        assert!(cancel.is_cancelled());
        ended.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn a_keeper_that_is_gone_ends_the_agent() {
        let returns = tokio::spawn(async {});
        let told = outcome(returns, CancellationToken::new()).await;
        assert!(told.is_err_and(|it| it.contains("ended of itself")));
        let panics = tokio::spawn(async { panic!("out of leases") });
        let told = outcome(panics, CancellationToken::new()).await;
        assert!(told.is_err_and(|it| it.contains("out of leases")));
    }

    #[tokio::test]
    async fn a_keeper_that_is_told_to_stop_is_no_failure() {
        let cancel = CancellationToken::new();
        let told = cancel.clone();
        let keeper = tokio::spawn(async move { told.cancelled().await });
        cancel.cancel();
        assert_eq!(outcome(keeper, cancel).await, Ok(()));
    }
}
