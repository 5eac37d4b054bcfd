//! What rounds and the [follower](super::follower) of next hops share: the maps, and the ways that
//! are in them.
//!
//! A round reads the ways and writes the peers under one lock, so that it cannot put back what the
//! follower has just changed. The lock is never held while something is waited for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use overlay_common::V4;
use overlay_common::schema::{Heartbeat, PEER_DIRECT};

use super::ways::{Exit, Ways};
use crate::datapath::Error;
use crate::datapath::maps::{Maps, now_ns};
use crate::datapath::tables::with_next_hop;
use crate::kernel::next_hop::routes_by;
use crate::kernel::{self, Kernel};

/// How often an answer is asked for again that changes overtook; after that the follower mends what
/// is wrong.
const ATTEMPTS: usize = 3;

/// The maps, and the ways to the other nodes.
pub struct Inner {
    /// The pinned maps.
    pub maps: Maps<V4>,
    /// The ways as the maps have them, or are about to.
    pub ways: Ways,
    /// Until when the programs may trust what the agent knows.
    heartbeat: Heartbeat,
}

impl Inner {
    /// Lets the programs trust next hops for so long from now on.
    pub fn keep_next_hops(&mut self, time: Duration) -> Result<(), Error> {
        self.heartbeat.next_hops_until_ns = after(time);
        self.maps.set_heartbeat(self.heartbeat)
    }

    /// Lets the programs refuse by the list of leases for so long from now on; for ever where no
    /// time is given.
    pub fn keep_leases(&mut self, time: Option<Duration>) -> Result<(), Error> {
        self.heartbeat.leases_until_ns = time.map_or(u64::MAX, after);
        self.maps.set_heartbeat(self.heartbeat)
    }
}

/// A moment of the clock that the programs use.
fn after(time: Duration) -> u64 {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    now_ns().saturating_add(time)
}

/// Shared between rounds and the follower.
#[derive(Clone)]
pub struct Live(Arc<Mutex<Inner>>);

impl Live {
    /// Over opened maps; no ways are known yet.
    pub fn new(maps: Maps<V4>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            maps,
            ways: Ways::default(),
            heartbeat: Heartbeat {
                next_hops_until_ns: 0,
                leases_until_ns: 0,
            },
        })))
    }

    /// Both, to the exclusion of others.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of the maps is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves by `exit` from now on, and finds the ways to these VTEPs that are not known yet.
    pub async fn find(
        &self,
        kernel: &Kernel,
        exit: Exit,
        vteps: &BTreeSet<IpAddr>,
    ) -> Result<(), kernel::Error> {
        if self.lock().ways.leave_by(exit) {
            self.look_at_neighbours(kernel).await?;
        }
        let unknown = self.lock().ways.keep(vteps);
        self.ask(unknown).await
    }

    /// Asks the kernel for the ways to these VTEPs.
    pub async fn ask(&self, vteps: Vec<IpAddr>) -> Result<(), kernel::Error> {
        for attempt in 1..=ATTEMPTS {
            let (exit, as_of) = self.exit();
            let Some(source) = exit.source.filter(|_| !vteps.is_empty()) else {
                return Ok(());
            };
            let answers = routes_by(exit.ifindex, source, vteps.iter().copied()).await?;
            let ways = &mut self.lock().ways;
            // Under a storm of changes the last answer is the best there is.
            let as_of = if attempt == ATTEMPTS {
                ways.news()
            } else {
                as_of
            };
            if ways.exit() == exit && ways.learn(answers, as_of) {
                break;
            }
        }
        Ok(())
    }

    fn exit(&self) -> (Exit, u64) {
        let inner = self.lock();
        (inner.ways.exit(), inner.ways.news())
    }

    /// Reads all neighbours of the underlay's device.
    pub async fn look_at_neighbours(&self, kernel: &Kernel) -> Result<(), kernel::Error> {
        for attempt in 1..=ATTEMPTS {
            let (exit, as_of) = self.exit();
            let neighbours = kernel.neighbours_on(exit.ifindex).await?;
            let ways = &mut self.lock().ways;
            // Under a storm of changes the last answer is the best there is.
            let as_of = if attempt == ATTEMPTS {
                ways.news()
            } else {
                as_of
            };
            if ways.exit() == exit && ways.learn_neighbours(neighbours, as_of) {
                break;
            }
        }
        Ok(())
    }

    /// Writes the next hops that have changed into the entries of their peers.
    pub fn prepare_next_hops(&self) -> Result<usize, Error> {
        let inner = &mut *self.lock();
        let (maps, ways) = (&mut inner.maps, &inner.ways);
        // Before the first round nothing is known that could be better than what an earlier agent
        // has left.
        if ways.exit().source.is_none() {
            return Ok(0);
        }
        let mac = ways.exit().mac.unwrap_or_default();
        maps.update_peers(|peer| {
            let vtep = peer.vtep.into();
            let next_hop = match peer.flags & PEER_DIRECT {
                0 => ways.mac(vtep),
                _ => ways.neighbour_mac(vtep),
            };
            let prepared = with_next_hop(peer, next_hop, mac);
            (prepared != *peer).then_some(prepared)
        })
    }
}
