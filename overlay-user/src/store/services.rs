//! The Services of a store, and the table that this node makes of them.
//!
//! Nothing is watched before [`ServiceFollower::run`]. While a store does not answer, the last
//! table stays in force.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::keeper::Store;
use super::news::{Body, News, ThisNode, Update};
use super::{LeaseState, StoreHealth};
use crate::lease::Lease;
use crate::per_family::PerFamily;
use crate::service::{Catalog, Kind, Locality, Refusals, ServiceTable};

/// Capacity of the queue of news between the watch and the table.
const QUEUE: usize = 256;
/// Most refusals logged for one batch of news; the state has all of them.
const LOGGED: usize = 10;

/// The state of Services at one moment. A clone is cheap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceState {
    /// The table; none before all Services have been known once.
    pub table: Option<ServiceTable>,
    /// Refused parts of Services: malformed, or harmful to others.
    pub refused: Refusals,
    /// Whether the store answers. While the store does not, the last table stays in force.
    pub store: StoreHealth,
}

/// Makes the table of Services. Share it by `Arc`, like the [`Store`].
#[derive(Debug, Default)]
pub struct ServiceFollower {
    state: watch::Sender<ServiceState>,
}

/// Why a catalog is discarded.
enum End {
    /// The node's name, zone or addresses changed, so that all objects have to be judged anew.
    Moved,
    /// The store has ended.
    Over,
}

impl ServiceFollower {
    /// A receiver of the state of Services, and of every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<ServiceState> {
        self.state.subscribe()
    }

    /// Follows the store's Services until `cancel`. `pods` are the pods' networks. [`Store::run`]
    /// has to run at the same time, because this node's place and the nodes' addresses come from
    /// there.
    pub async fn run(&self, store: &Store, pods: PerFamily<IpNet>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.follow(store, pods) => {}
        }
    }

    async fn follow(&self, store: &Store, pods: PerFamily<IpNet>) {
        let mut whereabouts = Whereabouts {
            this_node: store.registry.this_node(),
            host: ThisNode::of_host(),
            leases: store.subscribe(),
            pods,
        };
        loop {
            let Some(here) = whereabouts.here() else {
                if whereabouts.changed().await.is_none() {
                    return;
                }
                continue;
            };
            tracing::info!(
                node = here.node,
                zone = ?here.zone,
                addresses = ?here.addresses,
                "following Services"
            );
            let (sender, news) = mpsc::channel(QUEUE);
            let end = tokio::select! {
                () = store.registry.watch_services(sender) => End::Over,
                end = self.keep(here, &mut whereabouts, news) => end,
            };
            match end {
                End::Moved => {}
                End::Over => return,
            }
        }
    }

    /// Takes news in and publishes what follows, until the node moves.
    async fn keep(
        &self,
        here: Locality,
        whereabouts: &mut Whereabouts,
        mut news: mpsc::Receiver<News>,
    ) -> End {
        let mut catalog = Catalog::new(here.clone());
        let mut sources = Sources::default();
        let mut nodes = LeaseState::default();
        let mut batch = Vec::new();
        loop {
            let now = whereabouts.leases.borrow().clone();
            follow_nodes(&mut catalog, &nodes, &now);
            nodes = now;
            if whereabouts.here().is_some_and(|now| now != here) {
                return End::Moved;
            }
            for news in batch.drain(..) {
                sources.hear(&news);
                take(&mut catalog, news);
            }
            // Half of a list would say that Services without a slice have no servers.
            if sources.are_complete() {
                catalog.settle();
                self.publish(Some(&catalog), &sources);
            } else {
                self.publish(None, &sources);
            }
            tokio::select! {
                received = news.recv_many(&mut batch, QUEUE) => {
                    if received == 0 {
                        return End::Over;
                    }
                }
                changed = whereabouts.changed() => if changed.is_none() { return End::Over },
            }
        }
    }

    fn publish(&self, catalog: Option<&Catalog>, sources: &Sources) {
        self.state.send_if_modified(|state| {
            let next = match catalog {
                Some(catalog) => ServiceState {
                    table: Some(catalog.table().clone()),
                    refused: catalog.refused().clone(),
                    store: sources.health(),
                },
                None => ServiceState {
                    store: sources.health(),
                    ..state.clone()
                },
            };
            tell_refused(&state.refused, &next.refused);
            let differs = next != *state;
            *state = next;
            differs
        });
    }
}

/// What says which node this is.
struct Whereabouts {
    /// Where the store says it is; none where the store does not know, and the host itself counts.
    this_node: Option<watch::Receiver<Option<ThisNode>>>,
    host: ThisNode,
    leases: watch::Receiver<LeaseState>,
    pods: PerFamily<IpNet>,
}

