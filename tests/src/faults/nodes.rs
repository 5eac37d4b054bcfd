//! Nodes change their addresses, leave, and return.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::Case;
use super::scene::{REPAIR, Scene, shell};
use crate::{Node, wait_until};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "node-address-changed",
        fault: "the node's address changes while its agent runs, and changes back",
        invariant: "the lease says so, and peers follow",
        budget: 46_000,
        cuts_wire: true,
        run: |scene| {
            for last in [101, 1] {
                set_address(scene, last)?;
                wait_known(scene, last)?;
            }
            Ok(())
        },
        ..Case::USUAL
    },
    Case {
        name: "node-back-with-another-address",
        fault: "the agent ends, the node's address changes, the agent starts; and all that back",
        invariant: "the node goes on with its lease; peers take it for the same node, whose MAC \
            address it has",
        budget: 11_000,
        cuts_wire: true,
        run: |scene| {
            for last in [101, 1] {
                back_with_another_address(scene, last)?;
            }
            Ok(())
        },
        ..Case::USUAL
    },
];

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 66, last)
}

fn set_address(scene: &Scene<'_>, last: u8) -> Result<()> {
    shell(
        &scene.node(),
        &format!(
            "ip address flush dev eth0; ip address add {}/24 dev eth0
             ip route replace default via 192.168.66.253",
            address(last)
        ),
    )
    .map(drop)
}

/// Waits until the other node sends to the address.
fn wait_known(scene: &Scene<'_>, last: u8) -> Result<()> {
    let vtep = format!("dst {} ", address(last));
    let fdb = || shell(&scene.lab.node(2), "bridge fdb show dev flannel.1");
    wait_until("the other node to know the new address", REPAIR, || {
        fdb().is_ok_and(|fdb| fdb.contains(&vtep) && fdb.matches("dst ").count() == 1)
    })
    .with_context(|| format!("{:?}; {}", fdb(), scene.lab.node(2).agent_log_tail()))?;
    scene.wait_recovered()
}

fn back_with_another_address(scene: &Scene<'_>, last: u8) -> Result<()> {
    let node = scene.node();
    let subnet = node.subnet()?;
    node.stop_agent(Signal::SIGTERM)?;
    set_address(scene, last)?;
    node.start_agent_unready(&[])?;
    wait_known(scene, last)?;
    ensure!(
        node.subnet()? == subnet,
        "{subnet} became {}",
        node.subnet()?
    );
    let leases = leases(scene)?;
    let count = scene.lab.nodes().len();
    ensure!(leases.len() == count, "{leases:?}");
    ensure!(refused(&scene.lab.node(2))? == 0, "a lease is refused");
    Ok(())
}

fn leases(scene: &Scene<'_>) -> Result<Vec<String>> {
    let prefix = "/coreos.com/network/subnets/";
    let list = scene
        .lab
        .etcdctl(&["get", "--prefix", "--keys-only", prefix])?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

/// How many leases a node does not believe.
fn refused(node: &Node) -> Result<usize> {
    let note: serde_json::Value = serde_json::from_str(&node.read_file("/run/overlay/agent.json")?)
        .context("the agent's note")?;
    Ok(note["rejected"].as_array().map_or(0, Vec::len))
}
