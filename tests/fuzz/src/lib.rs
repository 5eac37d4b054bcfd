//! What must hold for everything that is parsed from outside, whatever it says: no panic, errors
//! that say something, and what is taken comes out as it went in.
//!
//! libFuzzer calls these functions with bytes of its own (`cargo xtask fuzz --target NAME`), and an
//! ordinary test with the checked-in seeds (`seeds/NAME/`).

mod agent;
mod cni;
mod kube;
mod leases;
mod maps;
mod netlink;
mod node;
mod services;
mod store;

use std::fmt::Display;

/// Takes what could come from outside, and panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target by name; `fuzz_targets/` has a file for each.
pub const TARGETS: &[(&str, Target)] = &[
    ("leases", leases::leases),
    ("services", services::services),
    ("store_dir", store::store_dir),
    ("kube_nodes", kube::nodes),
    ("kube_memory", kube::memory),
    ("network_config", leases::network_config),
    ("subnet_env", node::subnet_env),
    ("pod_address", node::pod_address),
    ("pod_note", node::pod_note),
    ("agent_file", agent::agent_file),
    ("guard_counters", agent::guard_counters),
    ("cni_config", cni::config),
    ("cni_request", cni::request),
    ("netlink", netlink::netlink),
    ("map_dump", maps::map_dump),
];

/// Runs a target.
///
/// # Panics
/// When there is none of that name, or what must hold does not.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a target of that name");
    target(data);
}

/// An error has to say something.
fn explained(error: &dyn Display) {
    assert!(
        !error.to_string().trim().is_empty(),
        "an error without a word"
    );
}

/// What others on the network can write is shown in logs and tables: one line, and not a long one.
fn shown(error: &dyn Display) {
    explained(error);
    let text = error.to_string();
    assert!(text.len() < 2000, "{} bytes of error", text.len());
    assert!(
        !text.chars().any(char::is_control),
        "control characters: {text:?}"
    );
}
