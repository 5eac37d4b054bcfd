use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16"}"#;

fn memory(directory: &TempDir, node: &str, prefix: &str) -> Memory {
    let options = Options {
        api_url: None,
        kubeconfig: None,
        annotation_prefix: prefix.into(),
        config_path: PathBuf::new(),
        identity: None,
        memory: Some(directory.path().join("nodes.json")),
    };
    let memory = Memory::new(&options, Identity::Node(node.into()));
    memory.note_network(NETWORK);
    memory
}

fn known() -> Listing {
    let entry = |key: &str, node: &str, refused: Option<&str>| Entry {
        node: Some(node.into()),
        public_ip: Some([1, 2, 3, 4].into()),
        refused: refused.map(|text| RejectReason::PodCidr(text.into())),
        ..Entry::new(key.into(), r#"{"PublicIP":"1.1.1.1"}"#, 77, Term::Reserved)
    };
    Listing {
        entries: vec![
            entry("10.244.1.0-24", "own", None),
            entry("10.244.2.0-24", "other", None),
            entry("node odd", "odd", Some("it has no podCIDR")),
        ],
        revision: 80,
        as_of: None,
    }
}

fn read(memory: &Memory, network: &str) -> Result<Recalled, String> {
    memory.read(memory.path.as_deref().expect("a path"), network)
}

#[test]
fn what_is_written_is_recalled_and_older_than_any_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(&directory, "own", "a.b");
    let address = "192.0.2.1".parse().ok();
    memory.write("own", address, &known());
    let recalled = read(&memory, NETWORK).expect("of use");
    assert_eq!(recalled.own, "own");
    assert_eq!(recalled.node_public_ip, address);
    let listing = recalled.listing();
    assert!(listing.as_of.is_some());
    let older = |entry: &Entry| Entry {
        revision: 0,
        ..entry.clone()
    };
    let wanted: Vec<Entry> = known().entries.iter().map(older).collect();
    assert_eq!(listing.entries, wanted);
    let given = recalled.given().expect("a subnet");
    assert_eq!(given.entry, wanted[0]);
    assert!(given.as_of.is_some());
}

/// The field names must not change, because an agent of another build reads the file.
#[test]
fn the_file_has_the_fields_that_it_always_had() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = "192.0.2.1".parse().ok();
    memory(&directory, "own", "a.b").write("own", address, &known());
    let text = fs::read(directory.path().join("nodes.json")).expect("the file");
    let text: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let entry = |key: &str, node: &str, refused: Option<&str>| {
        json!({
            "key": key, "value": r#"{"PublicIP":"1.1.1.1"}"#, "node": node, "public_ip": "1.2.3.4",
            "refused": refused,
        })
    };
    let odd = RejectReason::PodCidr("it has no podCIDR".into()).to_string();
    let wanted = json!({
        "version": 1,
        "scope": {"identity": {"Node": "own"}, "prefix": "a.b", "network": NETWORK},
        "own": "own",
        "node_public_ip": "192.0.2.1",
        "entries": [
            entry("10.244.1.0-24", "own", None),
            entry("10.244.2.0-24", "other", None),
            entry("node odd", "odd", Some(&odd)),
        ],
    });
    assert_eq!(text, wanted);
}

#[test]
fn what_another_node_or_network_knew_is_of_no_use() {
    let directory = tempfile::tempdir().expect("a directory");
    memory(&directory, "own", "a.b").write("own", None, &known());
    for (node, prefix, network) in [
        ("other", "a.b", NETWORK),
        ("own", "a.c", NETWORK),
        ("own", "a.b", r#"{"Network":"10.0.0.0/8"}"#),
    ] {
        let why = read(&memory(&directory, node, prefix), network).expect_err("of no use");
        assert!(why.contains("of another node"), "{why}");
    }
}

#[test]
fn a_file_that_others_could_have_written_or_of_nonsense_is_of_no_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = memory(&directory, "own", "a.b");
    let path = directory.path().join("nodes.json");
    let why = |what: &str| {
        let why = read(&memory, NETWORK).expect_err(what);
        assert!(why.len() < 200, "{why}");
        why
    };
    why("no file");
    memory.write("own", None, &known());
    fs::set_permissions(&path, Permissions::from_mode(0o622)).expect("changed");
    assert!(why("writable by others").contains("owner alone"));
    fs::remove_file(&path).expect("removed");
    for text in ["", "{", "[]", r#"{"version":1}"#, "\u{0}"] {
        fs::write(&path, text).expect("written");
        why(text);
    }
    fs::write(&path, r#"{"version":2,"anything":[]}"#).expect("written");
    assert!(why("of the future").contains("version 2"));
    let long = File::create(&path).expect("a file");
    long.set_len(file::LONGEST + 1).expect("long");
    assert!(why("long").contains("bytes"));
    fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
    why("a link");
}

#[test]
fn the_api_server_has_time_and_the_last_word() {
    let directory = tempfile::tempdir().expect("a directory");
    memory(&directory, "own", "a.b").write("own", None, &known());
    let memory = memory(&directory, "own", "a.b");
    let soon = memory.begun + GRACE / 2;
    assert!(memory.recall_at(soon).is_none(), "it may answer yet");
    assert!(memory.recall_at(memory.begun + GRACE).is_some());
    memory.let_go();
    assert!(memory.recall_at(memory.begun + GRACE).is_none());
}
