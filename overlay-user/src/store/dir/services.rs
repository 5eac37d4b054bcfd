//! Services and EndpointSlices in a directory, one small file each, named `NAMESPACE.NAME.json`.
//!
//! inotify names the file that changed, so that thousands of others are not read again. A look at
//! all of them now and then finds what inotify cannot tell (other machines' writes on a shared file
//! system); it reads only what looks different.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures::StreamExt as _;
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::sync::mpsc::Sender;
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::files;
use crate::service::{Kind, ObjectName};
use crate::store::news::{Body, News, Update};

/// The shortest time between two looks, and the share of the time that they may take: every file is
/// looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_SHARE: u32 = 100;
/// How often the directory is reported as alive.
const SILENCE: Duration = Duration::from_secs(10);
/// Events that come this close together are answered at once, if they are about no more files than
/// that.
const GATHER: Duration = Duration::from_millis(10);
const GATHERED: usize = 1000;

/// A file of one kind of object, by its key.
type Name = (Kind, String);

/// Tells of everything, then of every change, until the receiver is dropped.
pub(super) async fn follow(path: &Path, news: &Sender<News>) {
    let mut watched = None;
    let mut shelf = Shelf::new(path.to_owned(), news.clone());
    loop {
        // Watched before it is read, so that no change falls between. A directory that was replaced
        // is watched again; watching the same one twice changes nothing.
        if let Err(error) = watch(path, &mut watched) {
            tracing::debug!(%error, "inotify does not work here; looking now and then");
            watched = None;
        }
        let begun = Instant::now();
        if shelf.work(Shelf::look).await.is_none() {
            return;
        }
        let next = Instant::now() + (begun.elapsed() * LOOK_SHARE).max(LOOK_EVERY);
        while Instant::now() < next {
            let changed = until_event(&mut watched, next.min(Instant::now() + SILENCE)).await;
            let Some(changed) = changed else { break };
            if shelf.work(|shelf| shelf.read_all(changed)).await.is_none() {
                return;
            }
        }
    }
}

/// The files that events name until `deadline`; nothing if events are of no use, so that there must
/// be a look.
async fn until_event(watched: &mut Option<Watched>, deadline: Instant) -> Option<BTreeSet<Name>> {
    let mut changed = BTreeSet::new();
    let Some(watching) = watched else {
        tokio::time::sleep_until(deadline).await;
        return Some(changed);
    };
    let mut event = timeout_at(deadline, watching.events.next()).await;
    loop {
        match event {
            Err(_) => return Some(changed),
            _ if changed.len() >= GATHERED => return None,
            Ok(Some(Ok(event))) => match watching.file(&event) {
                Some(name) => changed.extend(name),
                None => return None,
            },
            Ok(_) => {
                *watched = None;
                return None;
            }
        }
        event = timeout(GATHER, watching.events.next()).await;
    }
}

/// The directories under inotify.
struct Watched {
    events: EventStream<[u8; 4096]>,
    directories: Vec<(Kind, WatchDescriptor)>,
}

impl Watched {
    /// The file that an event is about, if any; nothing if events were lost, or a directory was.
    fn file<S: AsRef<std::ffi::OsStr>>(&self, event: &Event<S>) -> Option<Option<Name>> {
        let is_lost = EventMask::Q_OVERFLOW | EventMask::IGNORED | EventMask::UNMOUNT;
        if event.mask.intersects(is_lost) {
            return None;
        }
        let directory = self.directories.iter().find(|(_, wd)| *wd == event.wd);
        let key = event
            .name
            .as_ref()
            .and_then(|name| files::key(name.as_ref()));
        Some(
            directory
                .zip(key)
                .map(|((kind, _), key)| (*kind, key.to_owned())),
        )
    }
}

fn watch(path: &Path, watched: &mut Option<Watched>) -> io::Result<()> {
    if watched.is_none() {
        *watched = Some(Watched {
            events: Inotify::init()?.into_event_stream([0; 4096])?,
            directories: Vec::new(),
        });
    }
    let Some(watched) = watched else {
        return Ok(());
    };
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    watched.directories.clear();
    for kind in Kind::ALL {
        let directory = path.join(kind.plural());
        fs::create_dir_all(&directory)?;
        let wd = watched.events.watches().add(directory, mask)?;
        watched.directories.push((kind, wd));
    }
    Ok(())
}