impl Whereabouts {
    /// This node, once enough is known of it.
    fn here(&self) -> Option<Locality> {
        let this_node = match &self.this_node {
            Some(this_node) => this_node.borrow().clone()?,
            None => self.host.clone(),
        };
        let addresses = match this_node.addresses {
            Some(addresses) => addresses,
            None => public_ips(self.leases.borrow().own.as_ref()?).collect(),
        };
        Some(Locality {
            node: this_node.node,
            zone: this_node.zone,
            addresses,
            pods: self.pods,
        })
    }

    /// Waits for a change; none if there will be none.
    async fn changed(&mut self) -> Option<()> {
        let Some(this_node) = &mut self.this_node else {
            return self.leases.changed().await.ok();
        };
        tokio::select! {
            changed = this_node.changed() => changed.ok(),
            changed = self.leases.changed() => changed.ok(),
        }
    }
}

fn public_ips(lease: &Lease) -> impl Iterator<Item = IpAddr> {
    lease.attributes.public_ip.iter().copied()
}

/// Tells the catalog which addresses are nodes', by what differs between two moments.
fn follow_nodes(catalog: &mut Catalog, before: &LeaseState, now: &LeaseState) {
    let mut change = |before: Option<&Lease>, now: Option<&Lease>| {
        // The new before the old, so that an address that both have stays.
        now.into_iter()
            .flat_map(public_ips)
            .for_each(|it| catalog.add_node(it));
        before
            .into_iter()
            .flat_map(public_ips)
            .for_each(|it| catalog.remove_node(it));
    };
    change(before.own.as_ref(), now.own.as_ref());
    for difference in now.leases.differences(&before.leases) {
        change(
            difference.before.map(AsRef::as_ref),
            difference.now.map(AsRef::as_ref),
        );
    }
}

fn take(catalog: &mut Catalog, news: News) {
    match (news.kind, news.update) {
        (kind, Update::Begin) => catalog.begin(kind),
        (kind, Update::Complete) => catalog.complete(kind),
        (_, Update::Put(name, Body::Service(service))) => {
            catalog.put_service(&name, service.as_deref().map_err(Clone::clone));
        }
        (_, Update::Put(name, Body::Slice(slice))) => {
            catalog.put_slice(&name, slice.as_deref().map_err(Clone::clone));
        }
        (Kind::Service, Update::Gone(name)) => catalog.remove_service(&name),
        (Kind::Slice, Update::Gone(name)) => catalog.remove_slice(&name),
        (_, Update::Alive | Update::Unreachable(_)) => {}
    }
}

/// Logs what is refused now and was not before.
fn tell_refused(before: &Refusals, now: &Refusals) {
    let news = now.differences(before);
    let mut news = news.filter_map(|it| Some((it.key, it.now?)));
    for (subject, refusals) in news.by_ref().take(LOGGED) {
        let reasons: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        tracing::warn!("{subject} is not taken as it is: {}", reasons.join("; "));
    }
    let more = news.count();
    if more > 0 {
        tracing::warn!("{more} more Services or EndpointSlices are not taken as they are");
    }
}

/// How both kinds of objects are followed.
#[derive(Default)]
struct Sources {
    complete: BTreeMap<Kind, bool>,
    health: BTreeMap<Kind, StoreHealth>,
}

impl Sources {
    fn hear(&mut self, news: &News) {
        let known = self.health.entry(news.kind).or_default();
        match &news.update {
            Update::Unreachable(error) => {
                let since = match known {
                    StoreHealth::Unreachable { since, .. } => *since,
                    _ => SystemTime::now(),
                };
                let error = error.clone();
                *known = StoreHealth::Unreachable { since, error };
            }
            update => {
                *known = StoreHealth::Ok;
                // Once complete it stays so: a later list changes what is known bit by bit.
                *self.complete.entry(news.kind).or_default() |= matches!(update, Update::Complete);
            }
        }
    }

    fn are_complete(&self) -> bool {
        Kind::ALL
            .iter()
            .all(|kind| self.complete.get(kind) == Some(&true))
    }

    /// The worse of both.
    fn health(&self) -> StoreHealth {
        let of = |kind| self.health.get(kind).cloned().unwrap_or_default();
        let both = Kind::ALL.each_ref().map(of);
        let worst = |health: &StoreHealth| match health {
            StoreHealth::Unreachable { .. } => 2,
            StoreHealth::Connecting => 1,
            StoreHealth::Ok => 0,
        };
        both.into_iter().max_by_key(worst).unwrap_or_default()
    }
}
