//! The fuzzer of the packet programs: `cargo xtask fuzz` builds everything and runs it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use overlay_differential::batch::Failure;
use overlay_differential::campaign::{self, Limit, Options};
use overlay_differential::recording::Recording;
use overlay_tests::flags::{self, Output};
use overlay_tests::interrupt;

/// Made-up packets over made-up tables, through the programs in the kernel and through the decision
/// in Rust: any difference in verdict, bytes, counters or remembered flows is a failure.
///
/// Ends with what was reached; the exit code is 1 after a difference, which is cut down to the
/// least that shows it and kept as a file that every later test replays.
#[derive(Parser)]
#[command(name = "overlay-fuzz", max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    fuzz: flags::Fuzz,
    /// Where packets that lead new ways are kept between runs.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/fuzz/programs.jsonl"
    )]
    corpus: PathBuf,
    /// Where a difference is kept.
    #[arg(
        long,
        value_name = "DIRECTORY",
        default_value = "tests/corpus/programs"
    )]
    recordings: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    interrupt::install()?;
    let seed = arguments.fuzz.seed.unwrap_or_else(rand::random);
    eprintln!(
        "fuzzing the programs for {} s with seed {seed}; Ctrl-C ends it with what it has reached",
        arguments.fuzz.seconds
    );
    let outcome = campaign::run(&Options {
        limit: Limit::Time(Duration::from_secs(arguments.fuzz.seconds)),
        seed,
        jobs: arguments.fuzz.jobs,
        corpus: Some(arguments.corpus.clone()),
        verbose: true,
    })?;
    match arguments.fuzz.output {
        Output::Table => println!("{}", outcome.report),
        Output::Json => {
            let mut report = outcome.report.json();
            report["seed"] = seed.into();
            println!("{report:#}");
        }
    }
    match &outcome.failure {
        Some(failure) => {
            keep(failure, arguments, seed)?;
            Ok(ExitCode::FAILURE)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Writes a failure down, for people and for later tests.
fn keep(failure: &Failure, arguments: &Arguments, seed: u64) -> Result<()> {
    let recording = Recording::of(&failure.what, &failure.world, &failure.visits);
    let hook = failure
        .visits
        .last()
        .map_or("none", |visit| visit.hook.name());
    let file = arguments
        .recordings
        .join(format!("{hook}-{seed:016x}.json"));
    recording.save(&file)?;
    eprintln!(
        "DIFFERENCE: {}\n{}\nkept as {}",
        failure.what,
        serde_json::to_string_pretty(&recording)?,
        file.display()
    );
    Ok(())
}
