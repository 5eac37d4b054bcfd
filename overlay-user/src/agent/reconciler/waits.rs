//! The waits of the reconciler between rounds.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::kernel;
use crate::kernel::monitor::{KernelEvent, Monitor, ROUNDS};

/// Waits until `moment`; for ever without one.
pub(super) async fn when(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits until notified; for ever where there is no sender.
pub(super) async fn told(notify: Option<Arc<Notify>>) {
    match notify {
        Some(notify) => notify.notified().await,
        None => std::future::pending().await,
    }
}

/// Reads the kernel's events in a task of its own, so that none is lost while a round goes on.
pub(super) fn watch_kernel()
-> anyhow::Result<mpsc::UnboundedReceiver<Result<KernelEvent, kernel::Error>>> {
    let mut monitor = Monitor::subscribe(ROUNDS)?;
    let (tell, events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let event = monitor.next().await;
            let is_last = event.is_err();
            if tell.send(event).is_err() || is_last {
                return;
            }
        }
    });
    Ok(events)
}

/// Waits for news; for ever where no sender is left.
pub(super) async fn told_of<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
