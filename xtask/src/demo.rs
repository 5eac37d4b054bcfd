//! `cargo xtask demo`: the overlay at work, from one command.

mod cluster;
mod compare;
mod walk;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use overlay_tests::lab::Report;
use overlay_tests::reach::{self, Check, Relation};
use overlay_tests::status::{self, Counts};
use overlay_tests::{Lab, Options, StoreKind};
use serde::Serialize;

use crate::lab::{Output, table};
use crate::{build, setup, shell};
use compare::Comparison;
use walk::{End, Step};

/// The least share of pod packets that must have taken the fast path, without fragments, because
/// the matrix sends fragments on purpose, and the kernel carries them.
const LEAST_HIT_RATIO: f64 = 0.9;

/// Number of problems in the text, because the rest is usually similar.
const SHOWN_PROBLEMS: usize = 20;

/// Show the overlay at work: three nodes, six pods, a real etcd, and what the fast path brings.
///
/// Builds everything, starts a lab, shows leases and pods and the walk of one packet, checks who
/// reaches whom, measures with the fast path on and off, and removes the lab. Needs root and takes
/// a few minutes the first time, most of them for building. The exit code is 0 only if everything
/// held.
///
/// With --kubernetes on a real cluster of two nodes instead: the overlay by its manifest and image,
/// a deployment with a pod on each node behind a Service, a client, and the walk of one packet.
/// Takes two minutes, and four more the first time, for building Kubernetes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Show it on a Kubernetes cluster.
    #[arg(long)]
    kubernetes: bool,
    /// What to print on stdout: text for people, or one JSON document for scripts.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Leave the lab up, and say how to enter it.
    #[arg(long)]
    keep: bool,
    /// Replace a lab that is up.
    #[arg(long)]
    force: bool,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

/// All findings of the demo.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether every check succeeded.
    held: bool,
    /// The failed checks.
    problems: Vec<String>,
    lab: Report,
    walk: Vec<Step>,
    reachability: Reachability,
    /// Share of pod packets on the fast path, without fragments, by node.
    hit_ratio: BTreeMap<String, f64>,
    comparison: Comparison,
}

#[derive(Debug, Serialize)]
struct Reachability {
    passed: usize,
    failed: usize,
    failures: Vec<Check>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = arguments.output == Output::Table;
    if arguments.kubernetes {
        return cluster::run(arguments);
    }
    let store = choose_store()?;
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(false)?;
    }
    let options = Options {
        store,
        ..Options::default()
    };
    if arguments.force {
        Lab::remove(&options.prefix)?;
    }
    shell::progress("three nodes with two pods each");
    let lab = Lab::up(options)?;
    let findings = find_out(&lab, text)?;

    conclude(&findings, &findings.problems, text)?;
    if arguments.keep {
        shell::progress("the lab stays up");
        crate::lab::tell_how_to_enter(&lab);
        drop(lab.keep());
    } else {
        shell::progress("cleaning up");
        lab.down()?;
    }
    Ok(exit_code(findings.held))
}

/// Prints the failed checks as text, or all findings for scripts.
fn conclude(findings: &impl Serialize, problems: &[String], text: bool) -> Result<()> {
    if !text {
        let json = serde_json::to_string_pretty(findings).context("write the findings as JSON")?;
        println!("{json}");
        return Ok(());
    }
    println!();
    for problem in problems.iter().take(SHOWN_PROBLEMS) {
        println!("did not hold: {problem}");
    }
    if let Some(more) = problems.len().checked_sub(SHOWN_PROBLEMS + 1) {
        println!("… and {} more; --output json has them all", more + 1);
    }
    println!(
        "{}",
        if problems.is_empty() {
            "everything held"
        } else {
            "NOT everything held"
        }
    );
    Ok(())
}

