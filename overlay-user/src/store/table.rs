//! What the registry is known to hold, kept up to date by changes that may come late or twice.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::registry::{Change, Entry, Snapshot, Term};
use crate::lease::{Attributes, Lease, RejectReason, Rejected, SubnetKey, excerpt};

/// Entries by key.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
    /// Entries that went during or just after an outage, and stay in force for a while; with the subnets that their keys
    /// name, since every entry that comes is compared with them.
    lingering: BTreeMap<String, (Option<SubnetKey>, Entry)>,
    complete: bool,
}

impl Table {
    /// Whether there has been a complete answer.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Takes a change in, unless what is known is later. With `linger`, what goes stays in force until
    /// [`settle`](Self::settle), or until its place is taken.
    pub fn apply(&mut self, change: Change, linger: bool) {
        match change {
            Change::All(snapshot) => self.replace(snapshot, linger),
            Change::Put(entry) => self.put(entry),
            Change::Gone { key, revision } => {
                if self
                    .entries
                    .get(&key)
                    .is_some_and(|known| known.revision <= revision)
                    && let Some(entry) = self.entries.remove(&key)
                    && linger
                {
                    self.lingering.insert(key, with_subnet(entry));
                }
            }
            Change::Alive | Change::Unreachable(_) => {}
        }
    }

    /// Lets go of what went and did not come back.
    pub fn settle(&mut self) {
        self.lingering.clear();
    }

    /// Takes an entry in, unless what is known is later.
    pub fn put(&mut self, entry: Entry) {
        let later = |known: &Entry| known.revision > entry.revision;
        if self.entries.get(&entry.key).is_some_and(later) {
            return;
        }
        self.lingering.remove(&entry.key);
        if let Ok(key) = entry.key.parse::<SubnetKey>() {
            self.lingering.retain(|_, (other, _)| {
                other
                    .as_ref()
                    .is_none_or(|other| !other.overlaps(&key.subnet))
            });
        }
        self.entries.insert(entry.key.clone(), entry);
    }

    /// Forgets an entry that this node removed itself, or lost.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
        self.lingering.remove(key);
    }

    fn replace(&mut self, snapshot: Snapshot, linger: bool) {
        // What this node wrote after the snapshot was taken is not in it, and yet is there.
        let (later, known): (_, BTreeMap<_, _>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|(_, entry)| entry.revision > snapshot.revision);
        self.entries = later;
        if linger {
            let known = known.into_iter();
            self.lingering
                .extend(known.map(|(key, entry)| (key, with_subnet(entry))));
        }
        // Most are there still. What is left is compared with every one of them.
        for entry in &snapshot.entries {
            self.lingering.remove(&entry.key);
        }
        snapshot
            .entries
            .into_iter()
            .for_each(|entry| self.put(entry));
        self.complete = true;
    }

    fn in_force(&self) -> impl Iterator<Item = &Entry> {
        let lingering = self.lingering.values().map(|(_, entry)| entry);
        self.entries.values().chain(lingering)
    }

    /// The entries whose leases are those of `public_ip`.
    pub fn entries_of(&self, public_ip: Ipv4Addr) -> Vec<(Entry, Lease)> {
        let with_lease = |entry: &Entry| Some((entry.clone(), entry.lease().ok()?));
        self.entries
            .values()
            .filter_map(with_lease)
            .filter(|(_, lease)| lease.attributes.public_ip == public_ip)
            .collect()
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

    /// The entries as leases, sorted by subnet, and those that are none.
    pub fn leases(&self) -> (Vec<Lease>, Vec<Rejected>) {
        let (mut leases, mut rejected) = (Vec::new(), Vec::new());
        for entry in self.in_force() {
            match entry.lease() {
                Ok(lease) => leases.push(lease),
                Err(reason) => rejected.push(Rejected {
                    subject: excerpt(&entry.key),
                    reason,
                }),
            }
        }
        leases.sort_by_key(|lease| lease.key());
        (leases, rejected)
    }
}

fn with_subnet(entry: Entry) -> (Option<SubnetKey>, Entry) {
    (entry.key.parse().ok(), entry)
}

impl Entry {
    /// Reads the entry as a lease.
    pub fn lease(&self) -> Result<Lease, RejectReason> {
        let key: SubnetKey = self.key.parse().map_err(|_| RejectReason::Key)?;
        let value = std::str::from_utf8(&self.value)
            .map_err(|error| RejectReason::Value(error.to_string()))?;
        let attributes = Attributes::parse(value)
            .map_err(|error| RejectReason::Value(excerpt(&error.to_string())))?;
        Ok(Lease {
            subnet: key.subnet,
            subnet_v6: key.subnet_v6,
            attributes,
            reserved: self.term == Term::Reserved,
            expires: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, revision: u64) -> Entry {
        Entry {
            key: key.into(),
            value: value.into(),
            revision,
            term: Term::Renewed(1),
        }
    }

    const ONE: &str = r#"{"PublicIP":"1.1.1.1"}"#;
    const TWO: &str = r#"{"PublicIP":"2.2.2.2"}"#;

    fn public_ips(table: &Table) -> Vec<String> {
        table
            .leases()
            .0
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
            }),
            true,
        );
        assert_eq!(table.leases().0.len(), 3);
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
        let (leases, rejected) = table.leases();
        assert_eq!(leases.len(), 1);
        assert_eq!(rejected.len(), 3);
        assert_eq!(rejected[2].reason, RejectReason::Key);
        assert_eq!(table.taken().len(), 3);
    }
}
