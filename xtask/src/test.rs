//! `cargo xtask test`: everything that must hold, with the time that each part took.

mod count;
mod names;
mod parts;

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::{bench, build, deny, fuzz, isolation, setup, shell, soak, vmtest};
pub use count::{Count, closing_line};
use parts::Run;

/// End-to-end tests that run at a time; each has a lab of its own.
const LABS_AT_A_TIME: usize = 2;

/// How long packets are made up; hours are for `cargo xtask fuzz`.
const FUZZ_SECONDS: u64 = 40;

/// Run every test: format, lints, unit tests, programs in the kernel, end-to-end tests in labs, other kernels.
///
/// Needs root, for the programs and the labs, which are made in namespaces of their own: two runs do not meet, and
/// nothing is left, whatever ends a run. Runs everything even if an early part fails; the exit code is 0 only if
/// all passed. The last lines name what failed, and end with `N passed, N failed, N ignored`; ignored are tests
/// that are made for machines with other kernels or for measuring.
///
/// With a filter only tests run: format, lints, licences, the fuzz targets, other kernels, the other data path,
/// fuzz, bench and soak are left out. A filter that is the name of a file in tests/tests means all tests in it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test                 everything, about half an hour on two cores
  cargo xtask test reachability    all tests in tests/tests/reachability.rs
  cargo xtask test pods            only tests whose name contains that word
  cargo xtask test --programs without-flow-news
                                   what must hold without that short cut, too
  cargo xtask test --agent-flag=--aggregates=kernel")]
pub struct Arguments {
    /// Run only tests whose name contains this, or all in the file of this name.
    filter: Option<String>,
    /// Equality, offloads, reachability, faults and healing only, with eBPF programs that were built with this
    /// feature.
    #[arg(long, value_name = "FEATURE")]
    programs: Option<String>,
    /// Equality, offloads, reachability, faults and healing only, with agents that have this flag; may be
    /// repeated.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<String>,
}

/// The tests that every variant of the data path has to pass.
const OF_EVERY_VARIANT: &[&str] = &["equality", "offloads", "reachability", "faults", "healing"];

/// Another variant of the data path.
struct Variant<'a> {
    /// A feature of the programs.
    programs: Option<&'a str>,
    agent_flags: &'a [String],
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs and making namespaces needs root: run `cargo xtask test` with sudo"
    );
    let filter = arguments.filter.as_deref();
    let variant = Variant {
        programs: arguments.programs.as_deref(),
        agent_flags: &arguments.agent_flag,
    };
    let everything = filter.is_none() && variant.is_usual();
    let mut run = Run::default();
    run.part("setup", |_| set_up(everything))?;
    if run.is_broken() {
        // Whatever is missing now would be missing in each of the other parts.
        return Ok(run.close());
    }
    // First what may fetch something: there is no network where labs are made.
    if everything {
        run.part("format", |_| {
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
        })?;
    }
    // Before clippy: the agent's build script embeds the programs.
    run.part("eBPF programs", |_| {
        build::programs(build::Warnings::Denied)
    })?;
    let mut kernels = None;
    if everything {
        run.part("clippy", |_| clippy())?;
        run.part("clippy of the programs", |_| build::lint_programs())?;
        run.part("licences, bans, sources", |_| deny::check())?;
        run.part("fuzz targets", |_| fuzz::check_targets())?;
        run.part("fetch other kernels", |_| {
            kernels = Some(vmtest::fetch_for_ci()?);
            Ok(())
        })?;
    }
    run.part("build", |_| build_tests())?;
    let usual = variant.programs_flag()?;
    isolation::enter()?;
    if !variant.is_usual() {
        run.cargo_test(
            "in labs",
            &mut variant.command(usual, OF_EVERY_VARIANT, filter),
        )?;
        return close(run, filter);
    }
    unit_tests(&mut run, filter)?;
    labs(&mut run, filter)?;
    if everything {
        if let Some(kernels) = kernels {
            run.part("other kernels", |done| {
                vmtest::for_ci(&kernels, &mut done.count)
            })?;
        }
        another_data_path(&mut run)?;
        run.part("fuzz", |_| fuzz::try_out(FUZZ_SECONDS))?;
        // That it works; no figure passes or fails.
        run.part("bench", |_| bench::try_out())?;
        run.part("soak", |_| soak::try_out())?;
    }
    close(run, filter)
}

