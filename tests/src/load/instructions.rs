//! Instructions, where the processor counts them: the only cost that other load does not change.

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// A count of all instructions on all cores that this process may use, of all processes and of the
/// kernel.
pub struct Instructions {
    counters: Vec<Counter>,
}

impl Instructions {
    /// Counts from now on; `None` where the machine has no such counters, like many virtual ones,
    /// or does not allow access.
    pub fn count() -> Option<Self> {
        let counter = |core| {
            let mut counter = Builder::new(Hardware::INSTRUCTIONS)
                .any_pid()
                .one_cpu(core)
                .exclude_kernel(false)
                .build()
                .ok()?;
            counter.enable().ok()?;
            Some(counter)
        };
        let cores = super::usable().ok()?;
        let counters: Option<Vec<_>> = cores.into_iter().map(counter).collect();
        counters.map(|counters| Self { counters })
    }

    /// The number of instructions so far.
    pub fn so_far(&mut self) -> Option<u64> {
        self.counters
            .iter_mut()
            .map(|counter| counter.read().ok())
            .sum()
    }
}
