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
    table.apply(EntryChange::Put(entry("10.0.1.0-24", ONE, 5)), false);
    table.apply(
        EntryChange::Gone {
            key: "10.0.1.0-24".into(),
            revision: 6,
        },
        false,
    );
    assert_eq!(public_ips(&table), ["2.2.2.2"]);
    table.apply(
        EntryChange::All(Listing {
            entries: vec![],
            revision: 6,
            as_of: None,
        }),
        false,
    );
    assert_eq!(public_ips(&table), ["2.2.2.2"], "written after the listing");
    table.apply(
        EntryChange::Gone {
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
        EntryChange::All(Listing {
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
        EntryChange::Gone {
            key: "10.0.1.0-24".into(),
            revision: 2,
        },
        true,
    );
    table.apply(
        EntryChange::All(Listing {
            entries: vec![],
            revision: 3,
            as_of: None,
        }),
        true,
    );
    assert_eq!(table.leases().len(), 3);
    assert!(
        table
            .entries_of(&IpAddr::from([1, 1, 1, 1]).into())
            .is_empty(),
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
    // A listing after an outage, in which every entry was rewritten with its former value.
    let entries = keys.map(|key| entry(key, ONE, 8)).into();
    table.apply(
        EntryChange::All(Listing {
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
        EntryChange::All(Listing {
            entries: entries.into(),
            revision: 0,
            as_of: Some(SystemTime::UNIX_EPOCH),
        })
    };
    let mut table = Table::default();
    // This node's own lease, which the registry has reported already.
    table.put(entry("10.0.1.0-24", TWO, 5));
    table.apply(last(), false);
    assert!(table.is_complete() && table.as_of().is_some());
    assert_eq!(public_ips(&table), ["2.2.2.2", "1.1.1.1"]);
    // The same holds for a registry that was created anew and counts from the beginning.
    let answer = Listing {
        entries: vec![entry("10.0.1.0-24", TWO, 5)],
        revision: 5,
        as_of: None,
    };
    table.apply(EntryChange::All(answer), false);
    assert_eq!(table.as_of(), None);
    assert_eq!(public_ips(&table), ["2.2.2.2"]);
    table.apply(last(), false);
    assert_eq!((public_ips(&table).len(), table.as_of()), (1, None));
}

#[test]
fn of_equal_counts_the_one_that_comes_last_is_believed() {
    let mut table = Table::default();
    table.put(entry("10.0.1.0-24", ONE, 7));
    table.put(entry("10.0.1.0-24", TWO, 7));
    assert_eq!(public_ips(&table), ["2.2.2.2"]);
    let listing = Listing {
        entries: vec![entry("10.0.1.0-24", ONE, 7)],
        revision: 7,
        as_of: None,
    };
    table.apply(EntryChange::All(listing), false);
    assert_eq!(public_ips(&table), ["1.1.1.1"]);
}

#[test]
fn an_entry_is_found_by_its_key_and_its_address_until_it_is_forgotten() {
    let mut table = Table::default();
    let (one, two) = (entry("10.0.1.0-24", ONE, 1), entry("10.0.2.0-24", TWO, 2));
    table.put(one.clone());
    table.put(two);
    assert_eq!(table.get(&one.key), Some(&one));
    let of = |table: &Table| {
        let found = table.entries_of(&IpAddr::from([1, 1, 1, 1]).into());
        found
            .into_iter()
            .map(|(entry, _)| entry)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&table), std::slice::from_ref(&one));
    table.forget(&one.key);
    assert_eq!((table.get(&one.key), of(&table)), (None, vec![]));
    assert_eq!(public_ips(&table), ["2.2.2.2"]);
}

#[test]
fn a_node_with_another_address_is_known_by_the_rest() {
    let says = |public_ip: &str, mac: &str| {
        format!(
            "{{\"PublicIP\":\"{public_ip}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\
            \"VtepMAC\":\"{mac}\"}}}}"
        )
    };
    let (ours, others) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    let mut table = Table::default();
    table.put(entry("10.0.1.0-24", &says("1.1.1.1", ours), 1));
    let moved = |subnet: &str, says: &str| {
        let subnet: IpNet = subnet.parse().expect("a subnet");
        let attributes = Attributes::parse(says).expect("attributes");
        table
            .moved(&subnet.into(), &attributes)
            .map(|(entry, _)| entry.key)
    };
    let key = Some("10.0.1.0-24".to_owned());
    assert_eq!(moved("10.0.1.0/24", &says("2.2.2.2", ours)), key);
    assert_eq!(moved("10.0.1.0/24", &says("2.2.2.2", others)), None);
    assert_eq!(moved("10.0.1.0/24", &says("1.1.1.1", ours)), None);
    assert_eq!(moved("10.0.2.0/24", &says("2.2.2.2", ours)), None);
}

#[test]
fn an_answer_is_what_the_registry_itself_has_said() {
    let all = |as_of| {
        EntryChange::All(Listing {
            entries: vec![],
            revision: 1,
            as_of,
        })
    };
    assert!(EntryChange::Alive.is_answer() && all(None).is_answer());
    assert!(!all(Some(SystemTime::UNIX_EPOCH)).is_answer());
    assert!(!EntryChange::Unreachable("why".to_owned()).is_answer());
}
