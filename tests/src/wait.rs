//! Waits with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// Environment variable with a whole number: how many times slower than a usual machine this one
/// is. Every limit of time is multiplied by the number, and paced senders slow down by it; the
/// required results do not change.
pub const SLOWNESS_ENV: &str = "OVERLAY_SLOWNESS";

/// Pause between two checks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Checks until `look` returns true, at most for `limit`.
///
/// # Errors
/// Names `what` when the time is over, and stops early when the user interrupts.
pub fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || look().then_some(()))
}

/// Checks until `look` finds a value, at most for `limit`, and returns the value.
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

/// A limit of time, adapted to this machine.
pub fn allowed(limit: Duration) -> Duration {
    limit * slowness()
}

/// How many times slower than a usual machine this one is, by [`SLOWNESS_ENV`].
pub fn slowness() -> u32 {
    let value = std::env::var(SLOWNESS_ENV).ok();
    value
        .and_then(|value| value.parse().ok())
        .filter(|slowness| *slowness > 0)
        .unwrap_or(1)
}