/// What the parts take, and what the kernel of this machine lacks for them.
fn set_up(everything: bool) -> Result<()> {
    setup::ensure_tests()?;
    setup::ensure_toolchain()?;
    if everything {
        setup::ensure_components()?;
    }
    setup::ready_kernel();
    Ok(())
}

fn clippy() -> Result<()> {
    let arguments = [
        "clippy",
        "--workspace",
        "--exclude",
        "overlay-ebpf",
        "--all-targets",
    ];
    shell::run(shell::cargo(&arguments).args(["--", "-D", "warnings"]))
}

/// Builds whatever the tests run.
fn build_tests() -> Result<()> {
    build::binaries(false)?;
    let all = ["--workspace", "--exclude", "overlay-ebpf"];
    shell::run(shell::cargo(&["build", "--bins"]).args(all))?;
    shell::run(shell::cargo(&["test", "--no-run"]).args(all))
}

fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = shell::cargo(&["test", "--no-fail-fast"]);
    command.args(arguments);
    command
}

fn unit_tests(run: &mut Run, filter: Option<&str>) -> Result<()> {
    let all = [
        "--workspace",
        "--exclude",
        "overlay-ebpf",
        "--lib",
        "--bins",
    ];
    let mut units = cargo_test(&all);
    run.cargo_test("unit tests", units.arg("--").args(filter))?;
    let mut decision = cargo_test(&["--package", "overlay-common", "--test", "*"]);
    run.cargo_test("decision", decision.arg("--").args(filter))
}

/// The tests of the programs in the kernel and those in labs.
fn labs(run: &mut Run, filter: Option<&str>) -> Result<()> {
    const NAME: &str = "in the kernel and labs";
    let files = names::files()?;
    let mut part = |files: &[&String], filter: Option<&str>| {
        let mut command = cargo_test(&["--package", "overlay-tests"]);
        for file in files {
            command.args(["--test", file]);
        }
        let threads = format!("--test-threads={LABS_AT_A_TIME}");
        run.cargo_test(NAME, command.arg("--").args(filter).arg(threads))
    };
    let (whole, others): (Vec<_>, Vec<_>) = files
        .iter()
        .partition(|file| filter.is_none_or(|filter| *file == filter));
    if !whole.is_empty() {
        part(&whole, None)?;
    }
    if !others.is_empty() {
        part(&others, filter)?;
    }
    Ok(())
}

/// A short lap over the data path as it is with the flags that the README recommends for other networks.
fn another_data_path(run: &mut Run) -> Result<()> {
    let flags = ["--aggregates=kernel".to_owned()];
    let variant = Variant {
        programs: None,
        agent_flags: &flags,
    };
    let mut command = variant.command(None, &["reachability"], None);
    run.cargo_test("another data path", &mut command)
}

impl Variant<'_> {
    fn is_usual(&self) -> bool {
        self.programs.is_none() && self.agent_flags.is_empty()
    }

    /// Builds the programs, and returns the flag that has agents take them.
    fn programs_flag(&self) -> Result<Option<String>> {
        let object = self.programs.map(build::programs_with).transpose()?;
        Ok(object.map(|object| format!("--programs={}", object.display())))
    }

    /// Runs some of the end-to-end tests.
    fn command(&self, programs: Option<String>, files: &[&str], filter: Option<&str>) -> Command {
        let flags: Vec<String> = self.agent_flags.iter().cloned().chain(programs).collect();
        let mut command = cargo_test(&["--package", "overlay-tests"]);
        command.args(files.iter().map(|file| format!("--test={file}")));
        command.arg("--").args(filter);
        command.arg(format!("--test-threads={LABS_AT_A_TIME}"));
        command.env(overlay_tests::AGENT_FLAGS_ENV, flags.join(" "));
        command
    }
}

/// Ends a run; one in which no test ran has failed, and says what there is.
fn close(mut run: Run, filter: Option<&str>) -> Result<ExitCode> {
    if let Some(filter) = filter
        && run.count().is_nothing()
    {
        run.part("filter", |_| names::none(filter))?;
    }
    Ok(run.close())
}
