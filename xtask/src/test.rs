//! `cargo xtask test`: all tests, with the duration of each part.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::parts::{self, Run, Tests};
use crate::{
    bench, build, containerd, deny, fuzz, isolation, scale, setup, shell, soak, test_names, vmtest,
};

/// Number of end-to-end tests that run at a time; each has a separate lab.
const LABS_AT_A_TIME: usize = 2;

/// Duration of fuzzing in seconds; longer runs are for `cargo xtask fuzz`.
const FUZZ_SECONDS: u64 = 40;

/// Run every test: format, lints, unit tests, programs in the kernel, end-to-end tests in labs,
/// other kernels.
///
/// Needs root, for the programs and the labs, which are made in namespaces of their own: two runs
/// do not meet, and nothing is left, whatever ends a run. Runs everything even if an early part
/// fails; the exit code is 0 only if all passed. The last lines name what failed, and end with `N
/// passed, N failed, N ignored`; ignored are tests that are made for machines with other kernels or
/// for measuring.
///
/// With a filter only tests run: format, lints, licences, other kernels, the other data path, fuzz,
/// bench and soak are left out. A filter that is the name of a file in
/// tests/tests means all tests in it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test                 everything, about three quarters of an hour on two cores
  cargo xtask test reachability    all tests in tests/tests/reachability.rs
  cargo xtask test pods            only tests whose name contains that word
  cargo xtask test --programs without-flow-news
                                   what must hold without that short cut, too
  cargo xtask test --agent-flag=--aggregates=kernel")]
pub struct Arguments {
    /// Run only tests whose name contains this, or all in the file of this name.
    filter: Option<String>,
    /// Equality, offloads, reachability, faults and healing only, with eBPF programs that were
    /// built with this feature.
    #[arg(long, value_name = "FEATURE")]
    programs: Option<String>,
    /// Equality, offloads, reachability, faults and healing only, with agents that have this flag;
    /// may be repeated.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<String>,
}

/// Tests in separate clusters.
const CLUSTERS: &str = "kubernetes";
/// Tests with API servers of Kubernetes, and no clusters.
const API_SERVERS: &str = "store_kube";
/// The tests that every variant of the data path has to pass.
const OF_EVERY_VARIANT: &[&str] = &["equality", "offloads", "reachability", "faults", "healing"];

/// A variant of the data path.
struct Variant {
    /// A feature of the programs.
    programs: Option<String>,
    agent_flags: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs and making namespaces needs root: run `cargo xtask test` with sudo"
    );
    let filter = arguments.filter.as_deref();
    let asked = Variant {
        programs: arguments.programs.clone(),
        agent_flags: arguments.agent_flag.clone(),
    };
    let is_usual = asked.is_usual();
    let everything = filter.is_none() && is_usual;
    let mut variant = if everything {
        Variant::another()
    } else {
        asked
    };
    let mut run = Run::default();
    run.part("setup", |_| set_up(everything))?;
    match filter {
        None | Some(CLUSTERS) if is_usual => {
            run.part("Kubernetes", |_| setup::ensure_conformance())?;
        }
        Some(API_SERVERS) if is_usual => {
            run.part("Kubernetes", |_| setup::ensure_kubernetes())?;
        }
        _ => {}
    }
    if run.is_broken() {
        // The other parts would fail for the same missing package.
        return Ok(run.close());
    }
    // Parts that may fetch files come first, because labs are made without a network.
    if everything {
        run.part("format", |_| {
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
        })?;
    }
    // This comes before clippy, because the agent's build script embeds the programs.
    run.part("eBPF programs", |_| {
        build::programs(build::Warnings::Denied)
    })?;
    let mut kernels = None;
    if everything {
        run.part("clippy", |_| clippy())?;
        run.part("clippy of the programs", |_| build::lint_programs())?;
        run.part("licences, bans, sources", |_| deny::check())?;
        run.part("fetch other kernels", |_| {
            kernels = Some(vmtest::fetch_for_ci()?);
            Ok(())
        })?;
    }
    run.part("build", |_| {
        variant.build()?;
        build::binaries(false)?;
        fetch()
    })?;
    isolation::enter()?;
    if !is_usual {
        run.cargo_test("in labs", &mut variant.command(OF_EVERY_VARIANT, filter))?;
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
        // A short lap; the full tests of a variant are for `--programs` and `--agent-flag`.
        run.cargo_test(
            "another data path",
            &mut variant.command(&["reachability"], None),
        )?;
        run.part("fuzz", |_| fuzz::try_out(FUZZ_SECONDS))?;
        // This checks whether the command works; no figure passes or fails.
        run.part("bench", |_| bench::try_out())?;
        run.part("scale", |_| scale::try_out())?;
        run.part("soak", |_| soak::try_out())?;
    }
    close(run, filter)
}

