//! Follows the kernel's neighbours and routes in a task of its own, so that a changed next hop is
//! in the maps within moments whatever else the agent is doing.

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

/// Changes come in bursts; the first of one is acted on after this time.
const SETTLE: Duration = Duration::from_millis(10);
/// How often the programs are told that next hops are followed.
const BEAT: Duration = Duration::from_secs(1);
/// How long the programs trust next hops after that.
const TRUST: Duration = Duration::from_secs(5);
/// How often stale next hops are confirmed: about when the kernel would, were the packets its own
/// (`delay_first_probe_time`).
const CONFIRM: u32 = 5;
/// How many next hops are confirmed at a time: each costs the kernel a packet and the follower
/// three events.
const CONFIRMATIONS: usize = 200;
/// How often everything is asked again although no event says so: some changes tell of none.
const NOW_AND_THEN: u32 = 60;
/// How long to wait before a broken netlink socket is opened anew.
const RETRY: Duration = Duration::from_secs(1);

/// The task; it ends with this.
pub struct Follower {
    task: JoinHandle<()>,
    /// Told when a way has changed in what only a round can put right.
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

    /// Waits until a way leads by another device, or has another MTU.
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
    /// VTEPs whose way has to be asked for.
    ask: BTreeSet<IpAddr>,
    /// Whether the neighbours have to be looked at.
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
    // Events from before the subscription were missed.
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
                // One answer that was late spoils a connection.
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

/// What only a round can put right: by which device a node is reached, and what fits.
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
        // Routes by a device that goes down vanish without a word.
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

/// A neighbour that the kernel would send to at once.
fn usable(neighbour: &monitor::NeighbourChange) -> Option<Neighbour> {
    let state = neighbour.state.filter(|state| is_usable(*state))?;
    Some(Neighbour {
        mac: neighbour.mac?,
        is_stale: state == NeighbourState::Stale,
    })
}

/// Lets the kernel confirm stale next hops.
async fn confirm(live: &Live, kernel: &Kernel) {
    let (exit, stale) = {
        let inner = live.lock();
        let stale: Vec<_> = inner.ways.stale().take(CONFIRMATIONS).collect();
        (inner.ways.exit(), stale)
    };
    for address in stale {
        if let Err(error) = kernel.confirm_neighbour(exit.ifindex, address).await {
            // Gone meanwhile, perhaps; the others are asked for all the same.
            tracing::debug!("confirm {address}: {error}");
        }
    }
}
