//! `cargo xtask test`: everything that must hold, with the time that each part took.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::interrupt;
use serde::Serialize;

use crate::{bench, build, deny, fuzz, scale, setup, shell, soak, vmtest};

/// End-to-end tests that run at a time; each has a lab of its own.
const LABS_AT_A_TIME: usize = 2;

/// How long packets are made up; hours are for `cargo xtask fuzz`.
const FUZZ_SECONDS: u64 = 40;

/// Run every test: format, clippy, unit tests, programs in the kernel, end-to-end tests in labs.
///
/// Needs root, for the programs and the labs. Runs everything even if an early part fails; the exit code is
/// 0 only if all passed. The last line is `N passed, N failed`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test                 everything
  cargo xtask test reachability    only tests whose name contains that word
  cargo xtask test --programs without-flow-news
                                   what must hold without that short cut, too
  cargo xtask test --agent-flag=--aggregates=kernel")]
pub struct Arguments {
    /// Run only tests whose name contains this; leaves out format and clippy.
    filter: Option<String>,
    /// Equality, offloads, reachability and faults only, with eBPF programs that were built with this feature.
    #[arg(long, value_name = "FEATURE")]
    programs: Option<String>,
    /// Equality, offloads, reachability and faults only, with agents that have this flag; may be repeated.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<String>,
}

/// The tests that every variant of the data path has to pass.
const OF_EVERY_VARIANT: [&str; 5] = ["equality", "offloads", "reachability", "faults", "healing"];

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// A finished part.
struct Part {
    name: &'static str,
    took: Duration,
    failure: Option<String>,
}

/// The run so far.
#[derive(Default)]
struct Run {
    parts: Vec<Part>,
    count: Count,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs and making namespaces needs root: run `cargo xtask test` with sudo"
    );
    let filter = arguments.filter.as_deref();
    let mut run = Run::default();
    run.part("setup", || {
        setup::ensure_tests().and_then(|()| setup::ensure_toolchain().map(drop))
    })?;
    if arguments.programs.is_some() || !arguments.agent_flag.is_empty() {
        run.variant(arguments)?;
        return Ok(run.close());
    }
    if filter.is_none() {
        run.part("format", || {
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
        })?;
    }
    // Before clippy: the agent's build script embeds the programs.
    run.part("eBPF programs", || build::programs(build::Warnings::Denied))?;
    if filter.is_none() {
        run.part("clippy", clippy)?;
        run.part("licences, bans, sources", deny::check)?;
    }
    run.part("build", || build::binaries(false))?;
    run.tests(
        "unit tests",
        &[
            "--workspace",
            "--exclude",
            "overlay-ebpf",
            "--lib",
            "--bins",
        ],
        filter,
        None,
    )?;
    for (name, package, threads) in [
        ("decision", "overlay-common", None),
        (
            "in the kernel and labs",
            "overlay-tests",
            Some(LABS_AT_A_TIME),
        ),
    ] {
        run.tests(
            name,
            &["--package", package, "--test", "*"],
            filter,
            threads,
        )?;
    }
    if filter.is_none() {
        let mut count = Count::default();
        run.part("other kernels", || vmtest::for_ci(&mut count))?;
        run.count += count;
        run.part("fuzz", || fuzz::try_out(FUZZ_SECONDS))?;
        // That it works; no figure passes or fails.
        run.part("bench", bench::try_out)?;
        run.part("scale", scale::try_out)?;
        run.part("soak", soak::try_out)?;
    }
    Ok(run.close())
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

impl Run {
    /// Does one part and goes on if it fails, unless the user interrupts.
    fn part(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        shell::progress(name);
        let start = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        interrupt::check()?;
        if let Some(failure) = &failure {
            eprintln!("error: {failure}");
        }
        self.parts.push(Part {
            name,
            took: start.elapsed(),
            failure,
        });
        Ok(())
    }

    /// Tests another variant of the data path.
    fn variant(&mut self, arguments: &Arguments) -> Result<()> {
        self.part("eBPF programs", || build::programs(build::Warnings::Denied))?;
        self.part("build", || build::binaries(false))?;
        let mut flags = arguments.agent_flag.clone();
        if let Some(feature) = &arguments.programs {
            let object = build::programs_with(feature)?;
            flags.push(format!("--programs={}", object.display()));
        }
        let mut command = shell::cargo(&["test", "--no-fail-fast", "--package", "overlay-tests"]);
        command.args(OF_EVERY_VARIANT.map(|test| format!("--test={test}")));
        command.arg("--").args(&arguments.filter);
        command.arg(format!("--test-threads={LABS_AT_A_TIME}"));
        command.env(overlay_tests::AGENT_FLAGS_ENV, flags.join(" "));
        self.cargo_test("in labs", &mut command)
    }

    fn tests(
        &mut self,
        name: &'static str,
        arguments: &[&str],
        filter: Option<&str>,
        threads: Option<usize>,
    ) -> Result<()> {
        let mut command = shell::cargo(&["test", "--no-fail-fast"]);
        command.args(arguments).arg("--").args(filter);
        if let Some(threads) = threads {
            command.arg(format!("--test-threads={threads}"));
        }
        self.cargo_test(name, &mut command)
    }

    fn cargo_test(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        let mut count = Count::default();
        self.part(name, || run_tests(command, &mut count))?;
        self.count += count;
        Ok(())
    }

    /// Says how long each part took, and ends with the sum of all tests.
    fn close(mut self) -> ExitCode {
        println!();
        for Part {
            name,
            took,
            failure,
        } in &self.parts
        {
            let state = if failure.is_some() { "FAILED" } else { "ok" };
            println!("{name:<24} {:>7.1} s  {state}", took.as_secs_f32());
        }
        let broken = self
            .parts
            .iter()
            .filter(|part| part.failure.is_some())
            .count();
        if self.count.failed == 0 {
            // A part that failed without a failing test, such as format, counts as one.
            self.count.failed = broken;
        }
        println!("{}", self.count);
        if broken == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs cargo's tests, passes on what they write, and adds up their closing lines.
fn run_tests(command: &mut Command, count: &mut Count) -> Result<()> {
    let shown = overlay_tests::command::show(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let output = child.stdout.take().context("the output of cargo test")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("read the output of cargo test")?;
        println!("{line}");
        *count += closing_line(&line).unwrap_or_default();
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// The numbers in `test result: ok. 3 passed; 0 failed; …`.
pub fn closing_line(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; \
                    finished in 0.01s";
        assert_eq!(
            closing_line(line),
            Some(Count {
                passed: 12,
                failed: 3
            })
        );
        assert_eq!(closing_line("test result: maybe"), None);
        assert_eq!(closing_line("running 3 tests"), None);
    }
}
