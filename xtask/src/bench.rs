//! `cargo xtask bench`: speed, compared with the replaced software and with the bare wire.

mod class;
mod iptables;
mod machine;
mod measure;
mod plain;
mod plan;
mod plot;
mod programs;
mod rounds;
mod services;
mod stage;
mod summary;
mod table;
mod underlay;
mod variant;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum as _;
use overlay_tests::StoreKind;
use overlay_tests::load::instructions::Instructions;
use serde::Serialize;

use crate::lab::Output;
use crate::{build, setup, shell};
use class::Class;
pub use machine::Machine;
use measure::{Lengths, Measure};
use plan::Plan;
use rounds::Disturbance;
use stage::Stage;
use summary::{Outcome, Ratio};
pub use table::short;
use underlay::Underlay;
use variant::Variant;

/// Measure the fast path side by side with flannel, our own kernel path and the bare wire.
///
/// Every variant has two nodes of its own, namespaces of this machine joined by a cable. In each
/// round a measure is taken of one variant right after the other; ratios are taken within rounds.
/// What other load spoils is measured again, and told. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench                                  everything, about a quarter of an hour
  cargo xtask bench --quick                          a glance, about a minute
  cargo xtask bench --only host,flannel-plain,overlay --measure tcp-rr,bulk --rounds 9
  cargo xtask bench --class direct,service,node,local,local-service,node-port --services 5000
  cargo xtask bench --flanneld ./flanneld --json figures.json --plots plots
  cargo xtask bench --programs --against main        cost of each program, now and on another \
  revision")]
pub struct Arguments {
    /// One short round, super-packets only.
    #[arg(long)]
    quick: bool,
    /// Rounds; 5, or 1 with --quick.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only these variants.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VARIANT,…")]
    only: Vec<Variant>,
    /// Only these measures.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MEASURE,…")]
    measure: Vec<Measure>,
    /// Classes of traffic; those without a Service unless given.
    #[arg(
        long = "class",
        value_enum,
        value_delimiter = ',',
        value_name = "CLASS,…"
    )]
    classes: Vec<Class>,
    /// How many Services kube-proxy's rules are for, on nodes that have any.
    #[arg(long, default_value_t = services::MODERATE, value_name = "N")]
    services: usize,
    /// Only these kinds of cable.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,…")]
    underlay: Vec<Underlay>,
    /// MTU of the cable, in bytes.
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    mtu: u32,
    /// A real flanneld to compare with.
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// What to print on stdout: tables for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the JSON document to a file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots (SVG) into a directory.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Write what the documentation shows, rates.svg, and the JSON document that it is from,
    /// rates.json, into a directory.
    #[arg(long, value_name = "DIR")]
    publish: Option<PathBuf>,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
    /// Instead: the cost of every program for every verdict, as the kernel measures it on made-up
    /// packets.
    #[arg(long)]
    programs: bool,
    /// With --programs: another revision to compare with.
    #[arg(long, value_name = "REV", requires = "programs")]
    against: Option<String>,
}

/// All results of the bench.
#[derive(Serialize)]
struct Findings {
    machine: Machine,
    results: Vec<Outcome>,
    ratios: Vec<Ratio>,
    disturbed: Vec<Disturbance>,
    skipped: Vec<String>,
    seconds: u64,
}

/// Runs `bench --quick` with the existing build, to check that the command works.
pub fn try_out() -> Result<()> {
    run(&Arguments {
        quick: true,
        rounds: None,
        only: Vec::new(),
        measure: Vec::new(),
        classes: Vec::new(),
        services: services::MODERATE,
        underlay: Vec::new(),
        mtu: 1500,
        flanneld: None,
        output: Output::Table,
        json: None,
        plots: None,
        publish: None,
        no_build: true,
        programs: false,
        against: None,
    })
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
    }
    if arguments.programs {
        return programs::run(arguments.against.as_deref(), arguments.output);
    }
    setup::ensure_lab(StoreKind::Etcd)?;
    setup::ensure_measuring()?;
    if !arguments.no_build {
        build::binaries(false)?;
    }
    let start = Instant::now();
    let flanneld = arguments.flanneld.as_deref();
    let (variants, mut skipped) = variant::choose(&arguments.only, arguments.quick, flanneld)?;
    if Instructions::count().is_none() {
        skipped.push("instructions: this machine does not count them".to_owned());
    }
    for reason in &skipped {
        shell::progress(&format!("left out {reason}"));
    }
    let plan = plan(arguments, variants);
    let machine = Machine::describe();
    let flanneld = flanneld.map(fs::canonicalize).transpose();
    let flanneld = flanneld.context("find flanneld")?;
    let stage = Stage::up(&plan, arguments.mtu, flanneld)?;
    let record = rounds::run(&stage, &plan);
    // The lab is removed in any case; where both fail, the measurement's error is reported.
    let down = stage.down();
    let record = record.and_then(|record| down.map(|()| record))?;

    let series = summary::with_added(record.series);
    let findings = Findings {
        machine,
        results: summary::outcomes(&series),
        ratios: summary::ratios(&series),
        disturbed: record.disturbances,
        skipped,
        seconds: start.elapsed().as_secs(),
    };
    let json = serde_json::to_string_pretty(&findings).context("write the findings as JSON")?;
    if let Some(path) = &arguments.json {
        fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(directory) = &arguments.plots {
        plot::write(directory, &findings)?;
    }
    if let Some(directory) = &arguments.publish {
        plot::publish(directory, &findings)?;
        let path = directory.join("rates.json");
        fs::write(&path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{json}"),
        Output::Table => println!("{}", table::render(&findings)),
    }
    Ok(())
}

fn plan(arguments: &Arguments, variants: Vec<Variant>) -> Plan {
    fn all_unless<T: clap::ValueEnum + Clone>(chosen: &[T], otherwise: &[T]) -> Vec<T> {
        if chosen.is_empty() { otherwise } else { chosen }.to_vec()
    }
    let quick = arguments.quick;
    let underlays: &[Underlay] = if quick {
        &[Underlay::Super]
    } else {
        Underlay::value_variants()
    };
    let (round_trips, volume) = if quick { (150, 200) } else { (400, 600) };
    let rounds = arguments.rounds.unwrap_or(if quick { 1 } else { 5 });
    Plan {
        rounds,
        repetitions: if quick { 5 } else { 40 * rounds },
        variants,
        underlays: all_unless(&arguments.underlay, underlays),
        classes: all_unless(&arguments.classes, &[Class::Direct, Class::Local]),
        services: arguments.services,
        measures: all_unless(&arguments.measure, Measure::value_variants()),
        lengths: Lengths {
            round_trips: Duration::from_millis(round_trips),
            volume: Duration::from_millis(volume),
        },
    }
}
