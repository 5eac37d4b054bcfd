//! Bad input of every kind is told clearly, costs no pod a connection and brings no agent down.

mod cni;
mod environment;
mod lease_flood;
mod leases;
mod network_config;
mod waiting;
mod witness;

use std::time::Duration;

use anyhow::Result;
use overlay_tests::{Lab, Options, StoreKind};

/// How long an agent may take to tell what it thinks of something.
const PATIENCE: Duration = Duration::from_secs(10);

fn lab(name: &str, nodes: usize, store: StoreKind) -> Result<Lab> {
    Lab::up(Options {
        nodes,
        store,
        ..Options::for_test(name)
    })
}
