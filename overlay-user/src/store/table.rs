//! The known contents of the registry, updated by changes that may arrive late or twice.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::entry::{Entry, EntryChange, Listing, Term};
use crate::lease::{
    Attributes, Lease, Leases, RejectReason, Rejected, Rejections, SubnetKey, excerpt, subject,
};
use crate::per_family::PerFamily;

/// Entries by key. The value of an entry is parsed when the entry arrives, and shared from then on.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
    /// Entries that were removed during or just after an outage, and stay in force for some time;
    /// stored with the subnets of their keys, because every new entry is compared with them.
    lingering: BTreeMap<String, (Option<SubnetKey>, Entry)>,
    /// The entries in force that are leases.
    leases: Leases,
    /// The entries in force that are no valid leases.
    rejected: Rejections,
    complete: bool,
    as_of: Option<SystemTime>,
}

impl Table {
    /// Whether there has been a complete answer.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The time of the last news, where the known state is that of an earlier agent.
    pub fn as_of(&self) -> Option<SystemTime> {
        self.as_of
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The entries that are leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The entries that are no valid leases.
    pub fn rejected(&self) -> &Rejections {
        &self.rejected
    }

    /// Takes in a change, unless the known state is newer. With `linger`, a removed entry stays in
    /// force until [`settle`](Self::settle), or until another entry takes its place.
    pub fn apply(&mut self, change: EntryChange, linger: bool) {
        match change {
            // The registry itself has answered meanwhile.
            EntryChange::All(listing) if listing.as_of.is_some() && self.is_answered() => {}
            EntryChange::All(listing) => self.replace(listing, linger),
            EntryChange::Put(entry) => self.put(entry),
            EntryChange::Gone { key, revision } => {
                if self
                    .entries
                    .get(&key)
                    .is_some_and(|known| known.revision <= revision)
                {
                    self.remove(&key, linger);
                }
            }
            EntryChange::Alive | EntryChange::Unreachable(_) => {}
        }
    }

    /// Drops entries that were removed and did not return.
    pub fn settle(&mut self) {
        for (key, _) in std::mem::take(&mut self.lingering) {
            self.unread(&key);
        }
    }

    /// Takes in an entry, unless the known one is newer.
    pub fn put(&mut self, entry: Entry) {
        let later = |known: &Entry| known.revision > entry.revision;
        if !self.entries.get(&entry.key).is_some_and(later) {
            self.set(entry);
        }
    }

    /// Removes an entry that this node removed itself, or lost.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
        self.lingering.remove(key);
        self.unread(key);
    }

    fn replace(&mut self, listing: Listing, linger: bool) {
        let listed: HashSet<&str> = listing.entries.iter().map(|it| it.key.as_str()).collect();
        // An entry that this node wrote after the listing was taken is missing in the listing, but
        // exists.
        let is_gone = |entry: &&Entry| {
            entry.revision <= listing.revision && !listed.contains(entry.key.as_str())
        };
        let gone: Vec<String> = self
            .entries
            .values()
            .filter(is_gone)
            .map(|entry| entry.key.clone())
            .collect();
        for key in gone {
            self.remove(&key, linger);
        }
        for entry in listing.entries {
            let later = |known: &Entry| known.revision > listing.revision;
            if !self.entries.get(&entry.key).is_some_and(later) {
                self.set(entry);
            }
        }
        self.complete = true;
        self.as_of = listing.as_of;
    }

    /// Whether the registry itself has given a complete answer.
    fn is_answered(&self) -> bool {
        self.complete && self.as_of.is_none()
    }

    fn set(&mut self, entry: Entry) {
        self.lingering.remove(&entry.key);
        if let Ok(key) = entry.key.parse::<SubnetKey>() {
            let overlaps = |other: &Option<SubnetKey>| {
                other.as_ref().is_some_and(|other| other.overlaps(&key))
            };
            let replaced = self
                .lingering
                .extract_if(.., |_, (other, _)| overlaps(other));
            for (key, _) in replaced.collect::<Vec<_>>() {
                self.unread(&key);
            }
        }
        let known = self.entries.get(&entry.key);
        let says_the_same = known.is_some_and(|known| {
            known.value == entry.value
                && known.is_reserved() == entry.is_reserved()
                && known.node == entry.node
                && known.refused == entry.refused
        });
        if !says_the_same {
            self.read(&entry);
        }
        self.entries.insert(entry.key.clone(), entry);
    }

    fn remove(&mut self, key: &str, linger: bool) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if linger {
            let subnet = key.parse().ok();
            self.lingering.insert(key.to_owned(), (subnet, entry));
        } else {
            self.unread(key);
        }
    }

    /// Adds the entry to the leases or to the rejected entries.
    fn read(&mut self, entry: &Entry) {
        self.unread(&entry.key);
        match entry.lease() {
            Ok(lease) => self.leases.insert(lease.key(), Arc::new(lease)),
            Err(reason) => {
                let subject = subject(&entry.key, entry.node.as_deref());
                let rejected = Rejected { subject, reason };
                self.rejected.insert(entry.key.clone(), Arc::new(rejected));
            }
        }
    }

    fn unread(&mut self, key: &str) {
        if let Ok(key) = key.parse::<SubnetKey>() {
            self.leases.remove(&key);
        }
        self.rejected.remove(key);
    }

    fn in_force(&self) -> impl Iterator<Item = &Entry> {
        let lingering = self.lingering.values().map(|(_, entry)| entry);
        self.entries.values().chain(lingering)
    }

    /// The entries whose leases are those of `public_ip`.
    pub fn entries_of(&self, public_ip: &PerFamily<IpAddr>) -> Vec<(Entry, Lease)> {
        let with_entry = |lease: &&Arc<Lease>| {
            Some((
                self.entries.get(&lease.key().to_string())?.clone(),
                Lease::clone(lease),
            ))
        };
        let mut leases = self.leases.sorted();
        leases.retain(|lease| lease.attributes.is_at(public_ip));
        leases.iter().filter_map(with_entry).collect()
    }

    /// The entry of `subnets`, if it is the lease of a node that `attributes` describe now.
    pub fn moved(
        &self,
        subnets: &PerFamily<IpNet>,
        attributes: &Attributes,
    ) -> Option<(Entry, Lease)> {
        let entry = self.entries.get(&SubnetKey(*subnets).to_string())?;
        let lease = entry.lease().ok()?;
        attributes
            .is_moved_from(&lease.attributes)
            .then(|| (entry.clone(), lease))
    }

    /// Every claimed subnet, also of entries with malformed values.
    pub fn taken(&self) -> Vec<SubnetKey> {
        self.in_force()
            .filter_map(|entry| entry.key.parse().ok())
            .collect()
    }
}

impl Entry {
    fn is_reserved(&self) -> bool {
        self.term == Term::Reserved
    }

    /// Reads the entry as a lease.
    pub fn lease(&self) -> Result<Lease, RejectReason> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        let key: SubnetKey = self.key.parse().map_err(|_| RejectReason::Key)?;
        let value = std::str::from_utf8(&self.value)
            .map_err(|error| RejectReason::Value(error.to_string()))?;
        let attributes = Attributes::parse(value)
            .map_err(|error| RejectReason::Value(excerpt(&error.to_string())))?;
        Ok(Lease {
            subnets: key.0,
            attributes,
            node: self.node.clone(),
            reserved: self.is_reserved(),
            expires: None,
        })
    }
}

#[cfg(test)]
mod tests;