fn exit_code(held: bool) -> ExitCode {
    if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A real etcd if one is available, or else a directory.
fn choose_store() -> Result<StoreKind> {
    setup::ensure_lab(StoreKind::Dir)?;
    setup::ensure_measuring()?;
    match setup::ensure_lab(StoreKind::Etcd) {
        Ok(()) => Ok(StoreKind::Etcd),
        Err(error) => {
            shell::progress(&format!(
                "no etcd ({error:#}): leases are kept in a directory instead"
            ));
            Ok(StoreKind::Dir)
        }
    }
}

fn find_out(lab: &Lab, text: bool) -> Result<Findings> {
    let mut problems = Vec::new();
    status::wait_accelerated(lab)?;
    let report = lab.report();
    if text {
        println!("{}", table::render(&report));
        show_leases(lab)?;
    }

    shell::progress("the walk of one packet from n1p1 to n2p1");
    let walk = walk::walk(lab, &End::of(&lab.pod(1, 1)), &End::of(&lab.pod(2, 1)))?;
    if text {
        println!("{}", walk::render(&walk));
    }

    if !walk::has_arrived(&walk) {
        problems.push("the followed packet was not seen where it has to arrive".to_owned());
    }

    shell::progress("who reaches whom: TCP, UDP and ICMP, 1 byte to 60 kB");
    let reachability = check_reachability(lab, text, &mut problems)?;

    shell::progress("latency and throughput with the fast path");
    let fast = compare::measure(lab)?;
    let hit_ratio = hit_ratios(lab, text, &mut problems);
    shell::progress("the same without: restarting the agents with --fast-path=off");
    compare::restart_agents(lab, "off")?;
    let kernel = compare::measure(lab)?;
    compare::restart_agents(lab, "auto")?;
    let comparison = Comparison { fast, kernel };
    if text {
        println!("{}", comparison.render());
    }
    let held = problems.is_empty();
    Ok(Findings {
        held,
        problems,
        lab: report,
        walk,
        reachability,
        hit_ratio,
        comparison,
    })
}

fn show_leases(lab: &Lab) -> Result<()> {
    if lab.options().store != StoreKind::Etcd {
        return Ok(());
    }
    println!("\nleases in etcd:");
    let listing = lab.etcdctl(&["get", "--prefix", "/coreos.com/network/"])?;
    for line in listing.lines() {
        let indent = if line.starts_with('/') {
            "  "
        } else {
            "      "
        };
        println!("{indent}{line}");
    }
    Ok(())
}

fn check_reachability(lab: &Lab, text: bool, problems: &mut Vec<String>) -> Result<Reachability> {
    let mut sums: BTreeMap<Relation, (usize, usize)> = BTreeMap::new();
    let checks = reach::check_all(lab, |pair, checks| {
        let sum = sums.entry(pair.relation).or_default();
        sum.0 += checks.iter().filter(|check| check.passed()).count();
        sum.1 += checks.len();
    })?;
    if text {
        println!("{}", table::reachability(&sums));
    }
    let failures: Vec<Check> = checks
        .iter()
        .filter(|check| !check.passed())
        .cloned()
        .collect();
    problems.extend(failures.iter().map(ToString::to_string));
    Ok(Reachability {
        passed: checks.len() - failures.len(),
        failed: failures.len(),
        failures,
    })
}

fn hit_ratios(lab: &Lab, text: bool, problems: &mut Vec<String>) -> BTreeMap<String, f64> {
    let mut ratios = BTreeMap::new();
    for node in lab.nodes() {
        let name = node.name();
        let counts = match Counts::of(&node) {
            Ok(counts) => counts,
            Err(error) => {
                problems.push(format!("hit ratio of {name}: {error:#}"));
                continue;
            }
        };
        let whole = counts.hit_ratio_without(&["fragment"]);
        if whole < LEAST_HIT_RATIO {
            problems.push(format!(
                "only {:.1} % of what could be was on the fast path of {name}",
                whole * 100.0
            ));
        }
        if text {
            println!(
                "fast-path hit ratio of {name}: {:.1} %, {:.1} % without fragments; left to the \
                kernel: {}",
                counts.hit_ratio_without(&[]) * 100.0,
                whole * 100.0,
                counts.left_to_kernel()
            );
        }
        ratios.insert(name, whole);
    }
    ratios
}
