//! Directories of addresses.

use std::fs;
use std::time::Instant;

use super::*;

fn attachment(container: &str) -> Attachment {
    Attachment {
        container: container.into(),
        interface: "eth0".into(),
    }
}

const SOON: Duration = Duration::from_millis(50);

fn soon() -> Deadline {
    Deadline::after(SOON)
}

fn range() -> Range {
    Range::new("10.244.1.1/29".parse().expect("a subnet")).expect("large enough")
}

#[test]
fn files_are_those_of_host_local() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    let address = store
        .allocate(&range(), 0, &attachment("c1"))
        .expect("an address");
    assert_eq!(address.to_string(), "10.244.1.2");
    let content = |name| fs::read_to_string(dir.path().join(name)).expect("a file");
    assert_eq!(content("10.244.1.2"), "c1\r\neth0");
    assert_eq!(content("last_reserved_ip.0"), "10.244.1.2");
    assert_eq!(content("lock"), "");
    let files = fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(files, 3, "host-local knows no other file");
}

#[test]
fn addresses_go_round_and_gaps_are_used_last() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    let next = |container: &str| {
        store
            .allocate(&range(), 0, &attachment(container))
            .map(|address| address.to_string())
    };
    assert_eq!(next("a").expect("free"), "10.244.1.2");
    assert_eq!(next("b").expect("free"), "10.244.1.3");
    store
        .free("10.244.1.2".parse().expect("an address"))
        .expect("freed");
    assert_eq!(next("c").expect("free"), "10.244.1.4");
    assert_eq!(next("d").expect("free"), "10.244.1.5");
    assert_eq!(next("e").expect("free"), "10.244.1.6");
    assert_eq!(next("f").expect("free"), "10.244.1.2");
    let full = next("g").expect_err("the range is full").to_string();
    assert!(full.contains("10.244.1.1-10.244.1.6"), "{full}");
    assert!(full.contains(dir.path().to_str().expect("UTF-8")), "{full}");
}

#[test]
fn one_attachment_gets_one_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    store
        .allocate(&range(), 0, &attachment("a"))
        .expect("an address");
    assert!(matches!(
        store.allocate(&range(), 0, &attachment("a")),
        Err(Error::Duplicate { .. })
    ));
    let second = Attachment {
        interface: "net1".into(),
        ..attachment("a")
    };
    store
        .allocate(&range(), 0, &second)
        .expect("another interface is another attachment");
}

#[test]
fn an_address_can_be_asked_for_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    let address = |last: u8| IpAddr::from([10, 244, 1, last]);
    let claim = |last, container| store.claim(&range(), address(last), &attachment(container));
    assert_eq!(claim(5, "a").expect("free"), address(5));
    assert!(Store::is_held(dir.path(), address(5), &attachment("a")));
    assert!(!Store::is_held(dir.path(), address(5), &attachment("b")));
    assert!(matches!(claim(5, "b"), Err(Error::Taken { .. })));
    assert!(matches!(claim(4, "a"), Err(Error::Duplicate { .. })));
    for outside in [1, 7, 9] {
        assert!(matches!(claim(outside, "b"), Err(Error::Outside { .. })));
    }
    let next = store.allocate(&range(), 0, &attachment("c"));
    assert_eq!(next.expect("free"), address(2), "the round is where it was");
}

#[test]
fn corrupt_files_are_taken_but_do_not_block() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    fs::write(dir.path().join("10.244.1.2"), "").expect("written");
    fs::write(dir.path().join("10.244.1.3"), [0xff, 0xfe, 0x00]).expect("written");
    fs::create_dir(dir.path().join("10.244.1.4")).expect("made");
    fs::write(dir.path().join("last_reserved_ip.0"), "nonsense").expect("written");
    let address = store
        .allocate(&range(), 0, &attachment("a"))
        .expect("an address");
    assert_eq!(address.to_string(), "10.244.1.5");
    assert_eq!(store.held_by(&attachment("a")).expect("listed"), [address]);
}

#[test]
fn whoever_has_the_lock_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let held = Store::lock(dir.path(), soon()).expect("a lock");
    let start = Instant::now();
    let error = Store::lock(dir.path(), soon()).expect_err("it is taken");
    assert!(start.elapsed() >= SOON, "given up before the time was over");
    let own = format!("locked by process {} (", std::process::id());
    assert!(error.to_string().contains(&own), "{error}");
    drop(held);
    Store::lock(dir.path(), soon()).expect("a lock");
}

#[test]
fn freeing_twice_is_fine() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::lock(dir.path(), soon()).expect("a lock");
    let address = store
        .allocate(&range(), 0, &attachment("a"))
        .expect("an address");
    store.release(&attachment("b")).expect("nothing to release");
    assert_eq!(store.held_by(&attachment("a")).expect("listed"), [address]);
    store.release(&attachment("a")).expect("released");
    assert_eq!(store.entries().expect("listed"), []);
    store.free(address).expect("free already");
    assert_eq!(store.entries().expect("listed"), []);
}
