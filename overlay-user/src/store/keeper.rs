//! Keeps this node's lease and publishes all nodes' leases.

mod claim;
mod outage;
mod tend;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, EntryChange, Term};
use super::registry::Registry;
use super::table::Table;
use super::{Error, LeaseState, Location, Notice, StoreHealth};
use crate::config::{NetworkConfig, SubnetPool};
use crate::lease::{Attributes, Lease, SubnetKey};
use crate::liveness::Pulse;
use crate::per_family::PerFamily;

/// Capacity of the queue of changes between the watch and the keeper.
const QUEUE: usize = 256;
/// Longest pause between attempts to set this node's lease right.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Pause after each time the lease was set right, so that two nodes with one public IP do not
/// overwrite each other without pause.
const AFTER_MENDING: Duration = Duration::from_millis(200);
/// After an outage, or a jump of the clock that leases end by, other nodes have this long to renew
/// leases that ended meanwhile. Until then their leases stay in force, so that a store that comes
/// back late does not cut traffic that never stopped.
const GRACE: Duration = Duration::from_secs(15);

/// Keeps one node's lease in a store. Share it by `Arc`: [`run`](Self::run) borrows it for as long
/// as the agent lives, while others publish attributes and read the state.
#[derive(Debug)]
pub struct Store {
    pub(super) registry: Registry,
    ttl: Duration,
    renew_every: Duration,
    wanted: watch::Sender<Option<Wanted>>,
    state: watch::Sender<LeaseState>,
    inner: Mutex<Inner>,
    pulse: Pulse,
}

/// The lease that this node should hold.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    pools: PerFamily<SubnetPool>,
    attributes: Attributes,
    previous: Option<PerFamily<IpNet>>,
}

#[derive(Debug, Default)]
struct Inner {
    table: Table,
    /// The entry that is this node's lease, as it was last seen or written.
    held: Option<Entry>,
    expires: Option<SystemTime>,
    health: StoreHealth,
    /// Why this node's lease is missing or wrong.
    trouble: Option<String>,
    /// Until when leases that are removed stay in force.
    grace: Option<Instant>,
}

impl Store {
    /// Prepares a store; nothing is asked of it yet. A lease ends `ttl` after its last renewal
    /// (whole seconds in etcd) and is renewed every `renew_every`.
    ///
    /// # Errors
    /// [`Error::Options`] if the options contradict each other or are out of range.
    pub fn open(location: Location, ttl: Duration, renew_every: Duration) -> Result<Self, Error> {
        Ok(Self {
            registry: Registry::open(location, ttl)?,
            ttl,
            renew_every,
            wanted: watch::Sender::new(None),
            state: watch::Sender::default(),
            inner: Mutex::default(),
            pulse: Pulse::default(),
        })
    }

    /// Reads the network's configuration.
    ///
    /// # Errors
    /// Any; most often no configuration has been written, or the store does not answer. Worth
    /// another attempt.
    pub async fn network_config(&self) -> Result<NetworkConfig, Error> {
        Ok(NetworkConfig::parse(&self.registry.config().await?)?)
    }

    /// Takes this node's lease: the one that it held before its public IP changed (see
    /// [`Attributes::is_moved_from`]), else the one it holds (found by its public IP), else the
    /// `previous` subnets (as in `subnet.env`, so gateways will do), else any free ones.
    ///
    /// # Errors
    /// The store does not answer, or there is no subnet left. Worth another attempt.
    pub async fn acquire(
        &self,
        config: &NetworkConfig,
        attributes: Attributes,
        previous: Option<PerFamily<IpNet>>,
    ) -> Result<Lease, Error> {
        let wanted = Wanted {
            pools: config.pools,
            attributes,
            previous,
        };
        self.wanted.send_replace(Some(wanted.clone()));
        let mut inner = self.inner.lock().await;
        let claimed = match self.reclaim(&mut inner, &wanted).await {
            Ok(Some(lease)) => Ok(lease),
            Ok(None) => self.claim(&mut inner, &wanted, previous).await,
            Err(error) => Err(error),
        };
        inner.trouble = claimed.as_ref().err().map(ToString::to_string);
        self.judge_health(&mut inner, claimed.as_ref().err());
        self.show(&inner);
        claimed
    }

