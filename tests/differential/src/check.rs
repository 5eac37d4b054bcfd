//! Packets one at a time, with everything that a program can leave behind compared after each.

use std::collections::BTreeMap;

use anyhow::Result;
use overlay_common::Verdict;
use overlay_common::schema::Counter;

use crate::kernel::{Counters, Kernel, LONG_AGO, Ran, counter_name, flow_order};
use crate::{expected, wire};
use overlay_cases::cases::Outcome;
use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// Where the kernel and the decision part ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which packet of the sequence, from 0.
    pub packet: usize,
    /// What is different.
    pub what: String,
}

/// What became of one packet.
#[derive(Clone, Debug)]
pub struct Passage {
    /// What was counted.
    pub verdict: Verdict,
    /// What the program did.
    pub ran: Ran,
}

/// Runs packets one after the other over the tables of `world`, which change as the programs
/// remember flows, and compares each. `None` in the list for a packet that this kernel cannot make
/// up.
///
/// # Errors
/// When the kernel does not do its part: that proves nothing about the programs.
pub fn check(
    kernel: &mut Kernel,
    world: &World,
    visits: &[Visit],
) -> Result<Result<Vec<Option<Passage>>, Difference>> {
    let mut world = world.clone();
    kernel.set_world(&world)?;
    kernel.counted()?;
    let mut passages = Vec::new();
    for (packet, visit) in visits.iter().enumerate() {
        match one(kernel, &mut world, visit)? {
            Ok(passage) => passages.push(passage),
            Err(what) => return Ok(Err(Difference { packet, what })),
        }
    }
    Ok(kernel
        .holds(&world)
        .map(|()| passages)
        .map_err(|error| Difference {
            packet: visits.len().saturating_sub(1),
            what: error.to_string(),
        }))
}

fn one(
    kernel: &mut Kernel,
    world: &mut World,
    visit: &Visit,
) -> Result<Result<Option<Passage>, String>> {
    let before = kernel.flows()?;
    let want = visit.decide(world);
    let Some(ran) = kernel.run(visit)? else {
        return Ok(Ok(None));
    };
    let verdict = match judge(visit, world, want, &ran) {
        Ok(verdict) => verdict,
        Err(what) => return Ok(Err(what)),
    };
    let counted = kernel.counted()?;
    let counter = Counter {
        packets: 1,
        bytes: visit.frame.len() as u64,
    };
    if let Some(what) = miscounted(
        &counted,
        &BTreeMap::from([((visit.hook, verdict as u32), counter)]),
    ) {
        return Ok(Err(what));
    }
    // Of the flows, only the one to remember may be another than before, and it has to be.
    let remembered = want.remembered();
    world.flows.extend(remembered);
    let remembered = remembered.map(|flow| flow_order(&flow));
    let mut after = kernel.flows()?;
    let mut others = before;
    if let Some(flow) = remembered {
        others.remove(&flow);
        if after.remove(&flow).is_none_or(|seen| seen <= LONG_AGO) {
            return Ok(Err(format!("flow {flow:?} is not remembered as seen now")));
        }
    }
    if after != others {
        return Ok(Err(format!("flows {after:?} instead of {others:?}")));
    }
    Ok(Ok(Some(Passage { verdict, ran })))
}

/// The verdict that has to be counted, if what the program did is right by the decision and by the
/// standards.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn judge(visit: &Visit, world: &World, want: Outcome, ran: &Ran) -> Result<Verdict, String> {
    let verdict = expected::verdict(visit, world, want, ran)?;
    wire::judge(visit, world, verdict, &ran.frame)
        .map_err(|what| format!("{}, but by the standards {what}", verdict.name()))?;
    Ok(verdict)
}

/// Where the counters grew otherwise than they should have.
pub fn miscounted(counted: &Counters, expected: &Counters) -> Option<String> {
    let show = |counters: &Counters| {
        let list: Vec<_> = counters
            .iter()
            .map(|(key, counter)| {
                format!(
                    "{}: {} packets, {} bytes",
                    counter_name(*key),
                    counter.packets,
                    counter.bytes
                )
            })
            .collect();
        if list.is_empty() {
            "nothing".to_owned()
        } else {
            list.join("; ")
        }
    };
    (counted != expected)
        .then(|| format!("counted {} instead of {}", show(counted), show(expected)))
}
