//! Services and EndpointSlices in etcd: `<prefix>/services/<namespace>.<name>` and
//! `<prefix>/endpointslices/<namespace>.<name>`.

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{Etcd, follow};
use crate::service::{Kind, ObjectName};
use crate::store::entry::EntryChange;
use crate::store::news::{Body, News, Update};

/// Changes that may wait between a watch and whoever reads JSON.
const QUEUE: usize = 64;

/// Tells of everything, then of every change, until the receiver is dropped.
pub(super) async fn follow(etcd: &Etcd, news: &Sender<News>) {
    let one = async |kind: Kind| {
        let (sender, changes) = mpsc::channel(QUEUE);
        tokio::select! {
            () = follow::follow(etcd, kind.plural(), &sender) => {}
            () = pass_on(kind, changes, news) => {}
        }
    };
    tokio::join!(one(Kind::Service), one(Kind::Slice));
}

/// Reads what the watch tells of, until the receiver is dropped.
async fn pass_on(kind: Kind, mut changes: Receiver<EntryChange>, news: &Sender<News>) {
    while let Some(change) = changes.recv().await {
        if tell(kind, change, news).await.is_none() {
            return;
        }
    }
}

async fn tell(kind: Kind, change: EntryChange, news: &Sender<News>) -> Option<()> {
    let tell = async |update| news.send(News { kind, update }).await.ok();
    let put = |key: &str, json: &[u8]| {
        let name = ObjectName::from_key(key);
        let body = Body::parse(kind, &name, json);
        Update::Put(name, body)
    };
    match change {
        EntryChange::All(listing) => {
            tell(Update::Begin).await?;
            for entry in listing.entries {
                tell(put(&entry.key, &entry.value)).await?;
            }
            tell(Update::Complete).await
        }
        EntryChange::Put(entry) => tell(put(&entry.key, &entry.value)).await,
        EntryChange::Gone { key, .. } => tell(Update::Gone(ObjectName::from_key(&key))).await,
        EntryChange::Alive => tell(Update::Alive).await,
        EntryChange::Unreachable(why) => tell(Update::Unreachable(why)).await,
    }
}
