//! Ctrl-C and SIGTERM as a flag: whoever works looks at it, stops, and cleans up after itself.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit code of a program that was interrupted, as shells report it (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

/// Turns SIGINT, SIGTERM and SIGHUP into a flag for this process; the second signal ends it at once.
///
/// Call it before any thread is started: the signals are blocked in this thread and in those that it
/// starts later. Child processes are not affected, `std::process::Command` unblocks everything.
///
/// # Errors
/// When the signals cannot be blocked.
pub fn install() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block SIGINT")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_CODE.into());
            }
            eprintln!("\ninterrupted: cleaning up (interrupt again to leave at once)");
        }
    });
    Ok(())
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once the user asked to stop.
///
/// # Errors
/// After an interrupt.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
