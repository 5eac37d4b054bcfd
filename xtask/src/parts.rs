//! The parts of a run of checks and tests: the duration and the result of each.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use overlay_tests::interrupt;

use crate::count::{self, Count};
use crate::shell;

/// Cargo's tests as a part.
pub struct Tests {
    pub name: &'static str,
    pub command: Command,
    /// Text before each line of output.
    pub prefix: &'static str,
}

/// A finished part.
struct Part {
    name: &'static str,
    took: Duration,
    done: Done,
    failure: Option<String>,
}

/// The result of a part.
#[derive(Debug, Default)]
pub struct Done {
    /// Tests of the part.
    pub count: Count,
    /// The names of those that failed.
    pub failed: Vec<String>,
}

impl Part {
    fn run(name: &'static str, work: impl FnOnce(&mut Done) -> Result<()>) -> Self {
        shell::progress(name);
        let start = Instant::now();
        let mut done = Done::default();
        let failure = work(&mut done).err().map(|error| format!("{error:#}"));
        Self {
            name,
            took: start.elapsed(),
            done,
            failure,
        }
    }

    /// A part that failed without a failing test, such as format, counts as one failed test.
    fn count(&self) -> Count {
        let mut count = self.done.count;
        if self.failure.is_some() {
            count.failed = count.failed.max(1);
        }
        count
    }
}

/// The run so far.
#[derive(Default)]
pub struct Run(Vec<Part>);

impl Run {
    /// Runs one part and continues if the part fails, unless the user interrupts.
    pub fn part(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Done) -> Result<()>,
    ) -> Result<()> {
        self.record(Part::run(name, work))
    }

    /// Runs cargo's tests as a part.
    pub fn cargo_test(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        self.part(name, |done| run_tests(command, "", done))
    }

    /// Runs several of cargo's tests at the same time, each as a part.
    pub fn cargo_tests_together(&mut self, tests: Vec<Tests>) -> Result<()> {
        let run = |mut tests: Tests| {
            Part::run(tests.name, |done| {
                run_tests(&mut tests.command, tests.prefix, done)
            })
        };
        let parts = thread::scope(|scope| {
            let running: Vec<_> = tests
                .into_iter()
                .map(|tests| scope.spawn(move || run(tests)))
                .collect();
            let ended = running.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            ended.collect::<Vec<_>>()
        });
        parts.into_iter().try_for_each(|part| self.record(part))
    }

    fn record(&mut self, part: Part) -> Result<()> {
        interrupt::check()?;
        if let Some(failure) = &part.failure {
            eprintln!("error: {failure}");
        }
        self.0.push(part);
        Ok(())
    }

    /// Whether a part has failed.
    pub fn is_broken(&self) -> bool {
        self.0.iter().any(|part| part.failure.is_some())
    }

    /// All tests so far.
    pub fn count(&self) -> Count {
        let mut sum = Count::default();
        for part in &self.0 {
            sum += part.count();
        }
        sum
    }

    /// Prints the duration of each part and the failures, then the sum of all tests.
    pub fn close(self) -> ExitCode {
        println!("\n{}", self.summary());
        if self.is_broken() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }

    fn summary(&self) -> String {
        let mut lines = Vec::new();
        for part in &self.0 {
            let state = if part.failure.is_some() {
                "FAILED"
            } else {
                "ok"
            };
            let took = part.took.as_secs_f32();
            lines.push(format!("{:<24} {took:>7.1} s  {state}", part.name));
        }
        for part in self.0.iter().filter(|part| part.failure.is_some()) {
            let what = if part.done.failed.is_empty() {
                // Only the first line is printed, because the whole failure was printed when it
                // happened.
                let failure = part.failure.as_deref().unwrap_or_default();
                failure.lines().next().unwrap_or_default().to_owned()
            } else {
                part.done.failed.join(", ")
            };
            lines.push(format!("failed in {}: {what}", part.name));
        }
        lines.push(self.count().to_string());
        lines.join("\n")
    }
}

/// A run of cargo's tests that goes on after the first program with failures.
pub fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = shell::cargo(&["test", "--no-fail-fast"]);
    command.args(arguments);
    command
}

/// Runs cargo's tests, passes their output on, and adds up their closing lines.
fn run_tests(command: &mut Command, prefix: &str, done: &mut Done) -> Result<()> {
    let shown = overlay_tests::command::show(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let output = child.stdout.take().context("the output of cargo test")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("read the output of cargo test")?;
        println!("{prefix}{line}");
        done.count += count::closing_line(&line).unwrap_or_default();
        done.failed
            .extend(count::failed_test(&line).map(str::to_owned));
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(passed: usize, failed: usize) -> Count {
        Count {
            passed,
            failed,
            ignored: 0,
        }
    }

    fn run() -> Run {
        let mut run = Run::default();
        run.part("format", |_| bail!("badly formatted\nand more"))
            .unwrap();
        run.part("labs", |done| {
            done.count = count(7, 2);
            done.failed = vec!["a::b".to_owned(), "c".to_owned()];
            bail!("cargo failed")
        })
        .unwrap();
        run.part("units", |done| {
            done.count = count(3, 0);
            Ok(())
        })
        .unwrap();
        run
    }

    #[test]
    fn a_broken_part_counts_beside_failed_tests() {
        assert_eq!(run().count(), count(10, 3));
        assert!(run().is_broken());
    }

    #[test]
    fn the_last_lines_name_what_failed() {
        let summary = run().summary();
        let last: Vec<_> = summary.lines().rev().take(3).collect();
        assert_eq!(last[2], "failed in format: badly formatted");
        assert_eq!(last[1], "failed in labs: a::b, c");
        assert_eq!(last[0], "10 passed, 3 failed, 0 ignored");
    }
}
