//! `cargo xtask conformance`: Kubernetes' own tests of a cluster's network, with the overlay as the
//! network.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use overlay_tests::Options;
use overlay_tests::kubernetes::{CONFORMANCE, Case, Cluster, Outcome};
use overlay_tests::status::Counts;
use serde::Serialize;

use crate::bench::Machine;
use crate::lab::Output;
use crate::{build, setup, shell};

/// Run Kubernetes' own conformance tests of networks against the overlay.
///
/// A cluster of two nodes with the overlay's manifest and the fast path on, and the end-to-end
/// tests that Kubernetes brings, built from the same source. The images that they ask for are made
/// from that source and from Debian's programs; names are served by dnsmasq. Cases run one after
/// the other. The exit code is 0 only if all passed; one that was skipped has not. Nothing is left.
/// Needs root; takes a quarter of an hour, and some minutes more the first time.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask conformance
  cargo xtask conformance --focus multiport
  cargo xtask conformance --report report.json")]
pub struct Arguments {
    /// Only cases whose name matches this regular expression, as Go writes them.
    #[arg(long, value_name = "REGEX", default_value = CONFORMANCE)]
    focus: String,
    /// Where to write what each case did, with all that failed ones have said, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// What to print on stdout: a table for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

#[derive(Serialize)]
struct Findings {
    machine: Machine,
    /// The server's version.
    kubernetes: String,
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
    /// The use of the fast path for packets between pods, by node.
    fast_path: BTreeMap<String, Share>,
    cases: Vec<Case>,
}

/// The use of the fast path on a node.
#[derive(Serialize)]
struct Share {
    /// Share of the packets that took the fast path.
    hit_ratio: f64,
    packets: Counts,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure_conformance()?;
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(false)?;
    }
    let cluster = Cluster::up(Options {
        prefix: format!("{}conformance-", Options::default().prefix),
        nodes: 2,
        ephemeral: true,
        ..Options::default()
    })?;
    cluster.apply_overlay()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    shell::progress("images of the tests");
    cluster.prepare_upstream()?;
    let begin = Instant::now();
    let cases = cluster.try_upstream(&arguments.focus, shell::progress)?;
    let seconds = begin.elapsed().as_secs_f64();
    let count = |outcome| cases.iter().filter(|case| case.outcome == outcome).count();
    let findings = Findings {
        machine: Machine::describe(),
        kubernetes: version(&cluster)?,
        passed: count(Outcome::Passed),
        failed: count(Outcome::Failed),
        skipped: count(Outcome::Skipped),
        seconds,
        fast_path: shares(&cluster)?,
        cases,
    };
    shell::progress("cleaning up");
    cluster.down()?;

    let json = serde_json::to_string_pretty(&findings).context("write the findings as JSON")?;
    if let Some(path) = &arguments.report {
        fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{json}"),
        Output::Table => println!("{}", render(&findings)),
    }
    let held = findings.passed == findings.cases.len();
    Ok(if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn version(cluster: &Cluster) -> Result<String> {
    let version = cluster.json(["version"])?;
    let version = version["serverVersion"]["gitVersion"].as_str();
    version.map(str::to_owned).context("the server's version")
}

fn shares(cluster: &Cluster) -> Result<BTreeMap<String, Share>> {
    let share = |node: &overlay_tests::kubernetes::Node| {
        let status = cluster.exec_overlay(node, ["overlayctl", "status", "--output=json"])?;
        let status = serde_json::from_str(&status).context("the status as JSON")?;
        let packets = Counts::told(&status)?;
        let hit_ratio = packets.hit_ratio_without(&[]);
        Ok((node.name(), Share { hit_ratio, packets }))
    };
    cluster.nodes().iter().map(share).collect()
}

fn render(findings: &Findings) -> String {
    let Findings {
        machine,
        kubernetes,
        passed,
        failed,
        skipped,
        seconds,
        fast_path,
        cases,
    } = findings;
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["RESULT", "SECONDS", "CASE"]);
    for Case {
        name,
        outcome,
        seconds,
        ..
    } in cases
    {
        let outcome = match outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        };
        table.add_row([outcome.to_owned(), format!("{seconds:.0}"), name.clone()]);
    }
    let mut text = format!("{table}\n");
    for Case { name, cause, .. } in cases.iter().filter(|case| !case.cause.is_empty()) {
        text += &format!("\n{name}:\n{cause}\n");
    }
    for (node, Share { hit_ratio, packets }) in fast_path {
        text += &format!(
            "\nfast-path hit ratio of {node}: {:.1} % of {} packets; left to the kernel: {}",
            hit_ratio * 100.0,
            packets.fast() + packets.slow.values().sum::<u64>(),
            packets.left_to_kernel()
        );
    }
    format!(
        "{text}\nKubernetes {kubernetes}: {passed} passed, {failed} failed, {skipped} skipped in \
         {seconds:.0} s; {machine}"
    )
}
