//! Leases in etcd, with flannel's keys and values.
//!
//! `<prefix>/config` is the network configuration, `<prefix>/subnets/<key>` a lease, bound to an
//! etcd lease that its owner keeps alive. A key that is bound to none is a reservation. Every
//! change is a transaction that names the state it expects, so that no node overwrites a lease that
//! another node has changed meanwhile.

mod client;
mod follow;
mod services;

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp,
};
use tokio::sync::mpsc;

use self::client::{Clients, is_too_large};
use super::Error;
use super::entry::{Entry, EntryChange, Listing, Term};
use super::news::News;
use crate::config::Secret;
use crate::lease::SubnetKey;

/// The branch of leases below the prefix.
const SUBNETS: &str = "subnets";

/// How many pairs to ask for at a time; fewer where values are large.
const PAGE: i64 = 500;

/// Longest value of a lease, in bytes. A longer value is cut, and then refused as malformed.
const LONGEST: usize = 64 * 1024;

/// How to reach an etcd cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs; they are tried in turn, and one that answers is kept.
    pub endpoints: Vec<String>,
    /// The prefix of the network's keys, such as `/coreos.com/network`.
    pub prefix: String,
    /// Private key of the client certificate, PEM.
    pub key_file: Option<PathBuf>,
    /// Client certificate, PEM.
    pub cert_file: Option<PathBuf>,
    /// Certificate authority of the servers, PEM. Enough for TLS without a client certificate.
    /// Without one, an `https://` endpoint is checked against the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// User and password.
    pub user: Option<(String, Secret)>,
}

/// A prefix in an etcd cluster.
#[derive(Debug)]
pub(super) struct Etcd {
    clients: Clients,
    prefix: String,
    ttl: Duration,
}

impl Etcd {
    pub fn new(options: Options, ttl: Duration) -> Result<Self, Error> {
        let prefix = format!("/{}", options.prefix.trim_matches('/'));
        Ok(Self {
            clients: Clients::new(options)?,
            prefix,
            ttl,
        })
    }

