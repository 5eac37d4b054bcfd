//! What the registry is known to hold, kept up to date by changes that may come late or twice.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::entry::{Change, Entry, Snapshot, Term};
use crate::lease::{
    Attributes, Lease, Leases, RejectReason, Rejected, Rejections, SubnetKey, excerpt, subject,
};

/// Entries by key. What an entry says is read when the entry comes, and shared from then on.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
    /// Entries that went during or just after an outage, and stay in force for a while; with the
    /// subnets that their keys name, since every entry that comes is compared with them.
    lingering: BTreeMap<String, (Option<SubnetKey>, Entry)>,
    /// The entries in force that are leases.
    leases: Leases,
    /// The entries in force that are none.
    rejected: Rejections,
    complete: bool,
    as_of: Option<SystemTime>,
}

impl Table {
    /// Whether there has been a complete answer.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Since when nothing has been heard, if all that is known is what was known last.
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

    /// The entries that are none.
    pub fn rejected(&self) -> &Rejections {
        &self.rejected
    }

    /// Takes a change in, unless what is known is later. With `linger`, what goes stays in force
    /// until [`settle`](Self::settle), or until its place is taken.
    pub fn apply(&mut self, change: Change, linger: bool) {
        match change {
            // The registry itself has told more meanwhile.
            Change::All(snapshot) if snapshot.as_of.is_some() && self.is_answered() => {}
            Change::All(snapshot) => self.replace(snapshot, linger),
            Change::Put(entry) => self.put(entry),
            Change::Gone { key, revision } => {
                if self
                    .entries
                    .get(&key)
                    .is_some_and(|known| known.revision <= revision)
                {
                    self.remove(&key, linger);
                }
            }
            Change::Alive | Change::Unreachable(_) => {}
        }
    }

    /// Lets go of what went and did not come back.
    pub fn settle(&mut self) {
        for (key, _) in std::mem::take(&mut self.lingering) {
            self.unread(&key);
        }
    }

    /// Takes an entry in, unless what is known is later.
    pub fn put(&mut self, entry: Entry) {
        let later = |known: &Entry| known.revision > entry.revision;
        if !self.entries.get(&entry.key).is_some_and(later) {
            self.set(entry);
        }
    }

