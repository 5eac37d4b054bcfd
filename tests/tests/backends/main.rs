//! Packets between nodes without encapsulation: host-gw, and DirectRouting of the vxlan backend.

mod change;
mod forged;
mod reach;

use anyhow::Result;
use overlay_tests::fast_path::wait_serving;
use overlay_tests::{BackendKind, Lab, Node, Options};

/// A lab of two nodes with a backend.
fn lab(name: &str, kind: BackendKind, fast_path: &str, guard: &str) -> Result<Lab> {
    let options = Options {
        fast_path: fast_path.to_owned(),
        agent_args: vec![format!("--guard={guard}")],
        ..Options::for_test(name)
    };
    Lab::up(options.with_backend(kind))
}

fn wait_fast(lab: &Lab) -> Result<()> {
    lab.nodes().iter().try_for_each(wait_serving)
}

/// The route of a node to the other one's subnet.
fn route(node: &Node, other: &Node) -> Result<String> {
    let subnet = other.subnet()?.to_string();
    node.run(["ip", "route", "show", &subnet])
}
