//! Follows the kernel's neighbours and routes in a separate task, so that a changed next hop is in
//! the maps within moments even while the agent is busy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use rtnetlink::packet_route::neighbour::NeighbourState;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::live::Live;
use crate::kernel::monitor::{KernelEvent, Monitor, NEXT_HOPS};
use crate::kernel::next_hop::{Neighbour, is_usable};
use crate::kernel::{Kernel, monitor};

/// Changes come in bursts; the follower acts on a burst this long after its first change.
const SETTLE: Duration = Duration::from_millis(10);
/// Interval of the heartbeat that tells the programs that next hops are followed.
const BEAT: Duration = Duration::from_secs(1);
/// The time after a heartbeat for which the programs trust next hops.
const TRUST: Duration = Duration::from_secs(5);
/// Number of beats between two confirmations of stale next hops: about the kernel's delay for its
/// own packets (`delay_first_probe_time`).
const CONFIRM: u32 = 5;
/// Most next hops that are confirmed at a time, because each costs the kernel a packet and the
/// follower three events.
const CONFIRMATIONS: usize = 200;
/// Number of beats between two full requests without an event, because some changes cause no event.
const NOW_AND_THEN: u32 = 60;
/// Pause before a broken netlink socket is reopened.
const RETRY: Duration = Duration::from_secs(1);

/// The task, which ends when this value is dropped.
pub struct Follower {
    task: JoinHandle<()>,
    /// Notified when a way has changed so that a round is needed.
    changed: Arc<Notify>,
}

impl Follower {
    /// Starts to follow.
    pub fn start(live: Live) -> Self {
        let changed = Arc::new(Notify::new());
        let task = tokio::spawn({
            let changed = Arc::clone(&changed);
            async move {
                loop {
                    if let Err(error) = follow(&live, &changed).await {
                        tracing::warn!("follow the next hops: {error:#}");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        Self { task, changed }
    }

    /// Notified when a way uses another device, or has another MTU.
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The work that is due after a burst of events.
#[derive(Default)]
struct Due {
    at: Option<Instant>,
    /// VTEPs whose way has to be requested.
    ask: BTreeSet<IpAddr>,
    /// Whether the neighbours have to be read.
    look: bool,
}

impl Due {
    fn soon(&mut self) {
        self.at.get_or_insert_with(|| Instant::now() + SETTLE);
    }
}

async fn follow(live: &Live, changed: &Notify) -> anyhow::Result<()> {
    let mut monitor = Monitor::subscribe(NEXT_HOPS)?;
    let kernel = Kernel::connect()?;
    // Events from before the subscription are missing.
    let all = live.lock().ways.all();
    live.look_at_neighbours(&kernel).await?;
    live.ask(all).await?;
    live.prepare_next_hops()?;
    let mut beat = interval_at(Instant::now(), BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = 0_u32;
    let mut due = Due::default();
    loop {
        tokio::select! {
            event = monitor.next() => note(live, &event?, &mut due),
            () = sleep_until(due.at.unwrap_or_else(Instant::now)), if due.at.is_some() => {
                let due = std::mem::take(&mut due);
                if due.look {
                    live.look_at_neighbours(&kernel).await?;
                }
                let before = ways_of(live, &due.ask);
                live.ask(due.ask.iter().copied().collect()).await?;
                live.prepare_next_hops()?;
                if ways_of(live, &due.ask) != before {
                    changed.notify_one();
                }
            }
            _ = beat.tick() => {
                // A single late answer makes a connection useless.
                ensure!(!kernel.is_closed(), "the netlink connection is of no use any more");
                live.lock().keep_next_hops(TRUST)?;
                beats = beats.wrapping_add(1);
                if beats.is_multiple_of(CONFIRM) {
                    confirm(live, &kernel).await;
                }
                if beats.is_multiple_of(NOW_AND_THEN) {
                    due.ask.extend(live.lock().ways.all());
                    due.look = true;
                    due.soon();
                }
            }
        }
    }
}

/// The parts of a way that only a round can correct: the device by which a node is reached, and the
/// MTU.
fn ways_of(live: &Live, vteps: &BTreeSet<IpAddr>) -> Vec<Option<Option<u32>>> {
    let inner = live.lock();
    let way = |vtep: &IpAddr| inner.ways.next_hop(*vtep).map(|next_hop| next_hop.mtu);
    vteps.iter().map(way).collect()
}

fn note(live: &Live, event: &KernelEvent, due: &mut Due) {
    let ways = &mut live.lock().ways;
    match event {
        KernelEvent::Neighbour(neighbour) if neighbour.ifindex == ways.exit().ifindex => {
            let now = usable(neighbour);
            if ways.neighbour(neighbour.address, now) {
                if now.is_none() {
                    due.ask.extend(ways.by(neighbour.address));
                }
                due.soon();
            }
        }
        KernelEvent::Route(route) => {
            let vteps = ways.within(route.destination);
            if !vteps.is_empty() {
                due.ask.extend(vteps);
                due.soon();
            }
        }
        // The kernel sends no event for routes by a device that goes down.
        KernelEvent::Link(ifindex) if *ifindex == ways.exit().ifindex => {
            due.ask.extend(ways.all());
            due.soon();
        }
        KernelEvent::Rule | KernelEvent::Overrun => {
            due.ask.extend(ways.all());
            due.look |= *event == KernelEvent::Overrun;
            due.soon();
        }
        _ => {}
    }
}

/// A neighbour to which the kernel would send at once.
fn usable(neighbour: &monitor::NeighbourChange) -> Option<Neighbour> {
    let state = neighbour.state.filter(|state| is_usable(*state))?;
    Some(Neighbour {
        mac: neighbour.mac?,
        is_stale: state == NeighbourState::Stale,
    })
}

/// Makes the kernel confirm stale next hops.
async fn confirm(live: &Live, kernel: &Kernel) {
    let (exit, stale) = {
        let inner = live.lock();
        let stale: Vec<_> = inner.ways.stale().take(CONFIRMATIONS).collect();
        (inner.ways.exit(), stale)
    };
    for address in stale {
        if let Err(error) = kernel.confirm_neighbour(exit.ifindex, address).await {
            // The neighbour may have been removed meanwhile; the others are confirmed nevertheless.
            tracing::debug!("confirm {address}: {error}");
        }
    }
}
