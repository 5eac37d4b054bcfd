//! The state that rounds share with the [follower](super::follower) of next hops: the maps, and the
//! ways in the maps.
//!
//! A round reads the ways and writes the peers under one lock, so that a round cannot overwrite a
//! newer change of the follower. The lock is never held during a wait.

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

/// Number of requests for an answer that changes overtake; after these the follower corrects a
/// wrong answer.
const ATTEMPTS: usize = 3;

/// The maps, and the ways to the other nodes.
pub struct Inner {
    /// The pinned maps.
    pub maps: Maps<V4>,
    /// The ways that the maps contain, or are about to contain.
    pub ways: Ways,
    /// The times until which the programs may trust the agent's knowledge.
    heartbeat: Heartbeat,
}

impl Inner {
    /// Lets the programs trust next hops for `time` from now on.
    pub fn keep_next_hops(&mut self, time: Duration) -> Result<(), Error> {
        self.heartbeat.next_hops_until_ns = after(time);
        self.maps.set_heartbeat(self.heartbeat)
    }

    /// Lets the programs refuse by the list of leases for `time` from now on; without a time, for
    /// ever.
    pub fn keep_leases(&mut self, time: Option<Duration>) -> Result<(), Error> {
        self.heartbeat.leases_until_ns = time.map_or(u64::MAX, after);
        self.maps.set_heartbeat(self.heartbeat)
    }
}

/// A time of the clock that the programs use.
fn after(time: Duration) -> u64 {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    now_ns().saturating_add(time)
}

/// The state that rounds and the follower share.
#[derive(Clone)]
pub struct Live(Arc<Mutex<Inner>>);

impl Live {
    /// The state with opened maps and without ways.
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

    /// Locks maps and ways.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change of the maps is complete by itself, so that a panic leaves no partial change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the exit, and finds the ways to those of the VTEPs that have none yet.
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
            // When changes do not cease, the last answer is accepted.
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
            // When changes do not cease, the last answer is accepted.
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
        // Before the first round the entries of an earlier agent are better than any that could be
        // written.
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
