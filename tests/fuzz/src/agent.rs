//! What the tools read of an agent and of the packet filter.

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

/// What `nft -j list counters` prints.
pub fn guard_counters(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut counters = GuardCounters::default();
    if let Err(error) = counters.read(text) {
        explained(&error);
        assert_eq!(
            counters,
            GuardCounters::default(),
            "half a listing is taken"
        );
    }
}
