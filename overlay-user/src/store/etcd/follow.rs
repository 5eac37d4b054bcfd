//! A watch that outlives broken connections, lost leaders, compaction and a restored cluster.

use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::Etcd;
use super::client::{DEADLINE, is_too_large};
use crate::store::Error;
use crate::store::entry::{EntryChange, Listing};

/// Pauses between attempts, shortest and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest silence of a watch before etcd is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(10);

/// Why a watch ended.
enum End {
    /// The connection broke; the next watch continues at the same revision.
    Broken(String),
    /// The watch cannot continue at its revision: the revision was compacted, the cluster was
    /// restored from an older state, or the answer is too large.
    Lost(String),
    /// The receiver has been dropped.
    Unheard,
}

/// Tells of everything in a branch, then of every change, until the receiver is dropped.
pub(super) async fn follow(etcd: &Etcd, branch: &str, changes: &Sender<EntryChange>) {
    // The last revision heard of, perhaps not all of it; none while a listing is due.
    let mut heard_of = None;
    let mut pause = PAUSE.0;
    loop {
        let mut heard = false;
        match once(etcd, branch, changes, &mut heard_of, &mut heard).await {
            End::Unheard => return,
            End::Broken(why) => {
                if changes.send(EntryChange::Unreachable(why)).await.is_err() {
                    return;
                }
            }
            End::Lost(why) => {
                tracing::info!(why, "listing all {branch} anew");
                heard_of = None;
            }
        }
        if heard {
            pause = PAUSE.0;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One listing, if due, and one watch until it ends.
async fn once(
    etcd: &Etcd,
    branch: &str,
    changes: &Sender<EntryChange>,
    heard_of: &mut Option<i64>,
    heard: &mut bool,
) -> End {
    let from = match *heard_of {
        Some(from) => from,
        None => match etcd.list_all(branch).await {
            Ok(listing) => {
                let from = listing.revision.cast_signed();
                if changes.send(EntryChange::All(listing)).await.is_err() {
                    return End::Unheard;
                }
                *heard_of = Some(from);
                from
            }
            Err(error) => return End::Broken(error.to_string()),
        },
    };
    let mut stream = match open(etcd, branch, from).await {
        Ok(stream) => stream,
        Err(error) => return End::Broken(error.to_string()),
    };
    loop {
        let answer = match hear(etcd, &mut stream).await {
            Ok(answer) => answer,
            Err(why) => {
                return if is_compaction(&why) || is_too_large(&why) {
                    End::Lost(why)
                } else {
                    End::Broken(why)
                };
            }
        };
        if answer.compact_revision() > 0 {
            return End::Lost("the watched revision has been compacted".into());
        }
        if answer.canceled() {
            return End::Broken(format!("etcd ended the watch: {}", answer.cancel_reason()));
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        if revision > 0 && heard_of.is_some_and(|last| revision < last) {
            return match restart(etcd, branch, changes).await {
                Ok(()) => End::Lost("etcd's revision went back".into()),
                Err(end) => end,
            };
        }
        *heard = true;
        if let Err(end) = tell(etcd, branch, changes, &answer, heard_of).await {
            return end;
        }
    }
}

/// A watch that begins with the changes of the revision `from`: a part of them may have been heard
/// already, since etcd cuts what is too large for one answer anywhere (fragments).
async fn open(etcd: &Etcd, branch: &str, from: i64) -> Result<WatchStream, Error> {
    let prefix = etcd.keys_of(branch);
    etcd.clients
        .call(format!("watching {prefix} in etcd"), |mut client| {
            let prefix = prefix.clone();
            let options = WatchOptions::new()
                .with_prefix()
                .with_start_revision(from)
                .with_progress_notify()
                .with_fragment();
            async move { client.watch(prefix, Some(options)).await }
        })
        .await
}

/// The next answer. After a long silence etcd is asked for one; a watch that stays silent is
/// broken.
async fn hear(etcd: &Etcd, stream: &mut WatchStream) -> Result<WatchResponse, String> {
    let patience = (etcd.ttl / 6).clamp(Duration::from_secs(1), SILENCE);
    let ended = || "etcd closed the watch".to_owned();
    if let Ok(answer) = timeout(patience, stream.message()).await {
        return answer.map_err(|error| error.to_string())?.ok_or_else(ended);
    }
    stream
        .request_progress()
        .await
        .map_err(|error| error.to_string())?;
    match timeout(DEADLINE, stream.message()).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?.ok_or_else(ended),
        Err(_) => Err("the watch of etcd is silent".into()),
    }
}

/// Passes the answer's events on. Only they move `heard_of`: some versions of etcd report progress
/// that runs ahead of events still to come (etcd issue 15220).
async fn tell(
    etcd: &Etcd,
    branch: &str,
    changes: &Sender<EntryChange>,
    answer: &WatchResponse,
    heard_of: &mut Option<i64>,
) -> Result<(), End> {
    let mut told = EntryChange::Alive;
    for event in answer.events() {
        let Some(kv) = event.kv() else { continue };
        let Some(entry) = etcd.entry(branch, kv) else {
            continue;
        };
        let change = match event.event_type() {
            EventType::Put => EntryChange::Put(entry),
            EventType::Delete => EntryChange::Gone {
                key: entry.key,
                revision: entry.revision,
            },
        };
        changes
            .send(std::mem::replace(&mut told, change))
            .await
            .map_err(|_| End::Unheard)?;
        *heard_of = (*heard_of).max(Some(kv.mod_revision()));
    }
    changes.send(told).await.map_err(|_| End::Unheard)
}

/// Lists once more with a revision above all others, so that nothing of the lost future stays.
async fn restart(etcd: &Etcd, branch: &str, changes: &Sender<EntryChange>) -> Result<(), End> {
    let listing = etcd
        .list_all(branch)
        .await
        .map_err(|error| End::Broken(error.to_string()))?;
    let all = EntryChange::All(Listing {
        revision: u64::MAX,
        ..listing
    });
    changes.send(all).await.map_err(|_| End::Unheard)
}

fn is_compaction(why: &str) -> bool {
    why.contains("has been compacted")
}
