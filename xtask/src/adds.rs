//! `cargo xtask adds`: the duration of the plugin's calls for a pod while many pods are added and
//! deleted.

mod lab;

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use overlay_tests::Options;
use overlay_tests::kubernetes::{CallTimes, Cluster};
use serde::Serialize;

use crate::bench::Machine;
use crate::lab::Output;
use crate::{build, setup, shell, workspace};

/// Measure how long ADD and DEL take, on a real kubelet or alone, while pods come and go.
///
/// A cluster of two nodes. One makes its pods by our plugin, with the overlay's agent; the other,
/// without an agent, by the chain that flannel's plugin calls (`bridge`, `host-local`), one after
/// the other with the same load. A call is timed from the start of the plugin to its end. Needs
/// root, and takes about five minutes; `--lab` has no cluster and no kubelet beside, and takes
/// seconds.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask adds
  cargo xtask adds --pods 30 --at-a-time 1        without load
  cargo xtask adds --lab --at-a-time 1            the plugins alone
  cargo xtask adds --output json")]
pub struct Arguments {
    /// How many pods come and go on each node.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pods: usize,
    /// How many of them are made together.
    #[arg(long, default_value_t = 10, value_name = "N")]
    at_a_time: usize,
    /// Namespaces of a lab in place of a cluster's pods.
    #[arg(long)]
    lab: bool,
    /// What to print on stdout: a table for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Do not build first; take the programs in target/release as they are.
    #[arg(long)]
    no_build: bool,
}

/// The node with our plugin and an agent, and the node with the reference plugins and no agent.
const OURS: usize = 1;
const REFERENCE: usize = 2;

#[derive(Serialize)]
struct Findings {
    machine: Machine,
    at_a_time: usize,
    results: Vec<Times>,
}

/// The times of one node's plugin.
#[derive(Serialize)]
struct Times {
    plugin: &'static str,
    add: CallTimes,
    del: CallTimes,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        pods, at_a_time, ..
    } = *arguments;
    ensure!(pods > 0 && at_a_time > 0, "nothing to measure");
    if arguments.lab {
        setup::ensure_tests()?;
    } else {
        setup::ensure_kubernetes()?;
    }
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(true)?;
    }
    let results = if arguments.lab {
        lab::measure(pods, at_a_time)?
    } else {
        measure(pods, at_a_time)?
    };
    let findings = Findings {
        machine: Machine::describe(),
        at_a_time,
        results,
    };
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table => println!("{}", render(&findings)),
    }
    Ok(())
}

fn options() -> Options {
    Options {
        prefix: format!("{}adds-", Options::default().prefix),
        bin_dir: workspace::target().join("release"),
        ephemeral: true,
        ..Options::default()
    }
}

/// Measures pods of a cluster, which a kubelet and a runtime add and remove.
fn measure(pods: usize, at_a_time: usize) -> Result<Vec<Times>> {
    let cluster = Cluster::up(Options {
        nodes: 2,
        ..options()
    })?;
    cluster.apply_overlay()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    let nodes = cluster.nodes();
    let time = |number: usize, plugin, what| {
        shell::progress(&format!("{pods} pods, {at_a_time} at a time: {what}"));
        let node = &nodes[number - 1];
        node.time_calls(plugin)?;
        cluster.churn(number, pods, at_a_time)?;
        anyhow::Ok(Times {
            plugin: what,
            add: node.call_times("ADD").context(what)?,
            del: node.call_times("DEL").context(what)?,
        })
    };
    let ours = time(OURS, "flannel", "overlay-cni")?;
    // An agent gives its programs to every pod of its node, whichever plugin made the pod.
    cluster.follow("Uninstall")?;
    cluster.use_reference_plugins(REFERENCE)?;
    let reference = time(REFERENCE, "bridge", "bridge, host-local")?;
    cluster.down()?;
    Ok(vec![ours, reference])
}

fn render(findings: &Findings) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["PLUGIN", "CALL", "CALLS", "P50 ms", "P99 ms"]);
    for Times { plugin, add, del } in &findings.results {
        for (verb, times) in [("ADD", add), ("DEL", del)] {
            table.add_row([
                (*plugin).to_owned(),
                verb.to_owned(),
                times.count.to_string(),
                format!("{:.1}", times.p50_ms),
                format!("{:.1}", times.p99_ms),
            ]);
        }
    }
    format!(
        "{table}\n\n{} at a time; {}",
        findings.at_a_time, findings.machine
    )
}