    /// Forgets an entry that this node removed itself, or lost.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
        self.lingering.remove(key);
        self.unread(key);
    }

    fn replace(&mut self, snapshot: Snapshot, linger: bool) {
        let listed: HashSet<&str> = snapshot.entries.iter().map(|it| it.key.as_str()).collect();
        // What this node wrote after the snapshot was taken is not in it, and yet is there.
        let is_gone = |entry: &&Entry| {
            entry.revision <= snapshot.revision && !listed.contains(entry.key.as_str())
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
        for entry in snapshot.entries {
            let later = |known: &Entry| known.revision > snapshot.revision;
            if !self.entries.get(&entry.key).is_some_and(later) {
                self.set(entry);
            }
        }
        self.complete = true;
        self.as_of = snapshot.as_of;
    }

    /// Whether there has been a complete answer of the registry itself.
    fn is_answered(&self) -> bool {
        self.complete && self.as_of.is_none()
    }

    fn set(&mut self, entry: Entry) {
        self.lingering.remove(&entry.key);
        if let Ok(key) = entry.key.parse::<SubnetKey>() {
            let overlaps = |other: &Option<SubnetKey>| {
                other
                    .as_ref()
                    .is_some_and(|other| other.overlaps(&key.subnet))
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

    /// Puts the entry where it belongs, among the leases or the rejected.
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
    pub fn entries_of(&self, public_ip: Ipv4Addr) -> Vec<(Entry, Lease)> {
        let with_entry = |lease: &&Arc<Lease>| {
            Some((
                self.entries.get(&lease.key().to_string())?.clone(),
                Lease::clone(lease),
            ))
        };
        let mut leases = self.leases.sorted();
        leases.retain(|lease| lease.attributes.public_ip == public_ip);
        leases.iter().filter_map(with_entry).collect()
    }

    /// The entry of `subnet`, if it is the lease of a node that is now known as `attributes` say.
    pub fn moved(&self, subnet: IpNet, attributes: &Attributes) -> Option<(Entry, Lease)> {
        let entry = self.entries.get(&SubnetKey::from(subnet).to_string())?;
        let lease = entry.lease().ok()?;
        attributes
            .is_moved_from(&lease.attributes)
            .then(|| (entry.clone(), lease))
    }

    /// Every subnet that is spoken for, also by entries whose values make no sense.
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
            subnet: key.subnet,
            subnet_v6: key.subnet_v6,
            attributes,
            node: self.node.clone(),
            reserved: self.is_reserved(),
            expires: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, revision: u64) -> Entry {
        Entry::new(key.into(), value, revision, Term::Renewed(1))
    }

    const ONE: &str = r#"{"PublicIP":"1.1.1.1"}"#;
    const TWO: &str = r#"{"PublicIP":"2.2.2.2"}"#;

    fn public_ips(table: &Table) -> Vec<String> {
        table
            .leases()
            .sorted()
            .iter()
            .map(|lease| lease.attributes.public_ip.to_string())
            .collect()
    }

    #[test]
    fn late_changes_do_not_undo_later_ones() {
        let mut table = Table::default();
        table.put(entry("10.0.1.0-24", TWO, 7));
        table.apply(Change::Put(entry("10.0.1.0-24", ONE, 5)), false);
        table.apply(
            Change::Gone {
                key: "10.0.1.0-24".into(),
                revision: 6,
            },
            false,
        );
        assert_eq!(public_ips(&table), ["2.2.2.2"]);
        table.apply(
            Change::All(Snapshot {
                entries: vec![],
                revision: 6,
                as_of: None,
            }),
            false,
        );
        assert_eq!(
            public_ips(&table),
            ["2.2.2.2"],
            "written after the snapshot"
        );
        table.apply(
            Change::Gone {
                key: "10.0.1.0-24".into(),
                revision: 8,
            },
            false,
        );
        assert!(public_ips(&table).is_empty());
    }

    #[test]
    fn a_snapshot_brings_changed_values_and_takes_what_is_gone() {
        let mut table = Table::default();
        table.put(entry("10.0.1.0-24", ONE, 1));
        table.put(entry("10.0.2.0-24", ONE, 2));
        assert!(!table.is_complete());
        let entries = vec![entry("10.0.1.0-24", TWO, 8)];
        table.apply(
            Change::All(Snapshot {
                entries,
                revision: 9,
                as_of: None,
            }),
            false,
        );
        assert!(table.is_complete());
        assert_eq!(public_ips(&table), ["2.2.2.2"]);
    }

    #[test]
    fn after_an_outage_leases_linger_until_they_settle_or_are_replaced() {
        let mut table = Table::default();
        for key in ["10.0.1.0-24", "10.0.2.0-24", "10.0.3.0-24"] {
            table.put(entry(key, ONE, 1));
        }
        table.apply(
            Change::Gone {
                key: "10.0.1.0-24".into(),
                revision: 2,
            },
            true,
        );
        table.apply(
            Change::All(Snapshot {
                entries: vec![],
                revision: 3,
                as_of: None,
            }),
            true,
        );
        assert_eq!(table.leases().len(), 3);
        assert!(
            table.entries_of([1, 1, 1, 1].into()).is_empty(),
            "no guarded write can succeed"
        );
        assert_eq!(table.taken().len(), 3);
        table.put(entry("10.0.2.0-23", TWO, 4));
        assert_eq!(public_ips(&table), ["1.1.1.1", "2.2.2.2"]);
        table.settle();
        assert_eq!(public_ips(&table), ["2.2.2.2"]);
    }

    #[test]
    fn malformed_entries_are_rejected_and_hold_their_subnet() {
        let mut table = Table::default();
        table.put(entry("10.0.1.0-24", ONE, 1));
        table.put(entry("10.0.2.0-24", "{", 1));
        table.put(Entry {
            value: vec![0xff],
            ..entry("10.0.3.0-24", "", 1)
        });
        table.put(entry("10.0.300.0-24", ONE, 1));
        assert_eq!(table.leases().len(), 1);
        let rejected = table.rejected().sorted();
        assert_eq!(rejected.len(), 3);
        assert_eq!(rejected[2].reason, RejectReason::Key);
        assert_eq!(table.taken().len(), 3);
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let keys = ["10.0.1.0-24", "10.0.2.0-24", "10.0.x.0-24"];
        let mut table = Table::default();
        for key in keys {
            table.put(entry(key, ONE, 1));
        }
        let (leases, rejected) = (table.leases().clone(), table.rejected().clone());
        let changed = |table: &Table| {
            let leases = leases.iter().filter(|(key, lease)| {
                let now = table.leases().get(key);
                now.is_none_or(|now| !Arc::ptr_eq(now, lease))
            });
            let rejected = rejected.iter().filter(|(key, rejected)| {
                let now = table.rejected().get(key.as_str());
                now.is_none_or(|now| !Arc::ptr_eq(now, rejected))
            });
            (leases.count(), rejected.count())
        };
        // A listing after an outage, with every entry newly written as it was.
        let entries = keys.map(|key| entry(key, ONE, 8)).into();
        table.apply(
            Change::All(Snapshot {
                entries,
                revision: 9,
                as_of: None,
            }),
            true,
        );
        assert_eq!(changed(&table), (0, 0));
        table.put(entry("10.0.2.0-24", TWO, 10));
        assert_eq!(changed(&table), (1, 0));
        table.put(Entry {
            term: Term::Reserved,
            ..entry("10.0.1.0-24", ONE, 11)
        });
        assert_eq!(changed(&table), (2, 0));
        assert!(table.leases().sorted()[0].reserved);
    }

    #[test]
    fn what_was_known_last_makes_way_for_every_answer() {
        let last = || {
            let entries = ["10.0.1.0-24", "10.0.2.0-24"].map(|key| entry(key, ONE, 0));
            Change::All(Snapshot {
                entries: entries.into(),
                revision: 0,
                as_of: Some(SystemTime::UNIX_EPOCH),
            })
        };
        let mut table = Table::default();
        // This node's own lease, of which the registry has told already.
        table.put(entry("10.0.1.0-24", TWO, 5));
        table.apply(last(), false);
        assert!(table.is_complete() && table.as_of().is_some());
        assert_eq!(public_ips(&table), ["2.2.2.2", "1.1.1.1"]);
        // Even a registry that was made anew and counts from the beginning.
        let answer = Snapshot {
            entries: vec![entry("10.0.1.0-24", TWO, 5)],
            revision: 5,
            as_of: None,
        };
        table.apply(Change::All(answer), false);
        assert_eq!(table.as_of(), None);
        assert_eq!(public_ips(&table), ["2.2.2.2"]);
        table.apply(last(), false);
        assert_eq!((public_ips(&table).len(), table.as_of()), (1, None));
    }
}
