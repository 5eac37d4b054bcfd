//! `cargo xtask flood`: the rate that other pods keep while a node refuses a flood.

mod measure;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_tests::StoreKind;
use overlay_tests::hostile::Kind;

use crate::lab::Output;
use crate::{build, setup, shell};
use measure::{Findings, Plan};

/// Measure what other pods keep of their rate while their node refuses a flood.
///
/// Two nodes in a lab. Pods talk as fast as they go, alone, beside a flood of hostile packets, and
/// beside a control: as many datagrams, as long, to a port that nobody listens on, which any host
/// has to bear. The ratio of the three is taken within one round; ways of refusal (by XDP, behind
/// the NIC, by the kernel path) take turns. On a veth pair a packet is received on the core that
/// sent it, so the flood comes twice: on another core than the honest traffic, as from a network
/// card that spreads its load, and on the same one. What the flood takes there includes making its
/// packets; the control tells how much that is. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask flood                                  the usual flood, about two minutes
  cargo xtask flood --kind stranger,inner-source,pod-source --rate 100000
  cargo xtask flood --rate 0 --seconds 3             as fast as it goes
  cargo xtask flood --output json")]
pub struct Arguments {
    /// What the flood is made of.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "stranger",
        value_name = "KIND,…"
    )]
    kind: Vec<Kind>,
    /// Length of one measurement.
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    seconds: f64,
    /// Packets of the flood per second; 0 for as many as it goes.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    rate: u32,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// What to print on stdout: a table for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(arguments.rounds > 0, "--rounds 0 measures nothing");
    ensure!(
        (0.05..=600.0).contains(&arguments.seconds),
        "--seconds {}: want 0.05 to 600",
        arguments.seconds
    );
    ensure!(
        !arguments.kind.contains(&Kind::Control),
        "the control is measured beside every kind: leave it out of --kind"
    );
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
    }
    setup::ensure_lab(StoreKind::Etcd)?;
    if !arguments.no_build {
        build::binaries(false)?;
    }
    let plan = Plan {
        kinds: arguments.kind.clone(),
        rounds: arguments.rounds,
        length: Duration::from_secs_f64(arguments.seconds),
        rate: (arguments.rate > 0).then_some(arguments.rate),
    };
    shell::progress("two nodes with two pods each");
    let findings: Findings = measure::run(&plan)?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table => println!("{}", table::render(&findings)),
    }
    Ok(ExitCode::SUCCESS)
}
