//! Many packets over the same tables. Reading maps is what costs, so counters and flows are
//! compared once, at the end; what does not add up is looked at packet by packet.

use anyhow::Result;
use overlay_common::Verdict;

use crate::check::{self, Difference};
use crate::kernel::{Counters, Kernel, LONG_AGO, flow_order};
use overlay_cases::cases::Outcome;
use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// Packets that have gone through a program over the same tables.
pub struct Batch {
    start: World,
    now: World,
    visits: Vec<Visit>,
    counters: Counters,
    difference: Option<String>,
}

/// A sequence of packets at whose end something differs, with the tables from its start.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The tables.
    pub world: World,
    /// The packets.
    pub visits: Vec<Visit>,
    /// What differs after the last of them.
    pub what: String,
}

impl Batch {
    /// Sets up the tables.
    ///
    /// # Errors
    /// When the kernel does not take them.
    pub fn begin(kernel: &mut Kernel, world: World) -> Result<Self> {
        kernel.set_world(&world)?;
        kernel.counted()?;
        Ok(Self {
            start: world.clone(),
            now: world,
            visits: Vec::new(),
            counters: Counters::new(),
            difference: None,
        })
    }

    /// The tables as they stand: with what the programs have remembered.
    pub fn world(&self) -> &World {
        &self.now
    }

    /// Sends a packet; returns how it ended, or `None` where this kernel cannot make it up.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn send(
        &mut self,
        kernel: &mut Kernel,
        visit: Visit,
        want: Outcome,
    ) -> Result<Option<Verdict>> {
        let Some(ran) = kernel.run(&visit)? else {
            return Ok(None);
        };
        let verdict = match check::judge(&visit, &self.now, want, &ran) {
            Ok(verdict) => verdict,
            Err(what) => {
                self.difference = Some(what);
                want.verdict()
            }
        };
        let counter = self
            .counters
            .entry((visit.hook, verdict as u32))
            .or_default();
        counter.packets += 1;
        counter.bytes += visit.frame.len() as u64;
        self.now.flows.extend(want.remembered());
        self.visits.push(visit);
        Ok(Some(verdict))
    }

    /// Whether a difference has shown already.
    pub fn is_over(&self) -> bool {
        self.difference.is_some()
    }

    /// Compares what the packets have left behind. A difference comes with the packets up to it.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn end(self, kernel: &mut Kernel) -> Result<Option<Failure>> {
        let Some(what) = self.left_behind(kernel)? else {
            return Ok(None);
        };
        let failure = |count, what| Failure {
            world: self.start.clone(),
            visits: self.visits[..count].to_vec(),
            what,
        };
        // Again, one by one, to know which.
        Ok(Some(
            match check::check(kernel, &self.start, &self.visits)? {
                Err(Difference { packet, what }) => failure(packet + 1, what),
                Ok(_) => failure(self.visits.len(), format!("not in a second run: {what}")),
            },
        ))
    }

    fn left_behind(&self, kernel: &mut Kernel) -> Result<Option<String>> {
        let counted = kernel.counted()?;
        if let Some(what) = &self.difference {
            return Ok(Some(what.clone()));
        }
        if let Some(what) = check::miscounted(&counted, &self.counters) {
            return Ok(Some(what));
        }
        if let Err(error) = kernel.holds(&self.now) {
            return Ok(Some(error.to_string()));
        }
        let flows = kernel.flows()?;
        let unseen = self
            .now
            .flows
            .difference(&self.start.flows)
            .map(flow_order)
            .find(|flow| flows.get(flow).is_none_or(|seen| *seen <= LONG_AGO));
        Ok(unseen.map(|flow| format!("flow {flow:?} is remembered without a time")))
    }
}