    /// The address that the store's operator wants to be this node's, where there is one.
    ///
    /// # Errors
    /// The store does not answer. Worth another attempt.
    pub async fn node_public_ip(&self) -> Result<Option<IpAddr>, Error> {
        self.registry.node_public_ip().await
    }

    /// Whether the store has a place for notices, see [`notify`](Self::notify).
    #[must_use]
    pub fn has_readers(&self) -> bool {
        self.registry.assigns()
    }

    /// Publishes a notice about this node for the store's owner.
    ///
    /// # Errors
    /// The store does not answer, or does not allow it.
    pub async fn notify(&self, notice: &Notice) -> Result<(), Error> {
        self.registry.notify(notice).await
    }

    /// The attributes in this node's entry before the agent takes the entry: an earlier agent's,
    /// where the store gives each node its entry.
    ///
    /// # Errors
    /// The store does not answer. Worth another attempt.
    pub async fn earlier_attributes(&self) -> Result<Option<Attributes>, Error> {
        match self.registry.assigned().await {
            Ok(given) => Ok(given
                .and_then(|it| it.entry.lease().ok())
                .map(|it| it.attributes)),
            Err(Error::NotAssigned { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A receiver of the state of leases, and of every change. The state is valid before
    /// [`run`](Self::run) is called, too.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Beats whenever [`run`](Self::run) has heard from the watch of the store, and so at least
    /// every 20 seconds if all is well: a store that does not answer is heard of, too.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Changes this node's attributes. [`run`](Self::run) writes them to the store as soon as
    /// possible.
    pub fn publish(&self, attributes: Attributes) {
        self.wanted.send_if_modified(|wanted| match wanted {
            Some(wanted) if wanted.attributes != attributes => {
                wanted.attributes = attributes;
                true
            }
            _ => false,
        });
    }

    /// Keeps the lease that [`acquire`](Self::acquire) took, watches all nodes' leases, and
    /// publishes both, until `cancel`. An outage of the store does not end the call. A lost lease
    /// is taken again, or another one instead, as [`LeaseState::own`] shows. At the end the lease
    /// stays in the store.
    pub async fn run(&self, cancel: CancellationToken) {
        let (sender, changes) = mpsc::channel(QUEUE);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.registry.watch(sender) => {}
            () = self.keep(changes) => {}
        }
    }

    /// Gives up a lease for good: removes the entry of `subnets` if the entry is that of the node
    /// with `attributes`: the public IP is the same, or changed since (see
    /// [`Attributes::is_moved_from`]). Reservations stay. Returns whether an entry was removed.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn release(
        &self,
        subnets: &PerFamily<IpNet>,
        attributes: &Attributes,
    ) -> Result<bool, Error> {
        if self.registry.assigns() {
            return Ok(false);
        }
        let key = SubnetKey(subnets.map(IpNet::trunc)).to_string();
        let entries = self.registry.list().await?.entries;
        let is_own = |lease: Lease| {
            lease.attributes.is_at(&attributes.public_ip)
                || attributes.is_moved_from(&lease.attributes)
        };
        let ours = entries.iter().find(|entry| {
            entry.key == key && entry.term != Term::Reserved && entry.lease().is_ok_and(is_own)
        });
        match ours {
            Some(entry) => self.registry.remove(entry).await,
            None => Ok(false),
        }
    }

    async fn keep(&self, mut changes: mpsc::Receiver<EntryChange>) {
        let mut wanted = self.wanted.subscribe();
        let mut renewal = Instant::now() + self.renew_every;
        let mut failures: u32 = 0;
        let mut retry = None;
        loop {
            let due = retry.unwrap_or(renewal);
            let grace = self.inner.lock().await.grace.unwrap_or(due);
            let mut timed = false;
            let change = tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => {
                        self.pulse.beat();
                        Some(change)
                    }
                    None => return,
                },
                changed = wanted.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                () = sleep_until(due.min(grace)) => { timed = true; None },
            };
            let mut inner = self.inner.lock().await;
            let recovered = self.take_in(&mut inner, change, &mut changes);
            // While the store is away a watch event says nothing about our lease; the timer does.
            let ask = timed || recovered || matches!(inner.health, StoreHealth::Ok);
            if recovered || (timed && Instant::now() >= due) {
                renewal = Instant::now();
            }
            let target = wanted.borrow_and_update().clone();
            if let (Some(target), true) = (target, ask) {
                let tended = self
                    .tend(&mut inner, &target, Instant::now() >= renewal)
                    .await;
                self.judge_health(&mut inner, tended.as_ref().err());
                match tended {
                    Ok(mended) => {
                        (failures, retry) = (0, None);
                        inner.trouble = None;
                        if Instant::now() >= renewal {
                            renewal = Instant::now() + self.renew_every;
                        }
                        if mended {
                            self.show(&inner);
                            drop(inner);
                            sleep(AFTER_MENDING).await;
                            continue;
                        }
                    }
                    Err(error) => {
                        failures += 1;
                        inner.trouble = Some(error.to_string());
                        retry = Some(Instant::now() + self.retry_after(failures));
                        tracing::warn!(
                            %error,
                            failures,
                            "this node's lease is not as it should be; trying again"
                        );
                    }
                }
            }
            self.show(&inner);
        }
    }

