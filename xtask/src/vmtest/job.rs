//! One machine: its tests, and their result.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use overlay_tests::machine::RECORD_ENV;

use super::kernel::Kernel;
use super::machine::{Acceleration, End, Machine};
use super::report::Report;
use super::sizes::Sizes;
use super::told::Told;
use super::{Arguments, guest, initramfs, modules, suite};
use crate::shell;

/// Tests that run in a separate machine.
pub struct Job<'a> {
    pub kernel: &'a Kernel,
    /// The names of their files.
    pub tests: Vec<String>,
    /// The name of the machine's files in the cache, without their endings.
    pub name: String,
}

/// The machines for the user's options: one for each kernel, or one for each file of end-to-end
/// tests on each kernel.
pub fn all<'a>(arguments: &Arguments, kernels: &'a [Kernel]) -> Result<Vec<Job<'a>>> {
    let files = suite::files(&arguments.suite)?;
    let mut jobs = Vec::new();
    for kernel in kernels {
        let series = kernel.series.name;
        jobs.extend(files.iter().map(|file| Job {
            kernel,
            tests: vec![file.clone()],
            name: format!("{series}-{file}"),
        }));
        if files.is_empty() {
            let can_run = |test: &&&str| kernel.series.loads_programs || **test != guest::PROGRAMS;
            let tests = guest::TESTS.iter().filter(can_run);
            jobs.push(Job {
                kernel,
                tests: tests.map(ToString::to_string).collect(),
                name: series.to_owned(),
            });
        }
    }
    Ok(jobs)
}

impl Job<'_> {
    /// Packs the machine and runs it; returns the result, and the sizes of the programs there.
    pub fn run(
        &self,
        arguments: &Arguments,
        cache: &Path,
        files: &guest::Files,
    ) -> Result<(Report, Sizes)> {
        let release = &self.kernel.release;
        shell::progress(&format!("Linux {release}: {}", self.tests.join(", ")));
        let file = |suffix: &str| -> PathBuf { cache.join(format!("{}.{suffix}", self.name)) };
        let mut machine = Machine {
            image: self.kernel.image.clone(),
            initramfs: file("initramfs"),
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
        let modules = modules::collect(&self.kernel.modules, &[])?;
        let files = guest::only(files, &self.tests);
        initramfs::pack(
            &machine.initramfs,
            &files,
            &modules,
            &self.commands(arguments),
        )?;
        let start = Instant::now();
        let mut sizes = Sizes::default();
        let mut told = Told::default();
        let mut boot = |machine: &Machine| {
            told = Told::default();
            machine.run(|line| {
                eprintln!("{} | {line}", self.name);
                sizes.note(release, line);
                told.note(line);
            })
        };
        let mut end = boot(&machine)?;
        let mut booted_twice = false;
        if let End::NotBooted(why) = &end {
            eprintln!("{release} did not boot and gets a second try: {why}");
            if machine.acceleration == Acceleration::Kvm {
                eprintln!("this machine's virtualisation will not do: emulating");
                machine.acceleration = Acceleration::Emulated;
            }
            booted_twice = true;
            end = boot(&machine)?;
        }
        // The file is large, and the next run writes it anew.
        let _ = std::fs::remove_file(&machine.initramfs);
        let report = Report {
            kernel: self.kernel.series.name,
            release: release.clone(),
            tests: self.tests.clone(),
            count: told.count(),
            failed_tests: told.failed().to_vec(),
            unfinished: told.unfinished(),
            problem: problem(end, &told),
            booted_twice,
            seconds: start.elapsed().as_secs(),
            console: machine.console,
            log: machine.log,
        };
        if let Some(problem) = &report.problem {
            eprintln!("error: {}: {problem}", self.name);
        }
        shell::progress(&format!("{}: {}", self.name, report.result()));
        Ok((report, sizes))
    }

    /// The machine's commands.
    fn commands(&self, arguments: &Arguments) -> Vec<String> {
        let record = if arguments.record {
            format!("env {RECORD_ENV}=1 ")
        } else {
            String::new()
        };
        let skips = arguments.skipped.iter();
        let mut filter: String = skips.map(|test| format!("--skip {test} ")).collect();
        filter += arguments.filter.as_deref().unwrap_or_default();
        let line = |test: &String| {
            let program = format!("{record}{}/{test}", guest::BIN);
            guest::command_line(test, &program, &filter)
        };
        self.tests.iter().map(line).collect()
    }
}

/// Why a run as a whole failed, apart from its tests.
fn problem(end: End, told: &Told) -> Option<String> {
    let count = told.count();
    match end {
        End::Exited(0) if count.passed == 0 => Some("no test ran".to_owned()),
        End::Exited(0) => None,
        End::Exited(status) if count.failed == 0 => Some(format!("exit status {status}")),
        End::Exited(_) => None,
        End::NotBooted(why) => Some(format!("did not boot, twice: {why}")),
        End::Died(why) => Some(match told.current() {
            Some(test) => format!("in {test}: {why}"),
            None => why,
        }),
    }
}
