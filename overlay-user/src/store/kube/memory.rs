//! The last known state of the Nodes: a file that outlives the agent, for an agent that starts
//! while the API server does not answer. The file is below `/run`, because the programmed state is
//! lost in a reboot, too.

mod file;

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Identity, Options};
use crate::lease::{RejectReason, excerpt};
use crate::store::entry::{Entry, Given, Listing, Term};

/// The time that the API server has for its answer after the start of an agent.
const GRACE: Duration = Duration::from_secs(5);
/// Version of the file's format. A file of another version is not read.
const VERSION: u32 = 1;

/// Writes the file while the API server answers, and reads it where it does not.
#[derive(Debug)]
pub(super) struct Memory {
    path: Option<PathBuf>,
    identity: Identity,
    prefix: String,
    /// The time from which the API server's time to answer counts.
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The network configuration's text.
    network: String,
    recall: Recall,
}

#[derive(Debug, Default)]
enum Recall {
    /// The file has not been needed yet.
    #[default]
    Unread,
    /// The contents of the file; `None` if they could not be used.
    Read(Option<Arc<Recalled>>),
    /// The API server has sent the complete list. The file is kept for the next agent.
    Over,
}

/// The last known state of an earlier agent of this node.
#[derive(Debug, PartialEq)]
pub(super) struct Recalled {
    /// This node's name.
    pub own: String,
    /// See [`Kube::node_public_ip`](super::Kube::node_public_ip).
    pub node_public_ip: Option<IpAddr>,
    entries: Vec<Entry>,
    as_of: SystemTime,
}

impl Recalled {
    /// The stored entries as a list of all Nodes.
    pub fn listing(&self) -> Listing {
        Listing {
            entries: self.entries.clone(),
            revision: 0,
            as_of: Some(self.as_of),
        }
    }

    /// This node's entry, if it had a subnet.
    pub fn given(&self) -> Option<Given> {
        let is_own = |entry: &&Entry| {
            entry.node.as_deref() == Some(self.own.as_str()) && entry.refused.is_none()
        };
        Some(Given {
            entry: self.entries.iter().find(is_own)?.clone(),
            as_of: Some(self.as_of),
        })
    }
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content<'a> {
    version: u32,
    #[serde(borrow)]
    scope: Scope<'a>,
    own: Cow<'a, str>,
    node_public_ip: Option<IpAddr>,
    entries: Vec<Line<'a>>,
}

/// The agents that can use the file.
#[derive(PartialEq, Serialize, Deserialize)]
struct Scope<'a> {
    identity: Cow<'a, Identity>,
    prefix: Cow<'a, str>,
    /// The network configuration's text.
    network: Cow<'a, str>,
}

/// An entry of the file.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    key: Cow<'a, str>,
    value: Cow<'a, str>,
    node: Option<Cow<'a, str>>,
    public_ip: Option<Ipv4Addr>,
    refused: Option<Cow<'a, str>>,
}

impl Memory {
    pub fn new(options: &Options, identity: Identity) -> Self {
        Self {
            path: options.memory.clone(),
            identity,
            prefix: options.annotation_prefix.clone(),
            begun: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Notes the network configuration, because leases of another network are useless.
    pub fn note_network(&self, text: &str) {
        self.with(|state| text.clone_into(&mut state.network));
    }

    /// The last known state, where the API server has had time for a complete answer and has not
    /// sent one. The use of the state is logged once.
    pub fn recall(&self) -> Option<Arc<Recalled>> {
        self.recall_at(Instant::now())
    }

    fn recall_at(&self, now: Instant) -> Option<Arc<Recalled>> {
        let path = self.path.as_deref()?;
        if now.duration_since(self.begun) < GRACE {
            return None;
        }
        self.with(|state| {
            if let Recall::Unread = state.recall {
                state.recall = Recall::Read(self.read_or_say(path, &state.network));
            }
            match &state.recall {
                Recall::Read(recalled) => recalled.clone(),
                Recall::Unread | Recall::Over => None,
            }
        })
    }

    /// Notes that the API server has sent a complete answer.
    pub fn let_go(&self) {
        self.with(|state| state.recall = Recall::Over);
    }

    /// Writes the known state, whole or not at all. A failure is only logged, because only an agent
    /// that starts during an outage needs the file.
    pub fn write(&self, own: &str, node_public_ip: Option<IpAddr>, listing: &Listing) {
        let Some(path) = &self.path else {
            return;
        };
        let network = self.with(|state| state.network.clone());
        let content = Content {
            version: VERSION,
            scope: self.scope(&network),
            own: own.into(),
            node_public_ip,
            entries: listing.entries.iter().map(Line::from).collect(),
        };
        let written = serde_json::to_vec(&content)
            .map_err(io::Error::from)
            .and_then(|json| file::replace(path, &json));
        if let Err(error) = written {
            tracing::warn!(
                "cannot write {}, so that an agent that starts while the API server is away would \
                have to wait for it: {error}",
                path.display()
            );
        }
    }

    fn scope<'a>(&'a self, network: &'a str) -> Scope<'a> {
        Scope {
            identity: Cow::Borrowed(&self.identity),
            prefix: Cow::Borrowed(&self.prefix),
            network: Cow::Borrowed(network),
        }
    }

    fn read_or_say(&self, path: &Path, network: &str) -> Option<Arc<Recalled>> {
        match self.read(path, network) {
            Ok(recalled) => {
                tracing::warn!(
                    nodes = recalled.entries.len(),
                    "the API server does not answer: going on with what an earlier agent knew last"
                );
                Some(Arc::new(recalled))
            }
            Err(why) => {
                tracing::warn!(
                    "the API server does not answer, and {} does not help: {why}",
                    path.display()
                );
                None
            }
        }
    }

    fn read(&self, path: &Path, network: &str) -> Result<Recalled, String> {
        let (json, about) = file::read(path).map_err(|error| error.to_string())?;
        let as_of = about.modified().map_err(|error| error.to_string())?;
        self.parse(&json, network, as_of)
    }

    pub(super) fn parse(
        &self,
        json: &[u8],
        network: &str,
        as_of: SystemTime,
    ) -> Result<Recalled, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |error: serde_json::Error| {
            format!("it cannot be read: {}", excerpt(&error.to_string()))
        };
        let Version { version } = serde_json::from_slice(json).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("it has version {version} instead of {VERSION}"));
        }
        let content: Content<'_> = serde_json::from_slice(json).map_err(wrong)?;
        if content.scope != self.scope(network) {
            return Err("it is of another node, network configuration or annotation prefix".into());
        }
        Ok(Recalled {
            own: content.own.into_owned(),
            node_public_ip: content.node_public_ip,
            entries: content.entries.into_iter().map(Line::into_entry).collect(),
            as_of,
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<'a> From<&'a Entry> for Line<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            key: Cow::Borrowed(&entry.key),
            value: String::from_utf8_lossy(&entry.value),
            node: entry.node.as_deref().map(Cow::Borrowed),
            public_ip: entry.public_ip,
            refused: entry.refused.as_ref().map(|it| it.to_string().into()),
        }
    }
}

impl Line<'_> {
    /// The entry, with a revision below all those of the API server.
    fn into_entry(self) -> Entry {
        let refused = self.refused.map(|it| RejectReason::PodCidr(excerpt(&it)));
        Entry {
            node: self.node.map(Cow::into_owned),
            public_ip: self.public_ip,
            refused,
            ..Entry::new(
                self.key.into_owned(),
                self.value.into_owned(),
                0,
                Term::Reserved,
            )
        }
    }
}

#[cfg(test)]
mod tests;
