//! `cargo xtask mutants`: changes the code on purpose, in one place at a time, and checks whether a
//! test notices.

mod areas;
mod explained;
mod program;
mod report;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::builder::PossibleValuesParser;

use crate::lab::Output;
use crate::{setup, shell};
use areas::Area;
use program::{Mutant, Wanted};
use report::{AreaReport, Report};

/// Change the code on purpose and see whether a test notices.
///
/// cargo-mutants (built below target at the first use, which takes some minutes) makes one small
/// change after another to what decides: an operator becomes another, an arm of a match goes, a
/// function returns something else. The tests that need no root are run against each. A change that
/// no test notices survives, and fails this command, unless xtask/src/mutants/explained.rs says why
/// no test can see it.
///
/// What changes the kernel's network and what talks to bpf(2) is not among it: such tests need
/// root, and labs. Nor is overlay-ebpf: its programs are compared with the decision by `cargo xtask
/// fuzz`.
///
/// The working tree is copied first, and may be edited meanwhile.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask mutants --only decision            what becomes of a packet: about twenty minutes
  cargo xtask mutants --in-diff main             only in lines that differ from the branch main
  cargo xtask mutants --shard 0/8                the first eighth of each package
  cargo xtask mutants --output json              everything, about three hours; for scripts")]
pub struct Arguments {
    /// Only these areas.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "AREA,…",
        value_parser = PossibleValuesParser::new(areas::names())
    )]
    only: Vec<String>,
    /// Only in lines that have changed since this revision, committed or not.
    #[arg(long, value_name = "REVISION")]
    in_diff: Option<String>,
    /// Only one of several parts, counted from 0.
    #[arg(long, value_name = "PART/PARTS")]
    shard: Option<String>,
    /// What to print on stdout: a table for people, or JSON.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure_protoc()?;
    let program = program::find()?;
    let areas: Vec<&Area> = areas::ALL
        .iter()
        .filter(|area| arguments.only.is_empty() || arguments.only.iter().any(|it| it == area.name))
        .collect();
    let packages: BTreeSet<_> = areas.iter().map(|area| area.package).collect();
    let start = Instant::now();
    let mut mutants: Vec<Mutant> = Vec::new();
    for package in packages {
        let files = areas.iter().filter(|area| area.package == package);
        let wanted = Wanted {
            package,
            files: files.flat_map(|area| area.files).copied().collect(),
            in_diff: arguments.in_diff.as_deref(),
            shard: arguments.shard.as_deref(),
        };
        mutants.extend(program.run(&wanted)?);
    }
    let areas = areas
        .iter()
        .map(|area| AreaReport::new(area, &mutants, explained::ALL))
        .collect();
    let report = Report {
        areas,
        seconds: start.elapsed().as_secs(),
    };
    match arguments.output {
        Output::Table => println!("{}", report.render()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    for complaint in report.complaints() {
        shell::progress(&complaint);
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
