//! A watch of all Nodes that outlives broken connections, restarts of the API server and
//! compaction.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt as _;
use kube::core::WatchEvent;
use kube::core::params::WatchParams;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

use super::Kube;
use super::client::Failure;
use super::node::Node;
use super::nodes::Nodes;
use crate::store::entry::Change;

/// Pauses between attempts, shortest and longest, each stretched by chance: all nodes of a cluster
/// lose the API server at the same moment.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often a watch that brings nothing is reported as alive. The connection is probed by TCP.
const SILENCE: Duration = Duration::from_secs(10);
/// What is known is written down as soon as it changes, but not more often than this, and in no
/// more than this share of the time: all of it is written.
const RECORD_EVERY: Duration = Duration::from_secs(1);
const RECORD_SHARE: u32 = 100;
/// The server ends a watch after so many seconds, drawn by chance, so that not all nodes of a
/// cluster come back at once. kube allows no more than 294.
const LENGTH: std::ops::Range<u32> = 200..290;

/// Why a watch ended.
enum End {
    /// The server ended it in good order; go on from the same place.
    Over,
    /// Go on from the same place, after a while.
    Broken(String),
    /// The place is no longer there.
    Lost(String),
    /// Nobody listens.
    Unheard,
}

/// What is known of the Nodes, and up to which place.
struct Follower<'a> {
    kube: &'a Kube,
    changes: &'a Sender<Change>,
    nodes: Nodes,
    /// Where to go on; none while a list is due.
    place: Option<String>,
    /// Whether the server can send a list as a watch (Kubernetes 1.32; by default since 1.34).
    streams: bool,
    told: Instant,
    /// Whether what was known last has been told, because there was no list.
    recalled: bool,
    /// Whether what is written down is not what is known, and when it may be written again.
    record_is_old: bool,
    next_record: Instant,
}

/// Tells of everything, then of every change, until nobody listens.
pub(super) async fn follow(kube: &Kube, changes: &Sender<Change>) {
    let own = match kube.name_when_known(changes).await {
        Some(own) => own,
        None => return,
    };
    let mut follower = Follower {
        kube,
        changes,
        nodes: Nodes::new(kube.names.clone(), own),
        place: None,
        streams: true,
        told: Instant::now(),
        recalled: false,
        record_is_old: false,
        next_record: Instant::now(),
    };
    let mut pauses = pauses();
    loop {
        let mut heard = false;
        let end = follower.once(&mut heard).await;
        if heard {
            pauses = self::pauses();
        }
        match end {
            End::Unheard => return,
            End::Over => continue,
            End::Broken(why) => {
                if changes.send(Change::Unreachable(why)).await.is_err() {
                    return;
                }
                if let Err(End::Unheard) = follower.recall().await {
                    return;
                }
                follower.record();
            }
            End::Lost(why) => {
                tracing::info!(why, "listing all nodes anew");
                follower.place = None;
            }
        }
        sleep(pauses.next().unwrap_or(PAUSE.1)).await;
    }
}

/// The pauses of one outage.
fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE.0)
        .with_max_delay(PAUSE.1)
        .without_max_times()
        .with_jitter()
        .build()
}

