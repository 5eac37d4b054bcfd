//! `cargo xtask vmtest`: the programs, the agent and a lab in kernels other than this machine's.

mod guest;
mod initramfs;
mod job;
mod kernel;
mod machine;
mod modules;
mod public;
mod report;
mod sizes;
mod suite;
mod told;

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, ensure};

use crate::count::Count;
use crate::lab::Output;
use crate::{build, setup, workspace};
use kernel::{ALWAYS, Flavour, Kernel};
use report::Report;
use sizes::Sizes;

/// The directory of kernels, archives and logs, in the repository.
const CACHE: &str = "target/vmtest";

/// Default number of machines that run at a time, with a processor each.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// Memory of a machine, in MiB.
const MEMORY: u32 = 1536;
/// Longest duration of one machine's tests in seconds: several times the usual one.
const LIMIT: u64 = 1800;

/// Test in virtual machines with other kernels.
///
/// Each machine boots one of Debian's kernels, loads every program, runs the programs' tests and a
/// lab of two nodes, and powers off. Machines are emulated, which needs no /dev/kvm and makes
/// everything slow: nothing that a machine measures says anything about speed. Kernels come from
/// the mirrors that this machine's apt is set up with; they are unpacked below target/vmtest and
/// never installed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask vmtest                             6.1 and 6.12
  cargo xtask vmtest --kernel all                every kernel of the matrix
  cargo xtask vmtest --kernel 5.10 -- lab        tests whose name contains `lab`, on 5.10
  cargo xtask vmtest --kernel 6.1 --suite healing,services -- long
                                                 end-to-end tests, on Debian 12's own kernel
  cargo xtask vmtest --kernel 6.1 --suite all --limit 7200
                                                 all that can run in machines: takes many hours
  cargo xtask vmtest --kernel all --record       write down anew how large the programs are
  cargo xtask vmtest --output json               for scripts")]
