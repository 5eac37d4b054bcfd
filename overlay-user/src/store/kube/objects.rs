//! A watch of all objects of one kind that outlives broken connections, restarts of the API server
//! and compaction.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt as _;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Api, Failure};

/// Pauses between attempts, shortest and longest, each stretched by chance: all nodes of a cluster
/// lose the API server at the same moment.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often a watch that brings nothing is reported as alive. The connection is probed by TCP.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// The server ends a watch after so many seconds, drawn by chance, so that not all nodes of a
/// cluster come back at once. kube allows no more than 294.
const LENGTH: std::ops::Range<u32> = 200..290;
/// Objects of one page of a list. A Node takes 6 kB of JSON and more.
const PAGE: u32 = 100;

/// A kind of object of the API.
pub(super) trait Object: DeserializeOwned + Clone + Send + 'static {
    /// The API server's count at the last change.
    fn resource_version(&self) -> &str;
}

/// The kind of object that is watched.
pub(super) struct Resource {
    /// What the objects are called in messages.
    pub name: &'static str,
    /// Paths of the collection, of which each version of Kubernetes serves one or more; the first
    /// is preferred.
    pub paths: &'static [&'static str],
    /// Label selector; all objects without one.
    pub labels: Option<&'static str>,
}

/// An event of a watch. In order: a list, then changes, until there has to be another list.
pub(super) enum ObjectEvent<T> {
    /// A list of everything begins.
    Begin,
    /// One object of the list.
    Listed(T),
    /// The list is complete, at the server's count.
    Complete(u64),
    /// One object is new or different.
    Changed(T),
    /// One object has been removed.
    Gone(T),
    /// The server answered without a change.
    Alive,
    /// The server does not answer; the watch goes on trying.
    Unreachable(String),
}

/// The receiver has been dropped.
pub(super) struct Unheard;

/// The receiver of a watch's events.
pub(super) trait Listener {
    /// The kind of object that is watched.
    type Object: Object;

    /// Takes an event in.
    fn hear(
        &mut self,
        event: ObjectEvent<Self::Object>,
    ) -> impl Future<Output = Result<(), Unheard>> + Send;

    /// Does the work that is due; returns the time until more may be due.
    fn rest(&mut self) -> Duration {
        SILENCE
    }
}

/// Why a watch ended.
enum End {
    /// The server ended it in good order; go on from the same place.
    Over,
    /// Go on from the same place, after a while.
    Broken(String),
    /// The place is no longer there.
    Lost(String),
    /// The receiver has been dropped.
    Unheard,
}

impl From<Unheard> for End {
    fn from(Unheard: Unheard) -> Self {
        Self::Unheard
    }
}

/// A page of a list.
#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    items: Vec<T>,
}

/// See the API's `ListMeta`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// A list that is read page by page, all of one moment.
pub(super) struct Pages {
    path: &'static str,
    how: ListParams,
    /// The place of that moment in a watch, once the last page was read.
    pub place: Option<String>,
}

impl Resource {
    /// A list of all objects.
    pub fn pages(&self, path: &'static str) -> Pages {
        let mut how = ListParams::default().limit(PAGE);
        how.label_selector = self.labels.map(str::to_owned);
        let place = None;
        Pages { path, how, place }
    }
}

impl Pages {
    /// The objects of the next page; none after the last.
    pub async fn next<T: Object>(&mut self, api: &Api) -> Result<Option<Vec<T>>, Failure> {
        if self.place.is_some() {
            return Ok(None);
        }
        let request = Request::new(self.path)
            .list(&self.how)
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let page: Page<T> = api.call(request).await?;
        match page.metadata.next.filter(|token| !token.is_empty()) {
            Some(token) => self.how.continue_token = Some(token),
            None => self.place = Some(page.metadata.resource_version),
        }
        Ok(Some(page.items))
    }
}

/// A watch, and how far it got.
struct Watch<'a, L> {
    api: &'a Api,
    resource: &'a Resource,
    listener: L,
    /// Which of the resource's paths the server knows.
    path: usize,
    /// Where to go on; none while a list is due.
    place: Option<String>,
    /// Whether the server can send a list as a watch (Kubernetes 1.32; by default since 1.34).
    streams: bool,
    /// When the listener last heard something.
    told: Instant,
}