    pub async fn config(&self) -> Result<String, Error> {
        let key = format!("{}/config", self.prefix);
        let answer = self
            .clients
            .call(format!("reading {key} in etcd"), |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            });
        let answer = answer.await?;
        let kv = answer
            .kvs()
            .first()
            .ok_or_else(|| Error::NoConfig(format!("the etcd key {key}")))?;
        // What is not UTF-8 is not JSON either, and the parser says where.
        Ok(String::from_utf8_lossy(kv.value()).into_owned())
    }

    pub async fn list(&self) -> Result<Listing, Error> {
        self.list_all(SUBNETS).await
    }

    /// Lists one branch below the prefix.
    async fn list_all(&self, branch: &str) -> Result<Listing, Error> {
        let mut entries = Vec::new();
        let take = |kv: &KeyValue| entries.extend(self.entry(branch, kv));
        let revision = self.each(branch, take).await?;
        Ok(Listing {
            entries,
            revision: revision.cast_unsigned(),
            as_of: None,
        })
    }

    pub async fn create(&self, key: &str, value: &str) -> Result<Option<Entry>, Error> {
        let path = self.path(key);
        let id = self.grant().await?;
        let absent = Compare::create_revision(path.clone(), CompareOp::Equal, 0);
        let created = self.put(vec![absent], &path, value, id).await;
        if is_not_done(&created) {
            self.revoke(id).await;
        }
        let Some(revision) = created? else {
            return Ok(None);
        };
        let entry = Entry::new(
            key.to_owned(),
            value,
            revision.cast_unsigned(),
            Term::Renewed(id),
        );
        // The transaction guards this key only. A subnet of another length under another key may
        // overlap; of two such, the one that came first stays, and both nodes see the same order.
        if self.is_overlapped(key, revision).await? {
            self.remove(&entry).await?;
            self.revoke(id).await;
            return Ok(None);
        }
        Ok(Some(entry))
    }

    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        let mut granted = None;
        let (term, id) = match held.term {
            Term::Reserved => (Term::Reserved, 0),
            Term::Renewed(old) => {
                // An agent that comes back goes on with the etcd lease it had, if that is as long
                // as asked.
                let adopted = old != 0 && self.keep_alive(old).await? == self.seconds();
                let id = if adopted {
                    old
                } else {
                    *granted.insert(self.grant().await?)
                };
                (Term::Renewed(id), id)
            }
        };
        let path = self.path(&held.key);
        let done = self.put(self.unchanged(held), &path, value, id).await;
        if let Some(unused) = granted.filter(|_| is_not_done(&done)) {
            self.revoke_unused(unused).await;
        }
        Ok(done?
            .map(|revision| Entry::new(held.key.clone(), value, revision.cast_unsigned(), term)))
    }

    pub async fn renew(&self, held: &Entry) -> Result<bool, Error> {
        match held.term {
            Term::Reserved => Ok(true),
            Term::Renewed(id) => Ok(self.keep_alive(id).await? > 0),
        }
    }

    pub async fn remove(&self, held: &Entry) -> Result<bool, Error> {
        let path = self.path(&held.key);
        let txn = Txn::new()
            .when(self.unchanged(held))
            .and_then([TxnOp::delete(path.clone(), None)]);
        let done = self
            .clients
            .call(format!("deleting {path} in etcd"), |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            });
        Ok(done.await?.succeeded())
    }

    pub async fn watch(&self, changes: mpsc::Sender<EntryChange>) {
        follow::follow(self, SUBNETS, &changes).await;
    }

    /// Tells of every Service and EndpointSlice, until the receiver is dropped.
    pub async fn watch_services(&self, news: mpsc::Sender<News>) {
        services::follow(self, &news).await;
    }

    /// What the keys of one branch begin with.
    fn keys_of(&self, branch: &str) -> String {
        format!("{}/{branch}/", self.prefix)
    }

    fn path(&self, key: &str) -> String {
        self.keys_of(SUBNETS) + key
    }

    /// An etcd pair as an entry of the branch, or nothing if it lies elsewhere.
    fn entry(&self, branch: &str, kv: &KeyValue) -> Option<Entry> {
        let key = kv.key().strip_prefix(self.keys_of(branch).as_bytes())?;
        let term = if kv.lease() == 0 {
            Term::Reserved
        } else {
            Term::Renewed(kv.lease())
        };
        Some(Entry::new(
            String::from_utf8_lossy(key).into_owned(),
            &kv.value()[..kv.value().len().min(LONGEST)],
            kv.mod_revision().cast_unsigned(),
            term,
        ))
    }

    /// Hands every pair of a branch at one moment to `take`, and tells the revision of that moment.
    /// Read page by page: an answer larger than the client takes (4 MiB) would be none. Of a pair
    /// that does not fit alone, the key is told.
    async fn each(&self, branch: &str, mut take: impl FnMut(&KeyValue)) -> Result<i64, Error> {
        let (mut revision, mut limit) = (0, PAGE);
        let mut from = self.keys_of(branch).into_bytes();
        loop {
            let answer = match self.page(branch, &from, revision, limit).await {
                Err(Error::Refused { message, .. }) if is_too_large(&message) && limit > 0 => {
                    limit /= 2;
                    continue;
                }
                answer => answer?,
            };
            if revision == 0 {
                revision = answer.header().map_or(0, |header| header.revision());
            }
            answer.kvs().iter().for_each(&mut take);
            match answer.kvs().last() {
                Some(last) if answer.more() => from = [last.key(), &[0]].concat(),
                _ => return Ok(revision),
            }
            limit = (limit * 2).clamp(1, PAGE);
        }
    }

    /// At most `limit` pairs from the key `from` on, as they were at `revision` (zero: now). A
    /// limit of zero is the next key without its value.
    async fn page(
        &self,
        branch: &str,
        from: &[u8],
        revision: i64,
        limit: i64,
    ) -> Result<GetResponse, Error> {
        let prefix = self.keys_of(branch);
        // What follows the slash in ASCII ends the range.
        let end = format!("{}/{branch}0", self.prefix);
        let mut options = GetOptions::new()
            .with_range(end)
            .with_revision(revision)
            .with_limit(limit.max(1));
        if limit == 0 {
            options = options.with_keys_only();
        }
        self.clients
            .call(format!("listing {prefix} in etcd"), |mut client| {
                let (from, options) = (from.to_vec(), options.clone());
                async move { client.get(from, Some(options)).await }
            })
            .await
    }

    /// Whether a lease that is older than the one created at `revision` shares addresses with it.
    async fn is_overlapped(&self, key: &str, revision: i64) -> Result<bool, Error> {
        let Ok(own) = key.parse::<SubnetKey>() else {
            return Ok(false);
        };
        let overlaps = |kv: &KeyValue| {
            self.entry(SUBNETS, kv)
                .and_then(|entry| entry.key.parse::<SubnetKey>().ok())
                .is_some_and(|other| other.overlaps(&own))
        };
        let mut found = false;
        let take = |kv: &KeyValue| found |= kv.create_revision() < revision && overlaps(kv);
        self.each(SUBNETS, take).await?;
        Ok(found)
    }

    fn unchanged(&self, held: &Entry) -> Vec<Compare> {
        let path = self.path(&held.key);
        vec![
            Compare::mod_revision(path.clone(), CompareOp::Equal, held.revision.cast_signed()),
            Compare::value(path, CompareOp::Equal, held.value.clone()),
        ]
    }

    /// Writes the pair if all of `when` holds, bound to the etcd lease `id` unless that is zero,
    /// and tells the revision.
    async fn put(
        &self,
        when: Vec<Compare>,
        path: &str,
        value: &str,
        id: i64,
    ) -> Result<Option<i64>, Error> {
        let options = PutOptions::new().with_lease(id);
        let txn = Txn::new()
            .when(when)
            .and_then([TxnOp::put(path, value, Some(options))]);
        let done = self
            .clients
            .call(format!("writing {path} in etcd"), |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            });
        let done = done.await?;
        Ok(done
            .succeeded()
            .then(|| done.header().map_or(0, |header| header.revision())))
    }

    /// The lease time in whole seconds, at least one.
    fn seconds(&self) -> i64 {
        i64::try_from(self.ttl.as_secs().max(1)).unwrap_or(i64::MAX)
    }

    async fn grant(&self) -> Result<i64, Error> {
        let seconds = self.seconds();
        let granted = self
            .clients
            .call("asking etcd for a lease".into(), |mut client| async move {
                client.lease_grant(seconds, None).await
            });
        Ok(granted.await?.id())
    }

    /// Keeps an etcd lease alive once. Returns its full length in seconds; zero if the lease does
    /// not exist any more.
    async fn keep_alive(&self, id: i64) -> Result<i64, Error> {
        let kept = self.clients.call(
            "keeping the etcd lease alive".into(),
            |mut client| async move {
                let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
                keeper.keep_alive().await?;
                answers.message().await
            },
        );
        match kept.await {
            Ok(answer) => Ok(answer.map_or(0, |answer| answer.ttl())),
            // The client tells of a lease that is gone as an error of its own.
            Err(Error::Refused { message, .. }) if message.contains("lease") => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Gives up an etcd lease unless it holds a key after all: an endpoint that did not answer in
    /// time may have written it, before another one found the pair changed.
    async fn revoke_unused(&self, id: i64) {
        let asked = self
            .clients
            .call("looking at an etcd lease".into(), |mut client| async move {
                let options = LeaseTimeToLiveOptions::new().with_keys();
                client.lease_time_to_live(id, Some(options)).await
            });
        match asked.await {
            Ok(answer) if answer.keys().is_empty() => self.revoke(id).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an unused etcd lease is left to expire"),
        }
    }

    /// Gives up an etcd lease that holds nothing. If that fails it ends by itself.
    async fn revoke(&self, id: i64) {
        let revoked = self
            .clients
            .call("giving up an etcd lease".into(), |mut client| async move {
                client.lease_revoke(id).await
            });
        if let Err(error) = revoked.await {
            tracing::debug!(%error, "an unused etcd lease is left to expire");
        }
    }
}

/// Whether a write certainly has not been done. After a time-out it may have been.
fn is_not_done(put: &Result<Option<i64>, Error>) -> bool {
    matches!(put, Ok(None) | Err(Error::Refused { .. }))
}