pub struct Arguments {
    /// Kernels: 5.10, 6.1, 6.12, 6.18, newest, or all.
    #[arg(long, value_delimiter = ',', value_name = "SERIES,…", default_values = ALWAYS)]
    kernel: Vec<String>,
    /// Instead of the tests that are made for machines: these files of end-to-end tests in
    /// tests/tests, each in a machine of its own; `all` is every file that can run there.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "FILE,…",
        conflicts_with_all = ["record", "prepare"]
    )]
    suite: Vec<String>,
    /// What to print on stdout: a table for people, or JSON.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write tests/tests/kernels/sizes.json anew instead of comparing with it.
    #[arg(long)]
    record: bool,
    /// Lay out what vmtest.toml names, for the vmtest program, and run nothing.
    #[arg(long, conflicts_with_all = ["record", "kvm"])]
    prepare: bool,
    /// Try the processor's own virtualisation first.
    #[arg(long)]
    kvm: bool,
    /// Machines that run at a time.
    #[arg(long, default_value_t = AT_ONCE, value_name = "NUMBER")]
    at_once: NonZeroUsize,
    /// Processors of a machine.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    cpus: u32,
    /// Memory of a machine, in MiB.
    #[arg(long, default_value_t = MEMORY, value_name = "MIB")]
    memory: u32,
    /// How long the tests of one machine may take, in seconds.
    #[arg(long, default_value_t = LIMIT, value_name = "SECONDS")]
    limit: u64,
    /// Run only tests whose name contains this.
    #[arg(last = true)]
    filter: Option<String>,
    /// Tests that are left out.
    #[arg(skip)]
    skipped: &'static [&'static str],
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure_machines()?;
    build::programs(build::Warnings::Shown)?;
    setup::ensure_protoc()?;
    if arguments.prepare {
        let cache = cache()?;
        public::prepare(&cache, &guest::gather(&cache, &own_tests())?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reports = reports(arguments)?;
    if arguments.suite.iter().any(|file| file == suite::ALL) {
        suite::left_out()
            .iter()
            .for_each(|line| eprintln!("{line}"));
    }
    match arguments.output {
        Output::Table => println!("{}", report::render(&reports)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&reports)?),
    }
    Ok(if reports.iter().all(Report::passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn cache() -> Result<PathBuf> {
    let cache = workspace::root().join(CACHE);
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    Ok(cache)
}

/// Runs the tests on every wanted kernel.
fn reports(arguments: &Arguments) -> Result<Vec<Report>> {
    reports_on(arguments, &fetch(&arguments.kernel)?)
}

fn fetch(names: &[String]) -> Result<Vec<Kernel>> {
    kernel::fetch(&cache()?, &kernel::named(names)?, Flavour::Cloud)
}

/// Runs the tests on kernels that have been fetched.
fn reports_on(arguments: &Arguments, kernels: &[Kernel]) -> Result<Vec<Report>> {
    let cache = cache()?;
    let jobs = job::all(arguments, kernels)?;
    let tests: BTreeSet<&String> = jobs.iter().flat_map(|job| &job.tests).collect();
    let tests: Vec<String> = tests.into_iter().cloned().collect();
    let files = guest::gather(&cache, &tests)?;
    let mut sizes = Sizes::default();
    let mut reports = Vec::new();
    for (report, told) in each(&jobs, arguments.at_once, |job| {
        job.run(arguments, &cache, &files)
    })? {
        reports.push(report);
        sizes.add(told);
    }
    if arguments.record {
        sizes.record()?;
    }
    Ok(reports)
}

/// Runs `work` for all items, for several of them at a time; after an error no further one is
/// started.
fn each<T: Sync, R: Send>(
    all: &[T],
    at_once: NonZeroUsize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(it) = all.get(number) else {
                return anyhow::Ok(done);
            };
            let result = work(it).inspect_err(|_| next.store(all.len(), Ordering::Relaxed));
            done.push((number, result?));
        }
    };
    let mut done = Vec::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.get()).map(|_| scope.spawn(worker)).collect();
        let joined = workers.into_iter().map(ScopedJoinHandle::join);
        joined
            .map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .try_for_each(|some: Result<Vec<(usize, R)>>| some.map(|some| done.extend(some)))
    })?;
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// The names of the tests that are made for machines.
fn own_tests() -> Vec<String> {
    guest::TESTS.iter().map(ToString::to_string).collect()
}

/// Tests that take minutes more and show the same as other tests on this machine's own kernel, or
/// that have the same result on every kernel.
const NOT_IN_CI: &[&str] = &["underlays::", "virtio::"];

/// The kernels that CI runs: one that cannot load the programs, and those of stable distributions.
const IN_CI: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Kernels that have been fetched.
pub struct Kernels(Vec<Kernel>);

/// Fetches the kernels that CI runs.
pub fn fetch_for_ci() -> Result<Kernels> {
    fetch(&IN_CI.map(str::to_owned)).map(Kernels)
}

/// Tests the kernels that CI runs, for `cargo xtask test`; adds up their tests.
pub fn for_ci(kernels: &Kernels, count: &mut Count) -> Result<()> {
    let arguments = Arguments {
        kernel: Vec::new(),
        suite: Vec::new(),
        output: Output::Table,
        record: false,
        prepare: false,
        kvm: false,
        // The oldest kernel has little to do.
        at_once: NonZeroUsize::new(IN_CI.len()).unwrap_or(AT_ONCE),
        cpus: 1,
        memory: MEMORY,
        limit: LIMIT,
        filter: None,
        skipped: NOT_IN_CI,
    };
    let reports = reports_on(&arguments, &kernels.0)?;
    eprintln!("{}", report::render(&reports));
    let mut failed = Vec::new();
    for report in &reports {
        *count += report.count;
        if !report.passed() {
            failed.push(report.release.as_str());
        }
    }
    ensure!(failed.is_empty(), "failed on Linux {}", failed.join(", "));
    Ok(())
}
