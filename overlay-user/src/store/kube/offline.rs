//! Input from outside, read without a server: for the fuzz targets (`tests/fuzz`).

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::memory::Memory;
use super::node::{Names, Node};
use super::nodes::Nodes;
use super::{Identity, Options};
use crate::lease::{Leases, Rejections};
use crate::store::entry::{EntryChange, Listing};
use crate::store::table::Table;

/// A call's report on a Node.
#[derive(Clone, Copy, Debug)]
pub enum NodeNews<'a> {
    /// A Node was added or changed: an object of the API.
    Is(&'a str),
    /// The Node of this name was deleted.
    Gone(&'a str),
}

/// The keeper's leases after the reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The leases.
    pub leases: Leases,
    /// The refused entries.
    pub rejected: Rejections,
}

impl From<Table> for Judged {
    fn from(table: Table) -> Self {
        Self {
            leases: table.leases().clone(),
            rejected: table.rejected().clone(),
        }
    }
}

/// The state of two keepers of node `own`: one follows each change, the other lists all Nodes at
/// the end. The server counts changes itself, whatever the Nodes contain.
#[must_use]
pub fn followed<'a>(
    own: &str,
    prefix: &str,
    news: impl IntoIterator<Item = NodeNews<'a>>,
) -> [Judged; 2] {
    let Ok(names) = Names::new(prefix) else {
        return [Table::default(), Table::default()].map(Judged::from);
    };
    let mut nodes = Nodes::new(names, own.to_owned());
    let (mut follower, mut lister) = (Table::default(), Table::default());
    let empty = |revision| Listing {
        entries: Vec::new(),
        revision,
        as_of: None,
    };
    follower.apply(EntryChange::All(empty(0)), false);
    let mut last = 0;
    for (revision, news) in (1..).zip(news) {
        let changes = match news {
            NodeNews::Is(text) => match node(text, revision) {
                Some(node) => nodes.put(&node),
                None => continue,
            },
            NodeNews::Gone(name) => nodes.remove(name, revision),
        };
        for change in changes {
            follower.apply(change, false);
        }
        last = revision;
    }
    lister.apply(EntryChange::All(nodes.listing(last)), false);
    [follower, lister].map(Judged::from)
}

fn node(text: &str, revision: u64) -> Option<Node> {
    let mut node: Value = serde_json::from_str(text).ok()?;
    let metadata = node.get_mut("metadata")?.as_object_mut()?;
    metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
    serde_json::from_value(node).ok()
}

/// The state that an agent of node `own` reads from the file of an earlier agent.
///
/// # Errors
/// Why the file cannot be used.
pub fn remembered(own: &str, prefix: &str, network: &str, file: &[u8]) -> Result<Judged, String> {
    let identity = Identity::Node(own.to_owned());
    let options = Options {
        api_url: None,
        kubeconfig: None,
        annotation_prefix: prefix.to_owned(),
        config_path: PathBuf::new(),
        identity: None,
        memory: None,
    };
    let memory = Memory::new(&options, identity);
    let recalled = memory.parse(file, network, SystemTime::UNIX_EPOCH)?;
    let mut table = Table::default();
    table.apply(EntryChange::All(recalled.listing()), false);
    Ok(Judged::from(table))
}