impl Follower<'_> {
    /// One list, if due, and one watch until it ends. `heard` becomes true once the server
    /// answered.
    async fn once(&mut self, heard: &mut bool) -> End {
        if self.place.is_none() && !self.streams {
            match self.list().await {
                Ok(()) => *heard = true,
                Err(end) => return end,
            }
        }
        let is_list = self.place.is_none();
        let length = rand::random_range(LENGTH);
        let mut how = WatchParams::default().timeout(length);
        if is_list {
            how = how.initial_events();
        }
        let place = self.place.as_deref().unwrap_or_default();
        let opened = match self.kube.nodes().watch(&how, place) {
            Ok(request) => self.kube.api.watch::<Node>(request).await,
            Err(error) => return End::Broken(error.to_string()),
        };
        let mut stream = match opened {
            Ok(stream) => Box::pin(stream),
            // A server from before streaming lists says that the parameter is forbidden.
            Err(failure) if is_list && (failure.is(422) || failure.is(400)) => {
                tracing::debug!("the API server cannot stream a list; reading it page by page");
                self.streams = false;
                return End::Over;
            }
            Err(failure) => return self.end_of(failure),
        };
        *heard = true;
        if is_list {
            self.begin_list();
        } else if let Err(end) = self.tell([Change::Alive]).await {
            return end;
        }
        let mut listing = is_list;
        loop {
            self.record();
            let event = match timeout(self.patience(), stream.next()).await {
                Err(_) if listing => return End::Broken("the list of nodes came to a halt".into()),
                Err(_) if self.told.elapsed() < SILENCE => continue,
                Err(_) => {
                    if let Err(end) = self.tell([Change::Alive]).await {
                        return end;
                    }
                    continue;
                }
                Ok(None) if listing => return End::Broken("the list of nodes broke off".into()),
                Ok(None) => return End::Over,
                Ok(Some(Err(failure))) => return self.end_of(failure),
                Ok(Some(Ok(event))) => event,
            };
            if let Err(end) = self.take(event, &mut listing).await {
                return end;
            }
        }
    }

    /// Takes in one event; while `listing`, nothing is told until all is known.
    async fn take(&mut self, event: WatchEvent<Node>, listing: &mut bool) -> Result<(), End> {
        let changes = match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                let before = self.nodes.node_public_ip();
                let changes = self.nodes.put(&node);
                self.record_is_old |= before != self.nodes.node_public_ip();
                self.pass(&node, *listing);
                changes
            }
            WatchEvent::Deleted(node) => {
                let changes = self.nodes.remove(&node.metadata.name, node.revision());
                self.pass(&node, *listing);
                changes
            }
            WatchEvent::Bookmark(bookmark) => {
                let meta = bookmark.metadata;
                let ends_list = meta.annotations.contains_key("k8s.io/initial-events-end");
                let revision = meta.resource_version.parse().unwrap_or_default();
                if *listing && !ends_list {
                    return Ok(());
                }
                self.place = Some(meta.resource_version);
                if !*listing {
                    return self.tell([Change::Alive]).await;
                }
                *listing = false;
                self.end_list();
                vec![Change::All(self.nodes.snapshot(revision))]
            }
            WatchEvent::Error(status) => {
                return Err(self.end_of(Failure::from(kube::Error::Api(status))));
            }
        };
        if *listing {
            return Ok(());
        }
        self.record_is_old |= !changes.is_empty();
        self.kube.note_rival(self.nodes.rival());
        if changes.is_empty() && self.told.elapsed() < SILENCE {
            return Ok(());
        }
        self.tell(changes.into_iter().chain([Change::Alive])).await
    }

    /// Goes on from here if the watch breaks off, unless it was a list.
    fn pass(&mut self, node: &Node, listing: bool) {
        if !listing {
            self.place = Some(node.metadata.resource_version.clone());
        }
    }

    async fn list(&mut self) -> Result<(), End> {
        self.begin_list();
        let nodes = &mut self.nodes;
        let listed = self.kube.each(|node| {
            nodes.put(node);
        });
        let place = match listed.await {
            Ok(place) => place,
            Err(failure) => return Err(self.end_of(failure)),
        };
        let revision = place.parse().unwrap_or_default();
        self.kube.note_rival(self.nodes.rival());
        let all = Change::All(self.nodes.snapshot(revision));
        self.place = Some(place);
        self.end_list();
        self.tell([all]).await
    }

    fn begin_list(&mut self) {
        self.nodes.clear();
        // Half of a list is not worth writing down.
        self.record_is_old = false;
    }

    fn end_list(&mut self) {
        self.record_is_old = true;
        self.kube.memory.let_go();
    }

    /// Tells what was known last, once, in place of a list that the server does not give.
    async fn recall(&mut self) -> Result<(), End> {
        match self.kube.memory.recall().filter(|_| !self.recalled) {
            Some(recalled) => {
                self.recalled = true;
                self.tell([Change::All(recalled.snapshot())]).await
            }
            None => Ok(()),
        }
    }

    /// How long to wait for the next event: until something else is due.
    fn patience(&self) -> Duration {
        if self.record_is_old {
            let due = self.next_record.saturating_duration_since(Instant::now());
            return due.min(SILENCE);
        }
        SILENCE
    }

    /// Writes down what is known, if it is due.
    fn record(&mut self) {
        let begun = Instant::now();
        if !self.record_is_old || begun < self.next_record {
            return;
        }
        self.record_is_old = false;
        let (nodes, memory) = (&self.nodes, &self.kube.memory);
        memory.write(nodes.own(), nodes.node_public_ip(), &nodes.snapshot(0));
        let spent = begun.elapsed() * RECORD_SHARE;
        self.next_record = begun + spent.max(RECORD_EVERY);
    }

    async fn tell(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), End> {
        self.told = Instant::now();
        for change in changes {
            self.changes.send(change).await.map_err(|_| End::Unheard)?;
        }
        Ok(())
    }

    fn end_of(&self, failure: Failure) -> End {
        // Gone: compacted meanwhile, or a page of a list that is too old.
        if failure.is(410) {
            return End::Lost("the place in the watch is no longer known".into());
        }
        End::Broken(failure.of("watching nodes").to_string())
    }
}
