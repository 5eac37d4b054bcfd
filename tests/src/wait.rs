//! Waiting with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// Environment variable with a whole number: how much slower than a usual machine this one is.
/// Every limit of time is multiplied by it, and paced senders slow down by it; what has to arrive
/// has to arrive all the same.
pub const SLOWNESS_ENV: &str = "OVERLAY_SLOWNESS";

/// How long to sleep between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `look` answers true, at most for `limit`.
///
/// # Errors
/// Names `what` when the time is over, and stops early when the user interrupts.
pub fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || look().then_some(()))
}

/// Looks until `look` finds something, at most for `limit`, and returns it.
///
/// # Errors
/// Names `what` when the time is over, and stops early when the user interrupts.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = allowed(limit);
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        interrupt::check()?;
        if Instant::now() >= end {
            bail!("waited {:.1} s in vain for {what}", limit.as_secs_f32());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// A limit of time, as it is on this machine.
pub fn allowed(limit: Duration) -> Duration {
    limit * slowness()
}

/// How much slower than a usual machine this one is, as [`SLOWNESS_ENV`] says.
pub fn slowness() -> u32 {
    let value = std::env::var(SLOWNESS_ENV).ok();
    value
        .and_then(|value| value.parse().ok())
        .filter(|slowness| *slowness > 0)
        .unwrap_or(1)
}
