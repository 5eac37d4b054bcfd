//! What the keeper hears of the Nodes.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::Kube;
use super::node::Node;
use super::nodes::Nodes;
use super::objects::{self, Listener, ObjectEvent, Resource, SILENCE, Unheard};
use crate::store::entry::EntryChange;

/// What is known is written down as soon as it changes, but not more often than this, and in no
/// more than this share of the time: all of it is written.
const RECORD_EVERY: Duration = Duration::from_secs(1);
const RECORD_SHARE: u32 = 100;

/// All Nodes.
pub(super) const NODES: Resource = Resource {
    name: "nodes",
    paths: &[super::NODES],
    labels: None,
};

/// What is known of the Nodes.
struct NodeFollower<'a> {
    kube: &'a Kube,
    changes: &'a Sender<EntryChange>,
    nodes: Nodes,
    /// Whether what was known last has been told, because there was no list.
    recalled: bool,
    /// Whether what is written down is not what is known, and when it may be written again.
    record_is_old: bool,
    next_record: Instant,
}

/// Tells of everything, then of every change, until the receiver is dropped.
pub(super) async fn follow(kube: &Kube, changes: &Sender<EntryChange>) {
    let Some(own) = kube.name_when_known(changes).await else {
        return;
    };
    let follower = NodeFollower {
        kube,
        changes,
        nodes: Nodes::new(kube.names.clone(), own),
        recalled: false,
        record_is_old: false,
        next_record: Instant::now(),
    };
    objects::watch(&kube.api, &NODES, follower).await;
}

impl Listener for NodeFollower<'_> {
    type Object = Node;

    async fn hear(&mut self, event: ObjectEvent<Node>) -> Result<(), Unheard> {
        match event {
            ObjectEvent::Begin => {
                self.nodes.clear();
                // Half of a list is not worth writing down.
                self.record_is_old = false;
                Ok(())
            }
            ObjectEvent::Listed(node) => {
                self.nodes.put(&node);
                Ok(())
            }
            ObjectEvent::Complete(revision) => {
                self.record_is_old = true;
                self.kube.memory.let_go();
                self.note_own();
                let all = EntryChange::All(self.nodes.listing(revision));
                self.tell([all]).await
            }
            ObjectEvent::Changed(node) => {
                let before = self.nodes.node_public_ip();
                let changes = self.nodes.put(&node);
                self.record_is_old |= before != self.nodes.node_public_ip();
                self.pass_on(changes).await
            }
            ObjectEvent::Gone(node) => {
                let changes = self.nodes.remove(&node.metadata.name, node.revision());
                self.pass_on(changes).await
            }
            ObjectEvent::Alive => self.tell([EntryChange::Alive]).await,
            ObjectEvent::Unreachable(why) => {
                self.tell([EntryChange::Unreachable(why)]).await?;
                self.recall().await
            }
        }
    }

    /// Writes down what is known, if it is due.
    fn rest(&mut self) -> Duration {
        self.record();
        if self.record_is_old {
            let due = self.next_record.saturating_duration_since(Instant::now());
            return due.min(SILENCE);
        }
        SILENCE
    }
}

impl NodeFollower<'_> {
    async fn pass_on(&mut self, changes: Vec<EntryChange>) -> Result<(), Unheard> {
        self.record_is_old |= !changes.is_empty();
        self.note_own();
        if changes.is_empty() {
            return Ok(());
        }
        self.tell(changes.into_iter().chain([EntryChange::Alive]))
            .await
    }

    /// Tells the rest of the agent what the Nodes say of this one.
    fn note_own(&self) {
        self.kube.note_rival(self.nodes.rival());
        self.kube.note_this_node(self.nodes.this_node());
    }

    /// Tells what was known last, once, in place of a list that the server does not give.
    async fn recall(&mut self) -> Result<(), Unheard> {
        match self.kube.memory.recall().filter(|_| !self.recalled) {
            Some(recalled) => {
                self.recalled = true;
                self.tell([EntryChange::All(recalled.listing())]).await
            }
            None => Ok(()),
        }
    }

    fn record(&mut self) {
        let begun = Instant::now();
        if !self.record_is_old || begun < self.next_record {
            return;
        }
        self.record_is_old = false;
        let (nodes, memory) = (&self.nodes, &self.kube.memory);
        memory.write(nodes.own(), nodes.node_public_ip(), &nodes.listing(0));
        let spent = begun.elapsed() * RECORD_SHARE;
        self.next_record = begun + spent.max(RECORD_EVERY);
    }

    async fn tell(
        &mut self,
        changes: impl IntoIterator<Item = EntryChange>,
    ) -> Result<(), Unheard> {
        for change in changes {
            self.changes.send(change).await.map_err(|_| Unheard)?;
        }
        Ok(())
    }
}