/// Ensures the dependencies of the parts, and reports the features that this machine's kernel
/// lacks.
fn set_up(everything: bool) -> Result<()> {
    setup::ensure_tests()?;
    containerd::ensure()?;
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

/// Fetches the crates that tests are built from.
fn fetch() -> Result<()> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    shell::run(&mut shell::cargo(&[
        "fetch", "--quiet", "--locked", "--target", &target,
    ]))
}

fn unit_tests(run: &mut Run, filter: Option<&str>) -> Result<()> {
    let mut units = parts::cargo_test(&test_names::UNIT_TESTS);
    run.cargo_test("unit tests", units.arg("--").args(filter))?;
    let mut decision = parts::cargo_test(&["--package", "overlay-common", "--test", "*"]);
    run.cargo_test("decision", decision.arg("--").args(filter))
}

/// The tests of the programs in the kernel, those in labs, and those in clusters.
///
/// Clusters run beside labs, because a cluster leaves the processors idle for more than half of the
/// time.
fn labs(run: &mut Run, filter: Option<&str>) -> Result<()> {
    let files = test_names::files()?;
    let (whole, others): (Vec<_>, Vec<_>) = files
        .iter()
        .partition(|file| filter.is_none_or(|filter| *file == filter));
    for (files, filter) in [(whole, None), (others, filter)] {
        let (clusters, labs): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| *file == CLUSTERS);
        let tests: Vec<_> = [
            ("in the kernel and labs", "", labs, LABS_AT_A_TIME),
            ("in clusters", "clusters | ", clusters, 1),
        ]
        .into_iter()
        .filter(|(_, _, files, _)| !files.is_empty())
        .map(|(name, prefix, files, at_a_time)| {
            let mut command = parts::cargo_test(&["--package", "overlay-tests"]);
            command.args(files.iter().map(|file| format!("--test={file}")));
            command.arg("--").args(filter);
            command.arg(format!("--test-threads={at_a_time}"));
            Tests {
                name,
                command,
                prefix,
            }
        })
        .collect();
        run.cargo_tests_together(tests)?;
    }
    Ok(())
}

impl Variant {
    /// A variant that differs from the usual one as much as possible: without a short cut, and with
    /// aggregates left to the kernel, as the README recommends in some cases.
    fn another() -> Self {
        Self {
            programs: Some("without-flow-news".to_owned()),
            agent_flags: vec!["--aggregates=kernel".to_owned()],
        }
    }

    fn is_usual(&self) -> bool {
        self.programs.is_none() && self.agent_flags.is_empty()
    }

    /// Builds the variant's programs, and makes agents load them.
    fn build(&mut self) -> Result<()> {
        if let Some(feature) = &self.programs {
            let object = build::programs_with(feature)?;
            let flag = format!("--programs={}", object.display());
            self.agent_flags.push(flag);
        }
        Ok(())
    }

    /// Runs some of the end-to-end tests.
    fn command(&self, files: &[&str], filter: Option<&str>) -> Command {
        let mut command = parts::cargo_test(&["--package", "overlay-tests"]);
        command.args(files.iter().map(|file| format!("--test={file}")));
        command.arg("--").args(filter);
        command.arg(format!("--test-threads={LABS_AT_A_TIME}"));
        command.env(overlay_tests::AGENT_FLAGS_ENV, self.agent_flags.join(" "));
        command
    }
}

/// Ends a run; a run without a test has failed, and its error lists existing names.
fn close(mut run: Run, filter: Option<&str>) -> Result<ExitCode> {
    if let Some(filter) = filter
        && run.count().is_nothing()
    {
        run.part("filter", |_| test_names::none(filter))?;
    }
    Ok(run.close())
}
