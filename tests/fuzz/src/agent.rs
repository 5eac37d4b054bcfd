//! What the tools read of an agent and of the packet filter.

use netlink_packet_core::{DefaultNla, NlasIterator, Parseable as _};
use overlay_user::kernel::guard::GuardCounters;
use overlay_user::observe::agent_file::AgentFile;

use super::explained;

/// `agent.json`.
pub fn agent_file(data: &[u8]) {
    match AgentFile::parse(data) {
        Ok(file) => {
            let json = serde_json::to_vec(&file).expect("JSON");
            assert_eq!(
                AgentFile::parse(&json).expect("what we write we can read"),
                file
            );
        }
        Err(error) => explained(&error),
    }
}

/// What netlink tells of a counter of the packet filter: its attributes.
pub fn guard_counters(data: &[u8]) {
    let object: Vec<DefaultNla> = NlasIterator::new(data)
        .flatten()
        .filter_map(|attribute| DefaultNla::parse(&attribute).ok())
        .collect();
    let mut counters = GuardCounters::default();
    counters.read(&object);
    assert!(counters.0.len() <= 1, "one object, one counter");
}
