//! Waiting with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// Environment variable with a number that every limit is multiplied by: how much slower than a usual machine this
/// one is.
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
    let limit = limit * slowness();
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

fn slowness() -> u32 {
    let value = std::env::var(SLOWNESS_ENV).ok();
    value.and_then(|value| value.parse().ok()).unwrap_or(1)
}
