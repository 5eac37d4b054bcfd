//! Whether this process can run: a virtual machine that is paused, or a control group that is
//! frozen, makes every deadline pass at once, without any fault of the overlay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Stall;

/// Interval of the checks.
const EVERY: Duration = Duration::from_millis(100);
/// A longer delay is a stall; deadlines of the checks are not much longer.
const LATE: Duration = Duration::from_secs(1);

/// Watches for stalls until dropped.
pub struct Stalls {
    seen: Arc<Mutex<Stall>>,
    stop: Arc<AtomicBool>,
}

impl Stalls {
    pub fn watch() -> Self {
        let seen = Arc::new(Mutex::new(Stall::default()));
        let stop = Arc::new(AtomicBool::new(false));
        thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let asleep = Instant::now();
                    thread::sleep(EVERY);
                    let late = asleep.elapsed().saturating_sub(EVERY);
                    if late >= LATE {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.count += 1;
                        seen.longest_ms = seen.longest_ms.max(late.as_millis());
                    }
                }
            }
        });
        Self { seen, stop }
    }

    /// The stalls that are over.
    pub fn so_far(&self) -> Stall {
        // A stall that has just ended is not recorded yet.
        thread::sleep(2 * EVERY);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