/// Tells of everything, then of every change, until the receiver is dropped.
pub(super) async fn watch<L: Listener>(api: &Api, resource: &Resource, listener: L) {
    let mut watch = Watch {
        api,
        resource,
        listener,
        path: 0,
        place: None,
        streams: true,
        told: Instant::now(),
    };
    let mut pauses = pauses();
    loop {
        let mut heard = false;
        let end = watch.once(&mut heard).await;
        if heard {
            pauses = self::pauses();
        }
        match end {
            End::Unheard => return,
            End::Over => continue,
            End::Broken(why) => {
                if watch.tell(ObjectEvent::Unreachable(why)).await.is_err() {
                    return;
                }
                watch.listener.rest();
            }
            End::Lost(why) => {
                tracing::info!(why, "listing all {} anew", resource.name);
                watch.place = None;
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

impl<L: Listener> Watch<'_, L> {
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
        how.label_selector = self.resource.labels.map(str::to_owned);
        if is_list {
            how = how.initial_events();
        }
        let place = self.place.as_deref().unwrap_or_default();
        let opened = match Request::new(self.path()).watch(&how, place) {
            Ok(request) => self.api.watch::<L::Object>(request).await,
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
        let opening = if is_list {
            ObjectEvent::Begin
        } else {
            ObjectEvent::Alive
        };
        if let Err(Unheard) = self.tell(opening).await {
            return End::Unheard;
        }
        let mut listing = is_list;
        loop {
            let patience = if listing {
                SILENCE
            } else {
                self.listener.rest()
            };
            let event = match timeout(patience, stream.next()).await {
                Err(_) if listing => {
                    return End::Broken(format!(
                        "the list of {} came to a halt",
                        self.resource.name
                    ));
                }
                Err(_) => None,
                Ok(None) if listing => {
                    return End::Broken(format!("the list of {} broke off", self.resource.name));
                }
                Ok(None) => return End::Over,
                Ok(Some(Err(failure))) => return self.end_of(failure),
                Ok(Some(Ok(event))) => Some(event),
            };
            let taken = match event {
                Some(event) => self.take(event, &mut listing).await,
                None => Ok(()),
            };
            if let Err(end) = taken {
                return end;
            }
            // What changed may have been of no interest.
            if !listing
                && self.told.elapsed() >= SILENCE
                && let Err(Unheard) = self.tell(ObjectEvent::Alive).await
            {
                return End::Unheard;
            }
        }
    }

    async fn take(&mut self, event: WatchEvent<L::Object>, listing: &mut bool) -> Result<(), End> {
        let event = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if *listing => {
                ObjectEvent::Listed(object)
            }
            // Goes on from here if the watch breaks off, unless it was a list.
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.place = Some(object.resource_version().to_owned());
                ObjectEvent::Changed(object)
            }
            WatchEvent::Deleted(object) => {
                if !*listing {
                    self.place = Some(object.resource_version().to_owned());
                }
                ObjectEvent::Gone(object)
            }
            WatchEvent::Bookmark(bookmark) => {
                let meta = bookmark.metadata;
                let ends_list = meta.annotations.contains_key("k8s.io/initial-events-end");
                let revision = meta.resource_version.parse().unwrap_or_default();
                if *listing && !ends_list {
                    return Ok(());
                }
                self.place = Some(meta.resource_version);
                if *listing {
                    *listing = false;
                    ObjectEvent::Complete(revision)
                } else {
                    ObjectEvent::Alive
                }
            }
            WatchEvent::Error(status) => {
                return Err(self.end_of(Failure::from(kube::Error::Api(status))));
            }
        };
        match event {
            ObjectEvent::Alive | ObjectEvent::Complete(_) => self.tell(event).await?,
            event => self.listener.hear(event).await?,
        }
        Ok(())
    }

    async fn list(&mut self) -> Result<(), End> {
        self.listener.hear(ObjectEvent::Begin).await?;
        let mut pages = self.resource.pages(self.path());
        loop {
            match pages.next(self.api).await {
                Ok(Some(objects)) => {
                    for object in objects {
                        self.listener.hear(ObjectEvent::Listed(object)).await?;
                    }
                }
                Ok(None) => break,
                Err(failure) => return Err(self.end_of(failure)),
            }
        }
        let place = pages.place.unwrap_or_default();
        let revision = place.parse().unwrap_or_default();
        self.place = Some(place);
        Ok(self.tell(ObjectEvent::Complete(revision)).await?)
    }

    async fn tell(&mut self, event: ObjectEvent<L::Object>) -> Result<(), Unheard> {
        self.told = Instant::now();
        self.listener.hear(event).await
    }

    fn path(&self) -> &'static str {
        self.resource.paths[self.path]
    }

    fn end_of(&mut self, failure: Failure) -> End {
        // Gone: compacted meanwhile, or a page of a list that is too old.
        if failure.is(410) {
            return End::Lost("the place in the watch is no longer known".into());
        }
        // Not known: the server is of another version than the path, perhaps since a moment ago.
        if failure.is(404) {
            self.path = (self.path + 1) % self.resource.paths.len();
            self.place = None;
        }
        let call = format!("watching {}", self.resource.name);
        End::Broken(failure.of(call).to_string())
    }
}
