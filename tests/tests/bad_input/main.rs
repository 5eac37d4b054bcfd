//! Bad input of every kind is reported clearly, costs no pod a connection and ends no agent.

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

/// Longest time until an agent reports bad input.
const PATIENCE: Duration = Duration::from_secs(10);

fn lab(name: &str, nodes: usize, store: StoreKind) -> Result<Lab> {
    Lab::up(Options {
        nodes,
        store,
        ..Options::for_test(name)
    })
}
