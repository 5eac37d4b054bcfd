//! Changes of Services and EndpointSlices, as every kind of registry reports them.

use std::net::IpAddr;

use crate::service::api::{EndpointSlice, Metadata, Service};
use crate::service::{Kind, ObjectName};

/// News of one kind of object.
#[derive(Debug)]
pub(super) struct News {
    /// The kind.
    pub kind: Kind,
    /// The change.
    pub update: Update,
}

/// A list, then changes, until there has to be another list.
#[derive(Debug)]
pub(super) enum Update {
    /// A list of all objects begins.
    Begin,
    /// An object of the list, or one that is new or different.
    Put(ObjectName, Body),
    /// One object has been removed.
    Gone(ObjectName),
    /// The list is complete: an object that was not in the list has been removed.
    Complete,
    /// The store answered without a change.
    Alive,
    /// The store does not answer; the watch goes on trying.
    Unreachable(String),
}

/// An object, or why it cannot be understood.
#[derive(Debug)]
pub(super) enum Body {
    /// A Service.
    Service(Result<Box<Service>, String>),
    /// An EndpointSlice.
    Slice(Result<Box<EndpointSlice>, String>),
}

impl Body {
    /// Reads the JSON that a store keeps for an object. The key names the object; a name in the
    /// JSON has to be the same.
    pub fn parse(kind: Kind, name: &ObjectName, json: &[u8]) -> Self {
        match kind {
            Kind::Service => Self::Service(parse(json, name, |it: &mut Service| &mut it.metadata)),
            Kind::Slice => {
                Self::Slice(parse(json, name, |it: &mut EndpointSlice| &mut it.metadata))
            }
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    json: &[u8],
    name: &ObjectName,
    metadata: fn(&mut T) -> &mut Metadata,
) -> Result<Box<T>, String> {
    let mut object: T = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let metadata = metadata(&mut object);
    for (said, key) in [
        (&mut metadata.namespace, name.namespace()),
        (&mut metadata.name, name.name()),
    ] {
        if said.is_empty() {
            key.clone_into(said);
        }
        if said != key {
            let said = crate::lease::excerpt(said);
            return Err(format!("its metadata says {said:?}, its key {name}"));
        }
    }
    Ok(Box::new(object))
}

/// This node, as a source of Services knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ThisNode {
    /// Its name, as EndpointSlices call it.
    pub node: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its addresses, where the source knows them better than its lease does.
    pub addresses: Option<Vec<IpAddr>>,
}

impl ThisNode {
    /// This node where the registry does not know more: the name is `NODE_NAME`, as in a pod, else
    /// the host's.
    pub fn of_host() -> Self {
        let named = std::env::var("NODE_NAME").ok();
        let named = named.filter(|name| !name.is_empty());
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let node = named.or_else(host).unwrap_or_default();
        Self {
            node: node.trim().to_owned(),
            ..Self::default()
        }
    }
}
