//! Reads the programs' counters.

use overlay_common::schema::Counter;
use overlay_common::verdict::{Hook, Verdict, counter_index};

use super::{COUNTERS, Maps, failed};
use crate::datapath::Error;
use crate::datapath::family::UserFamily;

impl<F: UserFamily> Maps<F> {
    /// The counters that are not zero, summed over all CPUs.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Vec<(Hook, Verdict, Counter)>, Error> {
        let mut counters = Vec::new();
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                let sum = self.counter(hook, *verdict)?;
                if sum.packets != 0 {
                    counters.push((hook, *verdict, sum));
                }
            }
        }
        Ok(counters)
    }

    /// One counter, summed over all CPUs.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counter(&self, hook: Hook, verdict: Verdict) -> Result<Counter, Error> {
        let values = self
            .counters
            .get(&counter_index(hook, verdict), 0)
            .map_err(failed("read", COUNTERS))?;
        Ok(values
            .iter()
            .fold(Counter::default(), |sum, value| Counter {
                packets: sum.packets + value.packets,
                bytes: sum.bytes + value.bytes,
            }))
    }
}