    /// Takes in a change and those that wait behind it. True if the store is back after an outage.
    fn take_in(
        &self,
        inner: &mut Inner,
        first: Option<EntryChange>,
        changes: &mut mpsc::Receiver<EntryChange>,
    ) -> bool {
        if inner.grace.is_some_and(|until| until <= Instant::now()) {
            inner.grace = None;
            inner.table.settle();
        }
        let mut recovered = false;
        // As many as wait: more may come all the time, and the lease has to be renewed between
        // them.
        let waiting = changes.len();
        let behind = std::iter::from_fn(|| changes.try_recv().ok()).take(waiting);
        for change in first.into_iter().chain(behind) {
            if let EntryChange::Unreachable(error) = &change {
                inner.outage(error);
            } else if change.is_answer() {
                recovered |= inner.answered();
            }
            if inner.has_ended_for(&change) {
                tracing::warn!(
                    "this node's lease has ended before its time, as if a clock had jumped"
                );
                inner.grace = Some(Instant::now() + GRACE);
            }
            inner.table.apply(change, inner.grace.is_some());
        }
        recovered
    }

    fn judge_health(&self, inner: &mut Inner, error: Option<&Error>) {
        if let Some(error @ Error::Unreachable { .. }) = error {
            inner.outage(&error.to_string());
        }
    }

    /// The pause after `failures` failures in a row: longer after each, and limited by the lease
    /// time.
    fn retry_after(&self, failures: u32) -> Duration {
        let longest = LONGEST_RETRY.min(self.ttl / 10);
        (Duration::from_millis(100) * 2u32.saturating_pow(failures.min(16))).min(longest)
    }

    fn show(&self, inner: &Inner) {
        let mut leases = inner.table.leases().clone();
        let own = inner.held.as_ref().and_then(|held| {
            let lease = held.lease().ok()?;
            leases.remove(&lease.key());
            Some(Lease {
                expires: inner.expires,
                ..lease
            })
        });
        self.state.send_if_modified(|state| {
            let synced = state.synced || inner.table.is_complete();
            let next = LeaseState {
                trouble: inner.trouble.clone().filter(|_| own.is_none()),
                own,
                leases,
                rejected: inner.table.rejected().clone(),
                synced,
                as_of: inner.table.as_of(),
                store: inner.health.clone(),
            };
            let differs = next != *state;
            *state = next;
            differs
        });
    }
}
