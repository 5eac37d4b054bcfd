//! Leases as Kubernetes knows them: a node's subnet is its podCIDR, and what the node says about
//! itself is in the annotations of its Node object, as flannel writes them.
//!
//! Subnets are assigned by the cluster's controller manager. Nothing is allocated here, no lease
//! ends, and nothing is deleted: a lease goes with its Node.

mod client;
mod follow;
mod memory;
mod node;
mod nodes;
mod notice;
mod objects;
pub mod offline;
mod services;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OnceCell, mpsc, watch};

use self::client::{Api, Failure};
use self::memory::Memory;
use self::node::{Metadata, Names, Node};
use super::entry::{Entry, EntryChange, Given, Listing};
use super::news::{News, ThisNode};
use super::{Error, config_file};
use crate::lease::Attributes;

const NODES: &str = "/api/v1/nodes";
/// The name by which Kubernetes tells who changed a field.
const MANAGER: &str = "overlayd";

/// How to reach the API server, and who this node is.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the API server, in place of the kubeconfig's. Without either, a pod's own
    /// credentials.
    pub api_url: Option<String>,
    /// A kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// Prefix of the annotations' names.
    pub annotation_prefix: String,
    /// File with the network configuration.
    pub config_path: PathBuf,
    /// This node.
    pub identity: Option<Identity>,
    /// File in which the agent remembers the Nodes, for an agent that starts while the API server
    /// does not answer.
    pub memory: Option<PathBuf>,
}

/// The source of this node's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// The name of the Node object.
    Node(String),
    /// The pod that runs the agent: its Node is asked for.
    Pod {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        name: String,
    },
}

impl Identity {
    /// As flannel: `NODE_NAME`, else `POD_NAME` and `POD_NAMESPACE`.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let get = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        get("NODE_NAME").map(Self::Node).or_else(|| {
            let (name, namespace) = (get("POD_NAME")?, get("POD_NAMESPACE")?);
            Some(Self::Pod { namespace, name })
        })
    }
}

/// The Nodes of a cluster.
#[derive(Debug)]
pub(super) struct Kube {
    api: Api,
    names: Names,
    config_path: PathBuf,
    identity: Identity,
    name: OnceCell<String>,
    /// An older node with this node's podCIDR.
    rival: Mutex<Option<String>>,
    /// This node's name, zone and addresses.
    this_node: watch::Sender<Option<ThisNode>>,
    memory: Memory,
}

/// A Pod with what is needed of it.
#[derive(Deserialize)]
struct Pod {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
}

impl Kube {
    pub fn new(options: Options) -> Result<Self, Error> {
        let Some(identity) = options.identity.clone() else {
            return Err(Error::Options(
                "this node's name is not known: set NODE_NAME, or POD_NAME and POD_NAMESPACE, \
                in the agent's environment"
                    .into(),
            ));
        };
        Ok(Self {
            api: Api::new(&options),
            names: Names::new(&options.annotation_prefix)?,
            memory: Memory::new(&options, identity.clone()),
            config_path: options.config_path,
            identity,
            name: OnceCell::new(),
            rival: Mutex::default(),
            this_node: watch::Sender::default(),
        })
    }

    pub async fn config(&self) -> Result<String, Error> {
        let text = config_file(&self.config_path).await?;
        self.memory.note_network(&text);
        Ok(text)
    }

    /// This node's entry, its annotations not judged yet; the remembered one, where the API server
    /// does not answer an agent that has just started.
    pub async fn assigned(&self) -> Result<Given, Error> {
        let node = match self.own().await {
            Err(error @ Error::Unreachable { .. }) => {
                let recalled = self.memory.recall();
                return recalled.and_then(|it| it.given()).ok_or(error);
            }
            node => node?,
        };
        let name = &node.metadata.name;
        let not_yet = |why| Error::NotAssigned {
            node: name.clone(),
            why,
        };
        let rival = self
            .rival
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(rival) = rival {
            return Err(not_yet(format!(
                "its podCIDR is that of the older node {rival}; delete one of the two Nodes"
            )));
        }
        match node.subnet() {
            Ok(Some(key)) => Ok(Given {
                entry: node.entry(&self.names, key.to_string(), true),
                as_of: None,
            }),
            Ok(None) => Err(not_yet(
                "no podCIDR yet; the controller manager assigns them with \
                 --allocate-node-cidrs=true and --cluster-cidr"
                    .to_owned(),
            )),
            Err(wrong) => Err(not_yet(wrong)),
        }
    }

    /// The address that an operator wants to be this node's (`node-public-ip`).
    pub async fn node_public_ip(&self) -> Result<Option<IpAddr>, Error> {
        match self.own().await {
            Err(error @ Error::Unreachable { .. }) => {
                let recalled = self.memory.recall();
                recalled.map(|it| it.node_public_ip).ok_or(error)
            }
            node => Ok(node?.node_public_ip(&self.names)),
        }
    }

