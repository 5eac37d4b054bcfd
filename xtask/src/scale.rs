//! `cargo xtask scale`: the cost of one agent in a large cluster, and its speed in following
//! changes.

mod etcd;
mod fast_path;
mod kernel_path;
mod kube;
mod leases;
mod measure;
mod metrics;
mod pending;
mod pinned;
mod process;
mod services;
mod stage;
mod store;
mod table;
mod trace;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_tests::{Options, StoreKind};
use serde::Serialize;

use crate::bench::Machine;
use crate::lab::Output;
use crate::{build, setup, shell, workspace};
use measure::{Plan, Scaled};
use stage::{Agent, Stage};
use store::{Kind, Store};

/// Measure what one agent costs in a cluster of many nodes, and how fast it follows a change.
///
/// One real node with one real agent (release build) and a real etcd, or API server of Kubernetes,
/// with the leases of made-up nodes, which are behind 16 routers. For each size: time until the
/// agent is ready, memory, processor time of the agent and of all programs that it starts over an
/// idle minute, time from a lease's write until route, neighbour, FDB entry and the entry in
/// ov_peers4 are there, alone and while leases churn, and time until a router's new MAC address is
/// used. Work that the kernel puts off to its own threads is not counted. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask scale                                  100, 1,000, 5,000 and 10,000 peers, about ten \
  minutes
  cargo xtask scale --peers 1000 --idle 10
  cargo xtask scale --store kube --peers 1000,5000
  cargo xtask scale --services 10000,50000           Services at the socket instead of peers
  cargo xtask scale --flanneld ./flanneld --json scale.json
  cargo xtask scale --quick                          a few seconds over the debug build, to see \
  that it works")]
pub struct Arguments {
    /// Sizes of the cluster, in made-up nodes.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "100,1000,5000,10000",
        value_name = "N,…"
    )]
    peers: Vec<u32>,
    /// How long to watch an idle agent, in seconds.
    #[arg(long, default_value_t = 60, value_name = "N")]
    idle: u64,
    /// Measure Services at the socket instead: how many there are in etcd, and how many endpoints
    /// behind all of them (five each unless said).
    #[arg(
        long,
        value_name = "N[,M]",
        conflicts_with_all = ["peers", "idle", "store", "flanneld"]
    )]
    services: Option<services::Size>,
    /// Where the leases are.
    #[arg(long, value_enum, default_value = "etcd")]
    store: Kind,
    /// One small cluster, every phase as short as it gets, over the debug build; the figures mean
    /// nothing.
    #[arg(long, conflicts_with_all = ["peers", "idle"])]
    quick: bool,
    /// A real flanneld to compare with.
    #[arg(long, value_name = "PATH", conflicts_with = "store")]
    flanneld: Option<PathBuf>,
    /// What to print on stdout: a table for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the JSON document to a file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not build first; take the programs as they are.
    #[arg(long)]
    no_build: bool,
}

/// Number of measured changes of Services.
const CHANGES: u32 = 200;

/// All findings.
#[derive(Serialize)]
struct Findings {
    machine: Machine,
    store: Kind,
    results: Vec<Scaled>,
    skipped: Vec<String>,
}

/// Runs `scale --quick` with the existing build, for peers and for Services, to check that the
/// command works.
pub fn try_out() -> Result<()> {
    [None, Some(services::Size::SMALL)]
        .into_iter()
        .try_for_each(|services| {
            run(&Arguments {
                peers: Vec::new(),
                services,
                store: Kind::Etcd,
                idle: 0,
                quick: true,
                flanneld: None,
                output: Output::Table,
                json: None,
                no_build: true,
            })
        })
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
    }
    setup::ensure_lab(StoreKind::Etcd)?;
    setup::ensure_measuring()?;
    if arguments.store == Kind::Kube {
        setup::ensure_kubernetes()?;
    }
    if !arguments.no_build {
        build::binaries(!arguments.quick)?;
    }
    let bin_dir = if arguments.quick {
        Options::default().bin_dir
    } else {
        workspace::target().join("release")
    };
    if let Some(size) = arguments.services {
        let changes = if arguments.quick { 3 } else { CHANGES };
        let served = services::measure(bin_dir, size, changes)?;
        return tell(arguments, &served, served.to_string());
    }
    let (peers, plan) = plan(arguments);
    let most = leases::MOST - plan.spare();
    for peers in &peers {
        ensure!(
            (1..=most).contains(peers),
            "--peers {peers}: want 1 to {most}"
        );
    }
    let mut agents = vec![Agent::Overlayd];
    let mut skipped = Vec::new();
    match &arguments.flanneld {
        Some(path) => {
            let path =
                fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
            agents.push(Agent::Flanneld(path));
        }
        None => skipped.push("flanneld: no --flanneld PATH was given".to_owned()),
    }
    let machine = Machine::describe();
    let mut results = Vec::new();
    for peers in peers {
        for agent in &agents {
            results.push(one(arguments.store, agent, &bin_dir, peers, &plan)?);
        }
    }
    let findings = Findings {
        machine,
        store: arguments.store,
        results,
        skipped,
    };
    tell(arguments, &findings, table::render(&findings))
}

/// Prints findings in the requested form.
fn tell(arguments: &Arguments, findings: &impl Serialize, text: String) -> Result<()> {
    let json = serde_json::to_string_pretty(findings).context("write the findings as JSON")?;
    if let Some(path) = &arguments.json {
        fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{json}"),
        Output::Table => println!("{text}"),
    }
    Ok(())
}

/// Measures one agent in a separate lab, which is removed also when the measurement fails.
fn one(kind: Kind, agent: &Agent, bin_dir: &Path, peers: u32, plan: &Plan) -> Result<Scaled> {
    let name = agent.name();
    shell::progress(&format!("{name}, {peers} peers"));
    let mut stage = Stage::up(kind, agent, bin_dir.to_owned(), peers)?;
    let scaled = measure::measure(&mut stage, agent, peers, plan).and_then(|mut scaled| {
        if let Store::Kube(kube) = &stage.store {
            scaled.watching = Some(watching::measure(&stage, kube)?);
        }
        Ok(scaled)
    });
    let scaled = scaled.with_context(|| format!("{name} with {peers} peers"));
    // Where both fail, the measurement's error is reported.
    let down = stage.down();
    scaled.and_then(|scaled| down.map(|()| scaled))
}

fn plan(arguments: &Arguments) -> (Vec<u32>, Plan) {
    if arguments.quick {
        let plan = Plan {
            settle: Duration::from_millis(500),
            idle: Duration::from_secs(1),
            singles: 2,
            counted: 1,
            churn: Duration::from_secs(1),
            rate: 50,
        };
        return (vec![100], plan);
    }
    let plan = Plan {
        settle: Duration::from_secs(5),
        idle: Duration::from_secs(arguments.idle.max(1)),
        singles: 20,
        counted: 10,
        churn: Duration::from_secs(10),
        rate: 100,
    };
    (arguments.peers.clone(), plan)
}
