//! The content of a registry: entries, all of them at one moment, and changes of them.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use crate::lease::RejectReason;

/// One lease as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Last part of the key: `10.5.34.0-24` if all is well.
    pub key: String,
    /// The value's bytes. They are untrusted, because any writer of the store chooses them.
    pub value: Vec<u8>,
    /// When the entry last changed, in the registry's own count. Higher is later.
    pub revision: u64,
    /// The entry's term.
    pub term: Term,
    /// Name of the node that the entry belongs to, where the registry knows the name.
    pub node: Option<String>,
    /// The address that an operator wants to be published in place of the node's own.
    pub public_ip: Option<Ipv4Addr>,
    /// Why the registry itself refuses the entry as a lease.
    pub refused: Option<RejectReason>,
}

impl Entry {
    /// An entry without the optional fields.
    pub fn new(key: String, value: impl Into<Vec<u8>>, revision: u64, term: Term) -> Self {
        let mut value = value.into();
        // There may be thousands of them, and JSON is often written with room to spare.
        value.shrink_to_fit();
        Self {
            key,
            value,
            revision,
            term,
            node: None,
            public_ip: None,
            refused: None,
        }
    }
}

/// The term of an entry: the condition under which the entry stays valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    /// Without end: an operator wrote the entry, or the cluster assigned it.
    Reserved,
    /// Renewals by the lease's owner. The number is the etcd lease that must be kept alive; zero
    /// elsewhere.
    Renewed(i64),
}

/// The entry that the registry gives this node.
#[derive(Debug)]
pub(super) struct Given {
    /// The entry.
    pub entry: Entry,
    /// See [`Listing::as_of`].
    pub as_of: Option<SystemTime>,
}

/// All entries at one moment.
#[derive(Debug)]
pub(super) struct Listing {
    /// The entries, in no order.
    pub entries: Vec<Entry>,
    /// The registry's count at that moment.
    pub revision: u64,
    /// The time of the listing, where the registry does not answer and the listing is remembered
    /// from before; `revision` is zero then.
    pub as_of: Option<SystemTime>,
}

/// A change that a watch reports.
#[derive(Debug)]
pub(super) enum EntryChange {
    /// All entries; an entry that is not in the listing has been removed.
    All(Listing),
    /// One entry is new or different.
    Put(Entry),
    /// One entry has been removed, by deletion or because its term ended.
    Gone {
        /// The entry's key.
        key: String,
        /// The registry's count at the removal.
        revision: u64,
    },
    /// The registry answered without a change.
    Alive,
    /// The registry does not answer; the watch goes on trying.
    Unreachable(String),
}

impl EntryChange {
    /// Whether the registry has answered.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::All(listing) => listing.as_of.is_none(),
            Self::Unreachable(_) => false,
            Self::Put(_) | Self::Gone { .. } | Self::Alive => true,
        }
    }
}
