//! Entries of the pinned maps.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Options, wait_until};
use serde_json::Value;

use crate::{MAPS, RESYNC, dump, lab, talk};

/// Words of a key as `bpftool` takes them, from its JSON.
fn hex(bytes: &Value) -> Vec<String> {
    let bytes = bytes.as_array().cloned().unwrap_or_default();
    bytes
        .iter()
        .filter_map(|byte| byte.as_str().map(str::to_owned))
        .collect()
}

#[test]
fn map_entries_heal() -> Result<()> {
    let lab = lab(Options::for_test("maps"))?;
    let node = lab.node(1);
    for map in [
        "ov_pods4",
        "ov_endpoints4",
        "ov_peers4",
        "ov_vteps4",
        "ov_config4",
    ] {
        let before = dump(&node, map)?;
        let pin = format!("{MAPS}/{map}");
        let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
        let (key, value) = (hex(&entries[0]["key"]), hex(&entries[0]["value"]));
        ensure!(!key.is_empty() && !value.is_empty(), "{map} has no entry");
        let word = |text: &str| text.to_owned();
        let zeros = vec![word("0x00"); value.len()];
        let base = |verb: &str| {
            let mut line: Vec<String> = ["bpftool", "map", verb, "pinned", &pin, "key"]
                .map(word)
                .into();
            line.extend(key.clone());
            line
        };
        let mut changes = vec![[base("update"), vec![word("value")], zeros].concat()];
        if map != "ov_config4" {
            changes.push(base("delete"));
        }
        for change in changes {
            let agent = node.agent().context("an agent")?;
            agent.signal(Signal::SIGSTOP)?;
            let damage = node.run(&change).and_then(|_| dump(&node, map));
            agent.signal(Signal::SIGCONT)?;
            let start = Instant::now();
            ensure!(damage? != before, "{map}: nothing was damaged");
            wait_until(&format!("{map}: the repair"), RESYNC, || {
                dump(&node, map).is_ok_and(|now| now == before)
            })
            .with_context(|| {
                format!(
                    "before {before:?}, now {:?}; {}",
                    dump(&node, map),
                    node.agent_log_tail()
                )
            })?;
            println!(
                "{map} {}: repaired after {} ms",
                change[2],
                start.elapsed().as_millis()
            );
            talk(&lab)?;
        }
    }
    lab.down()
}
