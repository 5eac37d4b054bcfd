//! `cargo xtask faults`: the faults, and the cost of each.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use overlay_tests::StoreKind;
use overlay_tests::faults::{self, Case, Outcome, Settings};

use crate::lab::{Output, table};
use crate::{build, setup, shell};

/// Break everything on purpose, under traffic, and print what each fault cost.
///
/// While something is broken (agent, programs, pins, etcd, devices, addresses, clocks, memory),
/// pods of two nodes and of one send each other numbered datagrams and keep a TCP connection each.
/// The lab must come back to where it was by itself, no connection may break unless the wire is
/// cut, and no case may lose more than its budget. Needs root. The exit code is 0 only if
/// everything held.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask faults                                      every case, about a quarter of an hour
  cargo xtask faults --list                               the cases, and what each must keep
  cargo xtask faults --only agent-killed,nic-replaced
  cargo xtask faults --only agent-killed-at-random --rounds 1000
  cargo xtask faults --only upgrade-and-downgrade --other-build old/overlayd
  cargo xtask faults --write docs/faults.md               the checked-in table of budgets")]
pub struct Arguments {
    /// Only these cases.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,
    /// How often what is done again and again is done, such as killing the agent.
    #[arg(long, default_value_t = 200, value_name = "N")]
    rounds: usize,
    /// Another build of overlayd, for the case that changes to it and back.
    #[arg(long, value_name = "PATH")]
    other_build: Option<PathBuf>,
    /// What to print on stdout: a table for people, or JSON for scripts.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the page with all cases and budgets, too.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    write: Option<PathBuf>,
    /// Only list the cases.
    #[arg(long)]
    list: bool,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cases = if arguments.only.is_empty() {
        faults::all()
    } else {
        faults::named(&arguments.only)?
    };
    if arguments.list {
        println!("{}", list(&cases));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces, which needs root: run `cargo xtask faults` with sudo"
    );
    let other_build = arguments.other_build.as_ref().map(fs::canonicalize);
    let settings = Settings {
        rounds: arguments.rounds,
        other_build: other_build.transpose().context("find --other-build")?,
    };
    setup::ensure_lab(StoreKind::Etcd)?;
    setup::ensure_tests()?;
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(false)?;
    }
    shell::progress(&format!("{} cases", cases.len()));
    let mut done = 0;
    let outcomes = faults::run(&cases, &settings, |outcome| {
        done += 1;
        shell::progress(&format!("{done}/{} {outcome}", cases.len()));
        for failure in &outcome.failures {
            eprintln!("    {}", failure.replace('\n', "\n    "));
        }
    })?;
    if let Some(path) = &arguments.write {
        fs::write(path, faults::page(&cases, &outcomes))
            .with_context(|| format!("write {}", path.display()))?;
    }
    match arguments.output {
        Output::Table => println!("{}", render(&outcomes)),
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(&outcomes).context("write the outcomes as JSON")?
        ),
    }
    Ok(if outcomes.iter().all(Outcome::held) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn list(cases: &[&Case]) -> String {
    let mut shown = table::table(["CASE", "WHAT IS DONE", "WHAT MUST HOLD", "MAY LOSE"]);
    for case in cases {
        let budget = case.budget.to_string();
        shown.add_row([case.name, case.fault, case.invariant, &budget]);
    }
    shown.to_string()
}

/// The outcomes of the cases, and the sum.
fn render(outcomes: &[Outcome]) -> String {
    let mut shown = table::table([
        "CASE", "LOST", "MAY LOSE", "SENT", "SILENCE", "BROKEN", "SECONDS", "",
    ]);
    for outcome in outcomes {
        shown.add_row([
            outcome.case.to_owned(),
            outcome.lost.to_string(),
            outcome.budget.to_string(),
            outcome.sent.to_string(),
            format!("{} ms", outcome.silence_ms),
            outcome.broken.to_string(),
            format!("{:.1}", outcome.seconds),
            if outcome.held() { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.held()).count();
    format!(
        "{shown}\n\n{} held, {failed} failed",
        outcomes.len() - failed
    )
}
