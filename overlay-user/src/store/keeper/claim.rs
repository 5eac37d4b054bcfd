//! Taking a lease, against others who do the same at the same time.

use std::net::IpAddr;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use ipnet::IpNet;
use tokio::time::sleep;

use super::{Inner, Store, Wanted};
use crate::config::SubnetPool;
use crate::lease::{Attributes, Lease, SubnetKey, allocate, are_allowed, reusable};
use crate::per_family::PerFamily;
use crate::store::Error;
use crate::store::entry::{Entry, EntryChange, Term};
use crate::store::registry::Registry;

/// How often a lost race is run again. A thousand nodes that start at once draw from a hundred
/// subnets, so that many lose several times.
const RACES: usize = 40;
/// Pauses between races, shortest and longest, each stretched by chance so that the losers part.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

impl Store {
    /// Rewrites the lease that this node held before its public IP changed, if the store still has
    /// that lease. Otherwise the peers would refuse this node until the former lease ends, because
    /// two leases would claim one MAC address.
    ///
    /// Only at the start: while the agent runs, a lease under another public IP is somebody else's
    /// doing, and two nodes with one identity would take it from each other without end.
    pub(super) async fn reclaim(
        &self,
        inner: &mut Inner,
        wanted: &Wanted,
    ) -> Result<Option<Lease>, Error> {
        let Some(previous) = &wanted.previous else {
            return Ok(None);
        };
        if self.registry.assigns() {
            return Ok(None);
        }
        self.look(inner).await?;
        let Some((entry, lease)) = inner
            .table
            .moved(&previous.map(IpNet::trunc), &wanted.attributes)
        else {
            return Ok(None);
        };
        if !are_allowed(&wanted.pools, &lease.subnets) {
            return Ok(None);
        }
        let Some(entry) = self
            .registry
            .replace(&entry, &value(wanted, &entry)?)
            .await?
        else {
            return Ok(None);
        };
        tracing::info!(
            subnet = %lease.subnets,
            old = %lease.attributes.public_ip,
            new = %wanted.attributes.public_ip,
            "the public IP changed: this node goes on with its lease"
        );
        self.take(inner, entry).map(Some)
    }

    /// Takes a lease for this node: its own, the previous one, or any.
    pub(super) async fn claim(
        &self,
        inner: &mut Inner,
        wanted: &Wanted,
        previous: Option<PerFamily<IpNet>>,
    ) -> Result<Lease, Error> {
        inner.held = None;
        inner.expires = None;
        let pauses = ExponentialBuilder::default()
            .with_min_delay(PAUSE.0)
            .with_max_delay(PAUSE.1)
            .with_max_times(RACES)
            .with_jitter()
            .build();
        for pause in pauses {
            self.pulse.beat();
            if let Some(entry) = self.race(inner, wanted, previous).await? {
                return self.take(inner, entry);
            }
            tracing::debug!("another node was faster; drawing another subnet");
            sleep(pause).await;
        }
        Err(Error::Contended(RACES))
    }

    /// One attempt. `None` if another node was faster.
    async fn race(
        &self,
        inner: &mut Inner,
        wanted: &Wanted,
        previous: Option<PerFamily<IpNet>>,
    ) -> Result<Option<Entry>, Error> {
        if let Some(given) = self.registry.assigned().await? {
            if given.as_of.is_none() {
                inner.answered();
            }
            return self.accept(wanted, given.entry).await;
        }
        self.look(inner).await?;
        let own = inner.table.entries_of(&wanted.attributes.public_ip);
        let leases = own.iter().map(|(_, lease)| lease);
        if let Some(lease) = reusable(&wanted.pools, leases, previous) {
            let entry = own.iter().find(|(_, other)| other.subnets == lease.subnets);
            let Some((entry, _)) = entry else {
                return Ok(None);
            };
            return self.registry.replace(entry, &value(wanted, entry)?).await;
        }
        // What this node held under another configuration is of no use to anybody.
        for (entry, lease) in &own {
            if entry.term != Term::Reserved && self.registry.remove(entry).await? {
                tracing::info!(
                    subnet = %lease.subnets,
                    "released a lease that the network no longer allows"
                );
                inner.table.forget(&entry.key);
            }
        }
        let taken = inner.table.taken();
        let draw = |pool: &SubnetPool| {
            let family = pool.network().addr();
            let previous = previous.and_then(|subnets| subnets.like(family).copied());
            allocate(pool, &taken, previous, &mut rand::rng())
        };
        let subnets = wanted.pools.try_map(draw)?;
        let value = to_json(&wanted.attributes)?;
        let key = SubnetKey(subnets).to_string();
        self.registry.create(&key, &value).await
    }

    /// Publishes this node's attributes with the subnet that it was given. Nothing if that changed
    /// meanwhile.
    async fn accept(&self, wanted: &Wanted, given: Entry) -> Result<Option<Entry>, Error> {
        let key: Option<SubnetKey> = given.key.parse().ok();
        let is_inside = |network: &IpNet| {
            let subnet = key.as_ref().and_then(|key| key.0.like(network.addr()));
            subnet.is_some_and(|subnet| network.contains(subnet))
        };
        let mut networks = wanted.pools.iter().map(SubnetPool::network);
        if let Some(network) = networks.find(|network| !is_inside(network)) {
            return Err(Error::NotAssigned {
                node: given.node.unwrap_or_default(),
                why: format!(
                    "its podCIDR {} is not inside the Network {network}; set Network to the \
                     cluster's CIDR and start the agents anew",
                    given.key
                ),
            });
        }
        let value = value(wanted, &given)?;
        if given.value == value.as_bytes() {
            return Ok(Some(given));
        }
        self.registry.replace(&given, &value).await
    }

    /// Reads everything that the store holds.
    async fn look(&self, inner: &mut Inner) -> Result<(), Error> {
        let listing = self.registry.list().await?;
        inner.answered();
        inner
            .table
            .apply(EntryChange::All(listing), inner.grace.is_some());
        Ok(())
    }

    /// Notes an entry that was just written as this node's lease.
    fn take(&self, inner: &mut Inner, entry: Entry) -> Result<Lease, Error> {
        let lease = entry
            .lease()
            .map_err(|reason| Error::Options(reason.to_string()))?;
        self.hold(inner, entry);
        tracing::info!(
            subnet = %lease.subnets,
            reserved = lease.reserved,
            "this node holds a lease"
        );
        Ok(Lease {
            expires: inner.expires,
            ..lease
        })
    }

    /// Notes an entry that was just written with a full term.
    pub(super) fn hold(&self, inner: &mut Inner, entry: Entry) {
        inner.table.put(entry.clone());
        inner.expires = match entry.term {
            Term::Reserved => None,
            Term::Renewed(_) => Registry::term_end(self.ttl),
        };
        inner.held = Some(entry);
    }
}

/// The value that this node's entry should have.
pub(super) fn value(wanted: &Wanted, entry: &Entry) -> Result<String, Error> {
    let own = wanted.attributes.public_ip;
    let v4 = entry.public_ip.map(IpAddr::from);
    let public_ip = PerFamily::new(v4.or(own.v4().copied()), own.v6().copied());
    to_json(&Attributes {
        public_ip: public_ip.unwrap_or(own),
        ..wanted.attributes.clone()
    })
}

fn to_json(attributes: &Attributes) -> Result<String, Error> {
    attributes
        .to_json()
        .map_err(|error| Error::Options(error.to_string()))
}