/// What tells one content of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    inode: u64,
}

impl Stamp {
    fn new(metadata: &Metadata) -> io::Result<Self> {
        Ok(Self {
            modified: metadata.modified()?,
            size: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// The files that were read. Blocking.
struct Shelf {
    path: PathBuf,
    news: Sender<News>,
    known: HashMap<Name, Stamp>,
    /// Whether all were read once.
    is_complete: bool,
}

/// Why something was not done.
enum Stop {
    Failed(String),
    /// The receiver is gone.
    Unheard,
}

impl Shelf {
    fn new(path: PathBuf, news: Sender<News>) -> Self {
        Self {
            path,
            news,
            known: HashMap::new(),
            is_complete: false,
        }
    }

    /// Does `work` away from the asynchronous threads, and tells how it went; none if nobody
    /// listens.
    async fn work(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Stop> + Send + 'static,
    ) -> Option<()> {
        let emptied = Self::new(PathBuf::new(), self.news.clone());
        let mut shelf = std::mem::replace(self, emptied);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut shelf);
            (shelf, done)
        });
        let (shelf, done) = done.await.ok()?;
        *self = shelf;
        let update = match done {
            Ok(()) => [Update::Alive, Update::Alive],
            Err(Stop::Failed(why)) => [Update::Unreachable(why.clone()), Update::Unreachable(why)],
            Err(Stop::Unheard) => return None,
        };
        for (kind, update) in Kind::ALL.into_iter().zip(update) {
            self.news.send(News { kind, update }).await.ok()?;
        }
        Some(())
    }

    /// Looks at every file, and reads those that look different.
    fn look(&mut self) -> Result<(), Stop> {
        let is_first = !self.is_complete;
        if is_first {
            // A list that broke off is told from its beginning.
            self.known.clear();
        }
        for kind in Kind::ALL {
            if is_first {
                self.tell(kind, Update::Begin)?;
            }
            let directory = self.path.join(kind.plural());
            let failed = |error: io::Error| {
                Stop::Failed(format!("listing {}: {error}", directory.display()))
            };
            let mut seen = BTreeSet::new();
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                if let Some(key) = files::key(&name) {
                    seen.insert((kind, key.to_owned()));
                }
            }
            let known = self.known.keys().filter(|(of, _)| *of == kind);
            seen.extend(known.cloned());
            self.read_all(seen)?;
            if is_first {
                self.tell(kind, Update::Complete)?;
            }
        }
        self.is_complete = true;
        Ok(())
    }

    /// Reads those of the files that look different.
    fn read_all(&mut self, names: BTreeSet<Name>) -> Result<(), Stop> {
        for name in names {
            self.read(name)?;
        }
        Ok(())
    }

    fn read(&mut self, name: Name) -> Result<(), Stop> {
        let (kind, key) = &name;
        let kind = *kind;
        let path = self.path.join(kind.plural()).join(format!("{key}.json"));
        let object = ObjectName::from_key(key);
        let failed =
            |error: io::Error| Stop::Failed(format!("reading {}: {error}", path.display()));
        let opened = files::open(&path).map_err(failed)?;
        let Some((file, metadata)) = opened.filter(|(_, metadata)| metadata.is_file()) else {
            return match self.known.remove(&name) {
                Some(_) => self.tell(kind, Update::Gone(object)),
                None => Ok(()),
            };
        };
        let stamp = Stamp::new(&metadata).map_err(failed)?;
        if self.known.get(&name) == Some(&stamp) {
            return Ok(());
        }
        let json = files::content(file).map_err(failed)?;
        let body = Body::parse(kind, &object, &json);
        self.tell(kind, Update::Put(object, body))?;
        self.known.insert(name, stamp);
        Ok(())
    }

    fn tell(&self, kind: Kind, update: Update) -> Result<(), Stop> {
        let update = self.news.blocking_send(News { kind, update });
        update.map_err(|_| Stop::Unheard)
    }
}
