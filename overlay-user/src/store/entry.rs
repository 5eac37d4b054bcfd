//! What a registry holds and tells: entries, all of them at one moment, and changes of them.

/// One lease as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Last part of the key: `10.5.34.0-24` if all is well.
    pub key: String,
    /// The value's bytes; whoever writes to the store decides what they are.
    pub value: Vec<u8>,
    /// When the entry last changed, in the registry's own count. Higher is later.
    pub revision: u64,
    /// What keeps the entry alive.
    pub term: Term,
}

/// What keeps an entry alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    /// Nothing is needed: an operator put it there.
    Reserved,
    /// Its owner's renewals. The number is the etcd lease that must be kept alive; zero elsewhere.
    Renewed(i64),
}

/// All entries at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The entries, in no order.
    pub entries: Vec<Entry>,
    /// The registry's count at that moment.
    pub revision: u64,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Change {
    /// All there is; what is not in it is gone.
    All(Snapshot),
    /// One entry is new or different.
    Put(Entry),
    /// One entry is gone, by deletion or because its term ended.
    Gone {
        /// The entry's key.
        key: String,
        /// When it went.
        revision: u64,
    },
    /// The registry answered, with nothing new.
    Alive,
    /// The registry does not answer; the watch goes on trying.
    Unreachable(String),
}
