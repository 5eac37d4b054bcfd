//! Leases in a directory, one small file each: the store that needs no server.
//!
//! ```text
//! PATH/config                        the network configuration
//! PATH/subnets/10.5.34.0-24.json     a lease; it ends a lease time after its file was last touched
//! PATH/static/10.5.35.0-24.json      a reservation, or a peer placed by hand; never ends
//! PATH/lock                          held (flock) while a lease is read or written
//! PATH/services/shop.web.json        a Service, where this node is asked for them
//! PATH/endpointslices/shop.web-1.json   some of a Service's servers
//! ```
//!
//! A lease's file holds the same JSON as a value in etcd. Where both directories have a key,
//! `static` wins. All nodes must use the same lease time and clocks that agree.

mod files;
mod follow;
mod services;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use self::files::Files;
use super::entry::{Entry, EntryChange, Listing, Term};
use super::news::News;
use super::{Error, config_file};
use crate::lease::SubnetKey;

/// A directory of leases.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    ttl: Duration,
    /// Number of listings and writes by this process, counted under the lock; the source of
    /// entries' revisions.
    count: Arc<AtomicU64>,
}

impl Dir {
    pub fn new(path: PathBuf, ttl: Duration) -> Self {
        Self {
            path,
            ttl,
            count: Arc::default(),
        }
    }

    pub async fn config(&self) -> Result<String, Error> {
        config_file(&self.path.join("config")).await
    }

    pub async fn list(&self) -> Result<Listing, Error> {
        self.locked("listing", |files, revision| {
            let entries = files.scan()?;
            let entries = entries
                .into_iter()
                .map(|it| it.into_entry(revision))
                .collect();
            Ok(Listing {
                entries,
                revision,
                as_of: None,
            })
        })
        .await
    }

    pub async fn create(&self, key: &str, value: &str) -> Result<Option<Entry>, Error> {
        let term = Term::Renewed(0);
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        self.locked("creating a lease in", move |files, revision| {
            let own: Option<SubnetKey> = key.parse().ok();
            let taken = files.scan()?.iter().any(|other| {
                other.key == key
                    || own.is_some_and(|own| {
                        other
                            .key
                            .parse::<SubnetKey>()
                            .is_ok_and(|it| it.overlaps(&own))
                    })
            });
            if taken {
                return Ok(None);
            }
            files.write(&key, term, &value)?;
            Ok(Some(Entry::new(key, value, revision, term)))
        })
        .await
    }

    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        let (held, value) = (held.clone(), value.as_bytes().to_vec());
        self.locked("writing a lease in", move |files, revision| {
            if !files.holds(&held)? {
                return Ok(None);
            }
            files.write(&held.key, held.term, &value)?;
            Ok(Some(Entry {
                value,
                revision,
                ..held
            }))
        })
        .await
    }

    pub async fn renew(&self, held: &Entry) -> Result<bool, Error> {
        let held = held.clone();
        self.locked("renewing a lease in", move |files, _| {
            let ours = files.holds(&held)?;
            if ours && held.term != Term::Reserved {
                files.touch(&held.key)?;
            }
            Ok(ours)
        })
        .await
    }

    pub async fn remove(&self, held: &Entry) -> Result<bool, Error> {
        let held = held.clone();
        self.locked("removing a lease from", move |files, _| {
            let ours = files.holds(&held)?;
            if ours {
                files.remove(&held)?;
            }
            Ok(ours)
        })
        .await
    }

    pub async fn watch(&self, changes: mpsc::Sender<EntryChange>) {
        follow::follow(self, &changes).await;
    }

    /// Tells of every Service and EndpointSlice, until the receiver is dropped.
    pub async fn watch_services(&self, news: mpsc::Sender<News>) {
        services::follow(&self.path, &news).await;
    }

    /// Does `work` with the lock held, away from the asynchronous threads, and gives it the next
    /// number of the count.
    async fn locked<T: Send + 'static>(
        &self,
        call: &str,
        work: impl FnOnce(&Files, u64) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (path, ttl, count) = (self.path.clone(), self.ttl, Arc::clone(&self.count));
        let done = tokio::task::spawn_blocking(move || {
            let files = Files::lock(&path, ttl)?;
            let revision = count.fetch_add(1, Ordering::Relaxed) + 1;
            work(&files, revision)
        });
        let failed = |message: String| Error::Unreachable {
            call: self.describe(call),
            message,
        };
        done.await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))
    }

    fn describe(&self, call: &str) -> String {
        format!("{call} {}", Path::display(&self.path))
    }
}
