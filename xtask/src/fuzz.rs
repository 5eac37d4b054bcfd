//! `cargo xtask fuzz`: invented packets for the programs, invented bytes for the parsers.

mod inputs;

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::command::show;
use overlay_tests::{StoreKind, flags, interrupt};

use crate::lab::Output;
use crate::{build, setup, shell, workspace};

/// Fuzz the packet programs, or with --target what is parsed from outside.
///
/// Without --target: packets and tables are made up, thousands a second, and go through the
/// programs in the kernel (BPF_PROG_TEST_RUN) and through the decision in Rust; any difference in
/// verdict, bytes, counters or remembered flows is a failure. It is cut down to the least that
/// shows it and kept in tests/corpus/programs, which every later test replays. Needs root.
///
/// With --target: libFuzzer by way of cargo-fuzz (installed if absent) on one of the targets in
/// tests/fuzz, or on all of them, each for its share of the time. What it finds stays in
/// tests/fuzz/artifacts.
///
/// Corpora are kept in target/fuzz. Ctrl-C ends it with what it has reached.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz --seconds 3600 --jobs 2      an hour of packets on two CPUs
  cargo xtask fuzz --seed 7 --corpus new.jsonl  the same packets as last time with seed 7 and a \
  new corpus
  cargo xtask fuzz --lab                        4000 of each kind by the kernel path as well
  cargo xtask fuzz --target leases              what the store may say
  cargo xtask fuzz --target all --seconds 600   all parsers in ten minutes")]
pub struct Arguments {
    #[command(flatten)]
    flags: flags::Fuzz,
    /// A target of tests/fuzz, or `all`.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Where packets that lead new ways are kept; target/fuzz/programs.jsonl unless told otherwise.
    /// With the same seed and the same corpus the same packets are made up.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    corpus: Option<PathBuf>,
    /// Send made-up packets through a lab of two nodes, by the kernel path and by the fast path,
    /// and compare what arrives; takes about a minute, whatever --seconds says.
    #[arg(long, conflicts_with_all = ["target", "seconds", "jobs", "output", "corpus"])]
    lab: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.target {
        Some(target) => {
            let wanted = inputs::Wanted {
                target,
                time: Duration::from_secs(arguments.flags.seconds),
                seed: arguments.flags.seed,
                json: arguments.flags.output == Output::Json,
            };
            inputs::run(&wanted).map(|()| ExitCode::SUCCESS)
        }
        None if arguments.lab => lab(arguments.flags.seed).map(|()| ExitCode::SUCCESS),
        None => programs(arguments),
    }
}

/// The test that compares the two paths, with more packets than usual.
fn lab(seed: Option<u64>) -> Result<()> {
    /// The most packets that the test can distinguish.
    const PACKETS: &str = "4000";
    setup::ensure_tests()?;
    build::programs(build::Warnings::Shown)?;
    build::binaries(false)?;
    let mut command = shell::cargo(&["test", "--package", "overlay-tests", "--test", "equality"]);
    command.args(["made_up_packets_fare_alike", "--", "--nocapture"]);
    command.env("OVERLAY_FUZZ_PACKETS", PACKETS);
    if let Some(seed) = seed {
        command.env("OVERLAY_FUZZ_SEED", seed.to_string());
    }
    shell::run(&mut command)
}

/// Fuzzes for a limited time, as a part of the tests. The packets differ every time; the seed that
/// repeats them is printed.
pub fn try_out(seconds: u64) -> Result<()> {
    let corpus = corpora().join("try-out.jsonl");
    if corpus.exists() {
        fs::remove_file(&corpus).with_context(|| format!("remove {}", corpus.display()))?;
    }
    let seed = RandomState::new().hash_one(seconds);
    shell::progress(&format!(
        "the same packets again: rm -f {corpus}; cargo xtask fuzz --seconds {seconds} --seed \
        {seed} --corpus {corpus}",
        corpus = corpus.display()
    ));
    let code = programs(&Arguments {
        flags: flags::Fuzz {
            seconds,
            seed: Some(seed),
            jobs: 1,
            output: Output::Table,
        },
        target: None,
        corpus: Some(corpus),
        lab: false,
    })?;
    ensure!(
        code == ExitCode::SUCCESS,
        "the programs and the decision differ"
    );
    Ok(())
}

fn programs(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs into the kernel needs root: run `cargo xtask fuzz` with sudo"
    );
    setup::ensure_protoc()?;
    setup::ensure_lab(StoreKind::Dir)?;
    build::programs(build::Warnings::Shown)?;
    let mut command = shell::cargo(&["run", "--package", "overlay-differential", "--"]);
    command.args(arguments.flags.words());
    if let Some(corpus) = &arguments.corpus {
        command.arg("--corpus").arg(corpus);
    }
    let shown = show(&command);
    // Ctrl-C also reaches the program, which then ends with its results so far.
    let status = command
        .status()
        .with_context(|| format!("start `{shown}`"))?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => bail!("`{shown}` was killed ({status})"),
    }
}

/// The directory of corpora between runs.
fn corpora() -> PathBuf {
    workspace::root().join("target/fuzz")
}

/// Fails after Ctrl-C.
fn go_on() -> Result<()> {
    interrupt::check()
}
