//! The way to another node: changes in the kernel's neighbour table and routes appear in the fast
//! path's table.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use overlay_tests::pins::MAPS;
use overlay_tests::{Lab, Node, Options, wait_until};

/// Longest time for changes that netlink reports, because machines that run tests are slow.
const SOON: Duration = Duration::from_secs(4);

/// The entry of the one peer in the fast path's table, in hexadecimal.
fn peer(node: &Node) -> Result<String> {
    let peers = format!("{MAPS}/ov_peers4");
    let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &peers])?;
    let bytes = entries[0]["value"].as_array().context("no peer")?;
    let bytes = bytes.iter().filter_map(|byte| byte.as_str());
    Ok(bytes
        .map(|byte| byte.trim_start_matches("0x"))
        .collect::<Vec<_>>()
        .join(":"))
}

/// Waits until the outer frames to the one peer are prepared for `mac`.
fn goes_to(node: &Node, mac: &str) -> Result<()> {
    wait_until(&format!("outer frames to {mac}"), SOON, || {
        peer(node).is_ok_and(|entry| entry.starts_with(mac))
    })
    .with_context(|| format!("the peer is {:?}; {}", peer(node), node.agent_log_tail()))
}

/// The neighbour is among many others that change all the time.
#[test]
fn a_neighbour_that_changes_is_followed() -> Result<()> {
    let lab = Lab::up(Options::for_test("hops"))?;
    let (node, other) = (lab.node(1), lab.node(2).underlay_address());
    let churn = "while :; do for k in 1 2; do for i in $(seq 10 40); do
        echo neigh replace 192.168.66.2$i lladdr 02:00:00:00:$k:$i dev eth0
        done | ip -batch -; done; done";
    let _churn = node.spawn(["sh", "-c", churn])?;
    for mac in ["02:00:00:00:00:a1", "02:00:00:00:00:a2"] {
        let replace = format!("ip neigh replace {other} lladdr {mac} dev eth0 nud permanent");
        node.run(["sh", "-c", &replace])?;
        goes_to(&node, mac)?;
    }
    lab.down()
}

/// Of two next hops, the one that the kernel chooses is used; when that one disappears, the other.
#[test]
fn one_of_several_next_hops_is_taken() -> Result<()> {
    let lab = Lab::up(Options::for_test("legs"))?;
    let (node, other) = (lab.node(1), lab.node(2).underlay_address());
    let own = node.underlay_address();
    let legs = [1, 2].map(|leg| {
        (
            format!("192.168.66.20{leg}"),
            format!("02:00:00:00:0a:0{leg}"),
        )
    });
    let shell = |script: &str| node.run(["sh", "-c", script]);
    let mut route = format!("ip route add {other}");
    for (address, mac) in &legs {
        shell(&format!(
            "ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"
        ))?;
        route += &format!(" nexthop via {address} dev eth0 onlink");
    }
    shell("sysctl -w net.ipv4.fib_multipath_use_neigh=1")?;
    shell(&route)?;
    let chosen = shell(&format!("ip route get {other} from {own}"))?;
    let (chosen, left): (Vec<_>, Vec<_>) = legs
        .iter()
        .partition(|(address, _)| chosen.contains(address.as_str()));
    let [(address, mac)] = chosen[..] else {
        bail!("the kernel chose {chosen:?}");
    };
    goes_to(&node, mac)?;
    shell(&format!("ip neigh replace {address} dev eth0 nud failed"))?;
    goes_to(&node, &left[0].1)?;
    lab.down()
}
