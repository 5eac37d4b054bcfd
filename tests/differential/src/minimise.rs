//! Cuts a failure down to the packets, bytes and table entries that it takes.

use anyhow::Result;

use crate::batch::Failure;
use crate::check::check;
use crate::kernel::Kernel;
use overlay_cases::world::World;

/// After so many tries it is small enough.
const MOST_TRIES: usize = 3000;

/// Returns the least that still fails, or the failure as it is where a second run does not show it.
///
/// # Errors
/// When the kernel does not run the programs.
pub fn minimise(kernel: &mut Kernel, failure: Failure) -> Result<Failure> {
    let mut search = Search {
        kernel,
        best: failure,
        tries: 0,
    };
    let again = search.best.clone();
    if !search.attempt(again)? {
        return Ok(search.best);
    }
    while search.round()? {}
    Ok(search.best)
}

struct Search<'k> {
    kernel: &'k mut Kernel,
    best: Failure,
    tries: usize,
}

impl Search<'_> {
    /// Takes `candidate` if it fails too; returns whether it does.
    fn attempt(&mut self, mut candidate: Failure) -> Result<bool> {
        self.tries += 1;
        if self.tries > MOST_TRIES {
            return Ok(false);
        }
        let Err(difference) = check(self.kernel, &candidate.world, &candidate.visits)? else {
            return Ok(false);
        };
        candidate.visits.truncate(difference.packet + 1);
        candidate.what = difference.what;
        self.best = candidate;
        Ok(true)
    }

    /// Tries to leave out everything once; returns whether anything could go.
    fn round(&mut self) -> Result<bool> {
        let mut smaller = self.shrink_sequence()?;
        for packet in 0..self.best.visits.len() {
            smaller |= self.shrink_frame(packet)?;
        }
        for change in TABLES {
            smaller |= self.shrink_tables(*change)?;
        }
        Ok(smaller)
    }

    /// Leaves packets out, first all but the last, then ever fewer at a time.
    fn shrink_sequence(&mut self) -> Result<bool> {
        let mut smaller = false;
        let mut step = self.best.visits.len().saturating_sub(1);
        while step > 0 {
            let mut start = 0;
            while start + step < self.best.visits.len() {
                let mut less = self.best.clone();
                less.visits.drain(start..start + step);
                if self.attempt(less)? {
                    smaller = true;
                } else {
                    start += step;
                }
            }
            step /= 2;
        }
        Ok(smaller)
    }

    fn shrink_frame(&mut self, packet: usize) -> Result<bool> {
        let mut smaller = false;
        if self.best.visits[packet].gso_size != 0 {
            let mut less = self.best.clone();
            less.visits[packet].gso_size = 0;
            smaller |= self.attempt(less)?;
        }
        let mut step = self.best.visits[packet].frame.len() / 2;
        while step > 0 && packet < self.best.visits.len() {
            let length = self.best.visits[packet].frame.len();
            let mut shorter = self.best.clone();
            shorter.visits[packet]
                .frame
                .truncate(length - step.min(length - 1));
            if length > 15 && self.attempt(shorter)? {
                smaller = true;
            } else {
                step /= 2;
            }
        }
        // Zeros show what does not matter.
        let mut step = 16;
        while step > 0 {
            let mut start = 0;
            while packet < self.best.visits.len() && start < self.best.visits[packet].frame.len() {
                let mut blank = self.best.clone();
                let frame = &mut blank.visits[packet].frame;
                let end = (start + step).min(frame.len());
                if frame[start..end].iter().any(|byte| *byte != 0) {
                    frame[start..end].fill(0);
                    smaller |= self.attempt(blank)?;
                }
                start += step;
            }
            step /= 4;
        }
        Ok(smaller)
    }

    fn shrink_tables(&mut self, change: Cut) -> Result<bool> {
        let mut smaller = false;
        let mut index = 0;
        loop {
            let mut less = self.best.clone();
            if !change(&mut less.world, index) {
                return Ok(smaller);
            }
            if self.attempt(less)? {
                smaller = true;
            } else {
                index += 1;
            }
        }
    }
}

/// Takes the entry of some number out of a table; returns whether there was one.
type Cut = fn(&mut World, usize) -> bool;

const TABLES: &[Cut] = &[
    |world, index| {
        nth(world.endpoints.keys().copied(), index)
            .is_some_and(|key| world.endpoints.remove(&key).is_some())
    },
    |world, index| {
        nth(world.pods.keys().copied(), index).is_some_and(|key| world.pods.remove(&key).is_some())
    },
    |world, index| {
        nth(world.peers.keys().copied(), index)
            .is_some_and(|key| world.peers.remove(&key).is_some())
    },
    |world, index| {
        nth(world.vteps.keys().copied(), index)
            .is_some_and(|key| world.vteps.remove(&key).is_some())
    },
    |world, index| {
        let mut flows: Vec<_> = world.flows.iter().copied().collect();
        flows.sort_by_key(crate::kernel::flow_order);
        nth(flows.into_iter(), index).is_some_and(|key| world.flows.remove(&key))
    },
];

fn nth<T>(mut of: impl Iterator<Item = T>, index: usize) -> Option<T> {
    of.nth(index)
}