    pub async fn list(&self) -> Result<Listing, Error> {
        let own = self.name().await?.to_owned();
        let mut nodes = nodes::Nodes::new(self.names.clone(), own);
        let mut pages = follow::NODES.pages(NODES);
        let listing = |failure: Failure| failure.of("listing nodes");
        while let Some(page) = pages.next(&self.api).await.map_err(listing)? {
            for node in &page {
                nodes.put(node);
            }
        }
        let revision = pages.place.and_then(|place| place.parse().ok());
        Ok(nodes.listing(revision.unwrap_or_default()))
    }

    /// Writes the annotations of this node. `None` if its Node is another object than that of
    /// `held`, because a Node that was deleted and made anew may have another podCIDR.
    pub async fn replace(&self, held: &Entry, value: &str) -> Result<Option<Entry>, Error> {
        let node = self.own().await?;
        let key = node.subnet().ok().flatten().map(|key| key.to_string());
        if key.as_ref() != Some(&held.key) {
            return Ok(None);
        }
        let attributes =
            Attributes::parse(value).map_err(|error| Error::Options(error.to_string()))?;
        let Metadata { name, uid, .. } = &node.metadata;
        let patch = json!({"metadata": {
            "uid": uid,
            "annotations": self.names.annotations(&attributes),
        }});
        let call = || format!("annotating node {name}");
        let request = self
            .nodes()
            .patch_subresource("status", name, &manager(), &Patch::Strategic(patch))
            .map_err(|error| wrong(call(), &error))?;
        match self.api.call::<Node>(request).await {
            Ok(node) => Ok(Some(node.entry(&self.names, held.key.clone(), true))),
            // Deleted, or made anew, since it was read.
            Err(failure) if failure.is(404) || failure.is(409) => Ok(None),
            Err(failure) => Err(failure.of(call())),
        }
    }

    pub async fn watch(&self, changes: mpsc::Sender<EntryChange>) {
        follow::follow(self, &changes).await;
    }

    /// Where this node is, as [`watch`](Self::watch) learns it.
    pub fn this_node(&self) -> watch::Receiver<Option<ThisNode>> {
        self.this_node.subscribe()
    }

    /// Tells of every Service and EndpointSlice, until the receiver is dropped.
    pub async fn watch_services(&self, news: mpsc::Sender<News>) {
        services::follow(&self.api, &news).await;
    }

    /// This node's name; from its pod where that is all that is known.
    async fn name(&self) -> Result<&str, Error> {
        let asked = self.name.get_or_try_init(async || {
            let (namespace, name) = match &self.identity {
                Identity::Node(name) => return Ok(name.clone()),
                Identity::Pod { namespace, name } => (namespace, name),
            };
            let call = || format!("reading pod {namespace}/{name}");
            let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
                .get(name, &GetParams::default())
                .map_err(|error| wrong(call(), &error))?;
            match self.api.call::<Pod>(request).await {
                Ok(pod) => Ok(pod.spec.node_name),
                Err(failure) => {
                    let is_away = matches!(failure, Failure::Unreachable(_));
                    match self.memory.recall().filter(|_| is_away) {
                        // A pod never moves.
                        Some(recalled) => Ok(recalled.own.clone()),
                        None => Err(failure.of(call())),
                    }
                }
            }
        });
        asked.await.map(String::as_str)
    }

    /// This node's name, asked for until the API server tells it; nothing once the receiver is
    /// gone.
    async fn name_when_known(&self, changes: &mpsc::Sender<EntryChange>) -> Option<String> {
        loop {
            match self.name().await {
                Ok(name) => return Some(name.to_owned()),
                Err(error) => {
                    let told = EntryChange::Unreachable(error.to_string());
                    changes.send(told).await.ok()?;
                    tokio::time::sleep(client::DEADLINE).await;
                }
            }
        }
    }

    /// This node's Node.
    async fn own(&self) -> Result<Node, Error> {
        let name = self.name().await?;
        let call = || format!("reading node {name}");
        let request = self
            .nodes()
            .get(name, &GetParams::default())
            .map_err(|error| wrong(call(), &error))?;
        self.api.call(request).await.map_err(|failure| {
            if failure.is(404) {
                return Error::NotAssigned {
                    node: name.to_owned(),
                    why: "there is no such Node; the kubelet makes it".to_owned(),
                };
            }
            failure.of(call())
        })
    }

    fn nodes(&self) -> Request {
        Request::new(NODES)
    }

    fn note_this_node(&self, this_node: Option<&ThisNode>) {
        self.this_node.send_if_modified(|known| {
            let differs = known.as_ref() != this_node;
            *known = this_node.cloned();
            differs
        });
    }

    fn note_rival(&self, rival: Option<&str>) {
        let mut known = self.rival.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != rival {
            *known = rival.map(str::to_owned);
        }
    }
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// A request that cannot be made, because a name or parameter is none.
fn wrong(call: String, error: &kube::core::request::Error) -> Error {
    Error::Refused {
        call,
        message: error.to_string(),
    }
}
