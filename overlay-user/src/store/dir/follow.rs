//! A watch of the directory: inotify tells at once, a look now and then tells what inotify cannot
//! (ended terms, other machines' writes on a shared file system).

use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::Dir;
use super::files::directory;
use crate::store::entry::{EntryChange, Term};

/// Longest and shortest time between two looks.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Events that come this close together are answered by one look.
const GATHER: Duration = Duration::from_millis(10);

/// Tells of everything, again whenever something may have changed, until the receiver is dropped.
pub(super) async fn follow(dir: &Dir, changes: &Sender<EntryChange>) {
    let look_every = (dir.ttl / 4).clamp(LOOK_EVERY.0, LOOK_EVERY.1);
    let mut events = None;
    loop {
        // Watched before it is read, so that no change falls between. A directory that was replaced
        // is watched again; watching the same one twice changes nothing.
        if let Err(error) = watch(dir, &mut events) {
            tracing::debug!(%error, "inotify does not work here; looking now and then");
            events = None;
        }
        let told = match dir.list().await {
            Ok(listing) => EntryChange::All(listing),
            Err(error) => EntryChange::Unreachable(error.to_string()),
        };
        if changes.send(told).await.is_err() {
            return;
        }
        match &mut events {
            Some(events) => {
                if timeout(look_every, events.next()).await.is_ok() {
                    sleep(GATHER).await;
                }
            }
            None => sleep(look_every).await,
        }
    }
}

fn watch(dir: &Dir, events: &mut Option<EventStream<[u8; 4096]>>) -> io::Result<()> {
    if events.is_none() {
        *events = Some(Inotify::init()?.into_event_stream([0; 4096])?);
    }
    let Some(events) = events else { return Ok(()) };
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB;
    for term in [Term::Renewed(0), Term::Reserved] {
        match events.watches().add(dir.path.join(directory(term)), mask) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
