//! Maps are filled. Pods cannot fill theirs: a Linux bridge has at most 1023 ports
//! (`BR_MAX_PORTS`), and the map has room for 1024.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use super::scene::{PINS, REPAIR, Scene, ensure_logged, text};
use super::{Case, Stage};
use crate::wait_until;

/// Leases that fill the table of peers: each takes 256 entries.
const LARGE_LEASES: u8 = 64;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "peers-full",
        fault: "leases fill the fast path's table of peers, so that the other node finds no room",
        invariant: "the kernel path serves it, nothing is refused, and the log says why",
        stage: Stage::Wide,
        run: peers_full,
        ..Case::USUAL
    },
    Case {
        name: "flows-full",
        fault: "the table of flows that the IP stack owns is filled with ones that there are not",
        invariant: "the agent clears them away",
        quick: false,
        run: flows_full,
        ..Case::USUAL
    },
];

fn peers_full(scene: &Scene<'_>) -> Result<()> {
    let (lab, node) = (scene.lab, scene.node());
    let key = |i: u8| format!("/coreos.com/network/subnets/10.{i}.0.0-16");
    for i in 0..LARGE_LEASES {
        let value = format!(
            "{{\"PublicIP\":\"192.0.2.{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:01:{i:02x}\"}}}}",
            i + 1
        );
        lab.etcdctl(&["put", &key(i), &value])?;
    }
    let routes = usize::from(LARGE_LEASES) + 1;
    let full = || -> Result<()> {
        for node in lab.nodes() {
            wait_until("a route to everyone", REPAIR, || {
                node.overlay_routes().is_ok_and(|found| found == routes)
            })?;
        }
        let subnet = lab.node(2).subnet()?;
        let told = format!("peer subnet {subnet} is left to the kernel path: no room");
        wait_until("the agent to say so", REPAIR, || {
            ensure_logged(&node, &told).is_ok()
        })?;
        // The entry existed while there was room.
        wait_until("it to leave the table", REPAIR, || {
            in_peers(scene).is_ok_and(|there| !there)
        })?;
        scene.talk()
    };
    let result = full();
    for i in 0..LARGE_LEASES {
        lab.etcdctl(&["del", &key(i)])?;
    }
    result?;
    wait_until("the other node to be in the table", REPAIR, || {
        in_peers(scene).unwrap_or(false)
    })
}

/// Whether the other node is in the first one's table of peers.
fn in_peers(scene: &Scene<'_>) -> Result<bool> {
    let pin = format!("{PINS}/maps/ov_peers4");
    let subnet = scene.lab.node(2).subnet()?.addr().octets();
    let words = subnet.map(|byte| byte.to_string());
    let line = ["bpftool", "map", "lookup", "pinned", &pin, "key"];
    let line = line.into_iter().chain(words.iter().map(String::as_str));
    Ok(scene.node().exec(line)?.status.success())
}

fn flows_full(scene: &Scene<'_>) -> Result<()> {
    let (node, pin) = (scene.node(), format!("{PINS}/maps/ov_flows4"));
    let map = node.json(["bpftool", "-j", "map", "show", "pinned", &pin])?;
    let size = |key: &str| -> Result<usize> {
        let size = map[key]
            .as_u64()
            .with_context(|| format!("the map's {key}"))?;
        Ok(usize::try_from(size)?)
    };
    let (key, value) = (size("bytes_key")?, size("bytes_value")?);
    let count = u32::try_from(size("max_entries")?)?;
    let zeros = |bytes: usize| "0 ".repeat(bytes);
    let mut batch = String::new();
    for i in 0..count {
        let [a, b, c, d] = i.to_be_bytes();
        writeln!(
            batch,
            "map update pinned {pin} key {a} {b} {c} {d} {}value {}",
            zeros(key - 4),
            zeros(value)
        )?;
    }
    let path = scene.put("flows", batch.as_bytes())?;
    node.run(["bpftool", "batch", "file", &text(&path)])?;
    let flows = || -> Result<usize> {
        let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
        Ok(entries.as_array().map_or(0, Vec::len))
    };
    // An LRU map evicts some entries before it is full.
    let found = flows()?;
    ensure!(found > size("max_entries")? / 2, "only {found} flows");
    scene.talk()?;
    wait_until("the agent to clear them away", 2 * REPAIR, || {
        flows().is_ok_and(|flows| flows < 1000)
    })
}
