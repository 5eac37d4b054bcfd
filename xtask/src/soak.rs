//! `cargo xtask soak`: whether objects are left after hours of additions and removals.

mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::soak::{self, Findings, Plan};

use crate::lab::Output;
use crate::{build, setup, shell};

/// Let pods, nodes, leases and agents come and go under traffic, and count what is left at the end.
///
/// A lab of three nodes with Services. Every round makes one change and takes it back while
/// numbered datagrams and TCP run between the pods that stay; connections by way of Services are
/// kept open throughout. Memory, descriptors, devices, map entries, programs, pins, routes, rules,
/// IPAM files and tracked connections are counted after every round. The exit code is 0 only if no
/// connection broke and everything is flat at the end. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask soak                                     an hour
  cargo xtask soak --hours 0.1                         six minutes
  cargo xtask soak --hours 48 --report soak.json       a weekend, with everything that was counted \
  in a file")]
pub struct Arguments {
    /// How long, in hours; fractions are fine. One lap of all rounds is always done.
    #[arg(long, default_value_t = 1.0, value_name = "H")]
    hours: f64,
    /// What to print on stdout: tables for people, or one JSON document.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the JSON document to a file, too.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

/// Runs little more than one lap with the existing build, to check that the command works.
/// Quantities that need minutes to expire are counted and not judged.
pub fn try_out() -> Result<()> {
    let plan = Plan {
        duration: Duration::ZERO,
        settle: Duration::from_secs(10),
    };
    let findings = soak::run(&plan, &shell::progress)?;
    println!("{}", table::render(&findings));
    verdict(&findings)
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.hours.is_finite() && arguments.hours >= 0.0,
        "--hours {}: say how long, such as 0.5",
        arguments.hours
    );
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
    }
    setup::ensure_tests()?;
    if !arguments.no_build {
        build::binaries(false)?;
    }
    let plan = Plan {
        duration: Duration::try_from_secs_f64(arguments.hours * 3600.0)
            .with_context(|| format!("--hours {}", arguments.hours))?,
        settle: Plan::SETTLED,
    };
    let findings = soak::run(&plan, &shell::progress)?;
    let json = serde_json::to_string_pretty(&findings).context("write the findings as JSON")?;
    if let Some(path) = &arguments.report {
        fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{json}"),
        Output::Table => println!("{}", table::render(&findings)),
    }
    verdict(&findings).map(|()| ExitCode::SUCCESS)
}

fn verdict(findings: &Findings) -> Result<()> {
    if findings.failures.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.failures.join("\n       "));
}
