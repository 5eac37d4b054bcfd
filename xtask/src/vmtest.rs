//! `cargo xtask vmtest`: the programs, the agent and a lab in kernels other than this machine's.

pub mod apt;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;
mod public;
mod report;
mod sizes;

use std::fs;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_tests::machine::RECORD_ENV;

use crate::count::{self, Count};
use crate::lab::Output;
use crate::{build, setup, shell, workspace};
use kernel::{ALWAYS, Flavour, Kernel};
use machine::{Acceleration, End, Machine};
use report::Report;
use sizes::Sizes;

/// Where kernels, archives and logs are kept, in the repository.
const CACHE: &str = "target/vmtest";

/// Machines that run at a time, unless the user says otherwise, with a processor each.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// Memory of a machine, in MiB.
const MEMORY: u32 = 1536;
/// How long the tests of one kernel may take, in seconds: several times what they do.
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
  cargo xtask vmtest --kernel all --record       write down anew how large the programs are
  cargo xtask vmtest --output json               for scripts")]
pub struct Arguments {
    /// Kernels: 5.10, 6.1, 6.12, 6.18, newest, or all.
    #[arg(long, value_delimiter = ',', value_name = "SERIES,…", default_values = ALWAYS)]
    kernel: Vec<String>,
    /// Instead of the tests that are made for machines: these files of end-to-end tests in
    /// tests/tests. Those that need containerd, systemd or files of the repository fail there.
    #[arg(long, value_delimiter = ',', value_name = "FILE,…", conflicts_with_all = ["record", "prepare"])]
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
    /// How long the tests of one kernel may take, in seconds.
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
        public::prepare(&cache, &guest::gather(&cache, &arguments.tests())?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reports = reports(arguments)?;
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

/// Tests on every wanted kernel.
fn reports(arguments: &Arguments) -> Result<Vec<Report>> {
    reports_on(arguments, &fetch(&arguments.kernel)?)
}

fn fetch(names: &[String]) -> Result<Vec<Kernel>> {
    kernel::fetch(&cache()?, &kernel::named(names)?, Flavour::Cloud)
}

/// Tests on kernels that are there.
fn reports_on(arguments: &Arguments, kernels: &[Kernel]) -> Result<Vec<Report>> {
    let cache = cache()?;
    let files = guest::gather(&cache, &arguments.tests())?;
    let mut sizes = Sizes::default();
    let mut reports = Vec::new();
    for kernels in kernels.chunks(arguments.at_once.get()) {
        for (report, told) in each(kernels, |kernel| one(arguments, &cache, kernel, &files))? {
            if let Some(problem) = &report.problem {
                eprintln!("error: {}: {problem}", report.release);
            }
            reports.push(report);
            sizes.add(told);
        }
    }
    if arguments.record {
        sizes.record()?;
    }
    Ok(reports)
}

/// Works on all at the same time.
fn each<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|it| scope.spawn(|| work(it))).collect();
        let joined = threads.into_iter().map(ScopedJoinHandle::join);
        joined
            .map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Packs a machine with this kernel and runs it; what came of it, and how large the programs are
/// there.
fn one(
    arguments: &Arguments,
    cache: &Path,
    kernel: &Kernel,
    files: &guest::Files,
) -> Result<(Report, Sizes)> {
    shell::progress(&format!("Linux {}", kernel.release));
    let file = |suffix: &str| -> PathBuf { cache.join(format!("{}.{suffix}", kernel.series.name)) };
    let modules = modules::collect(&kernel.modules, &[])?;
    let initramfs = file("initramfs");
    initramfs::pack(&initramfs, files, &modules, &commands(arguments, kernel))?;
    let mut machine = Machine {
        image: kernel.image.clone(),
        initramfs,
        acceleration: if arguments.kvm {
            Acceleration::Kvm
        } else {
            Acceleration::Emulated
        },
        cpus: arguments.cpus,
        memory: arguments.memory,
        limit: Duration::from_secs(arguments.limit),
        console: file("console"),
        log: file("log"),
    };
    let start = Instant::now();
    let mut sizes = Sizes::default();
    let mut count = Count::default();
    let mut boot = |machine: &Machine| {
        count = Count::default();
        machine.run(|line| {
            eprintln!("{} | {line}", kernel.series.name);
            sizes.note(&kernel.release, line);
            count += count::closing_line(line).unwrap_or_default();
        })
    };
    let mut end = boot(&machine)?;
    let mut booted_twice = false;
    if let End::NotBooted(why) = &end {
        eprintln!(
            "{} did not boot and gets a second try: {why}",
            kernel.release
        );
        if machine.acceleration == Acceleration::Kvm {
            eprintln!("this machine's virtualisation will not do: emulating");
            machine.acceleration = Acceleration::Emulated;
        }
        booted_twice = true;
        end = boot(&machine)?;
    }
    let problem = match end {
        End::Exited(0) if count.passed == 0 => Some("no test ran".to_owned()),
        End::Exited(0) => None,
        End::Exited(status) if count.failed == 0 => Some(format!("exit status {status}")),
        End::Exited(_) => None,
        End::NotBooted(why) => Some(format!("did not boot, twice: {why}")),
        End::Died(why) => Some(why),
    };
    let report = Report {
        kernel: kernel.series.name,
        release: kernel.release.clone(),
        count,
        problem,
        booted_twice,
        seconds: start.elapsed().as_secs(),
        console: machine.console,
        log: machine.log,
    };
    Ok((report, sizes))
}

/// What a machine runs.
fn commands(arguments: &Arguments, kernel: &Kernel) -> Vec<String> {
    let line = |test: &str| {
        let record = if arguments.record {
            format!("env {RECORD_ENV}=1 ")
        } else {
            String::new()
        };
        let program = format!("{record}{}/{test}", guest::BIN);
        let skips = arguments.skipped.iter();
        let mut filter: String = skips.map(|test| format!("--skip {test} ")).collect();
        filter += arguments.filter.as_deref().unwrap_or_default();
        guest::command_line(test, &program, &filter)
    };
    let tests = arguments.tests().into_iter();
    tests
        .filter(|test| kernel.series.loads_programs || test != guest::PROGRAMS)
        .map(|test| line(&test))
        .collect()
}

impl Arguments {
    /// The tests that machines run, by the names of their files.
    fn tests(&self) -> Vec<String> {
        if self.suite.is_empty() {
            guest::TESTS.iter().map(ToString::to_string).collect()
        } else {
            self.suite.clone()
        }
    }
}

/// What takes minutes more and shows what other tests show on this machine's own kernel, or what is
/// the same on every kernel.
const NOT_IN_CI: &[&str] = &["underlays::", "virtio::"];

/// The kernels that CI runs: one that cannot load the programs, and what stable distributions have.
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
        // The oldest has little to do.
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
