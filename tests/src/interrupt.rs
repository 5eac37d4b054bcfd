//! Ctrl-C and SIGTERM as a flag: running code checks the flag, stops, and cleans up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, bail};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Exit code of a program that was interrupted, as shells report it (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

/// Turns SIGINT, SIGTERM and SIGQUIT into a flag for this process; the second signal ends the
/// process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn install() -> Result<()> {
    for signal in TERM_SIGNALS {
        // The order matters: the first signal finds the flag unset and only sets it.
        flag::register_conditional_shutdown(*signal, EXIT_CODE.into(), Arc::clone(&INTERRUPTED))
            .and_then(|_| flag::register(*signal, Arc::clone(&INTERRUPTED)))
            .with_context(|| format!("handle signal {signal}"))?;
    }
    Ok(())
}

/// Whether the user has interrupted.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once the user has interrupted.
///
/// # Errors
/// After an interrupt.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
