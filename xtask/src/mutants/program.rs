//! cargo-mutants: its path, its calls, its output.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{shell, workspace};

/// The release of cargo-mutants, because another one makes other changes, and names them in other
/// words.
const VERSION: &str = "27.1.0";
/// Timeout of a test in seconds; a test that takes longer hangs, however busy the machine is.
const HANGS: &str = "120";
/// Exit codes of cargo-mutants: all caught, some missed, some timed out. Any other code means no
/// result.
const RESULTS: [i32; 3] = [0, 2, 3];

/// The program of this version.
pub struct Program {
    /// The program's directory.
    bin: PathBuf,
}

/// The changes to make, and their places.
pub struct Wanted<'a> {
    pub package: &'static str,
    /// Paths and patterns.
    pub files: Vec<&'static str>,
    /// A revision of git.
    pub in_diff: Option<&'a str>,
    /// `PART/PARTS`.
    pub shard: Option<&'a str>,
}

/// A changed place, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Path in the repository.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// The unchanged line, without surrounding space.
    pub text: String,
    /// The change, in the words of cargo-mutants.
    pub change: String,
    pub fate: Fate,
}

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Fate {
    /// A test failed.
    #[serde(rename = "CaughtMutant")]
    Caught,
    /// A test did not end, which counts as caught.
    Timeout,
    /// No test failed.
    #[serde(rename = "MissedMutant")]
    Survived,
    /// The change does not compile.
    Unviable,
    /// Nothing was changed, and all tests passed.
    #[serde(rename = "Success")]
    Unchanged,
}

/// Builds the program below `target`, if needed, because no package has it as a binary.
pub fn find() -> Result<Program> {
    let root = workspace::target().join(format!("cargo-mutants-{VERSION}"));
    let bin = root.join("bin");
    if !bin.join("cargo-mutants").is_file() {
        shell::progress(&format!("cargo-mutants {VERSION} (takes some minutes)"));
        let install = [
            "install",
            "cargo-mutants",
            "--version",
            VERSION,
            "--locked",
            "--quiet",
        ];
        shell::run(shell::cargo(&install).arg("--root").arg(&root))?;
    }
    Ok(Program { bin })
}

impl Program {
    /// Makes the changes of a package one by one, and runs its tests against each.
    ///
    /// # Errors
    /// When a test fails without any change.
    pub fn run(&self, wanted: &Wanted) -> Result<Vec<Mutant>> {
        let directory = workspace::target().join("mutants");
        let output = directory.join(wanted.package);
        fs::create_dir_all(&output).with_context(|| format!("make {}", output.display()))?;
        let outcomes = output.join("mutants.out/outcomes.json");
        if outcomes.exists() {
            fs::remove_file(&outcomes).with_context(|| format!("remove {}", outcomes.display()))?;
        }
        let mut command = self.command(wanted, &output)?;
        command.env("CARGO_TARGET_DIR", directory.join("build"));
        if let Some(revision) = wanted.in_diff {
            command
                .arg("--in-diff")
                .arg(diff(revision, &directory.join("since.diff"))?);
        }
        // Only tests that need no root: all of overlay-common's, the library's own of overlay-user.
        // These are arguments of every call of cargo; arguments after `--` would leave the binaries
        // in the build of each change.
        command.arg("--cargo-arg=--lib");
        if wanted.package == "overlay-common" {
            command.arg("--cargo-arg=--tests");
        }
        let status = command.status().context("start cargo-mutants")?;
        overlay_tests::interrupt::check()?;
        let code = status.code().unwrap_or_default();
        if !RESULTS.contains(&code) {
            bail!("cargo-mutants says why above ({status})");
        }
        if !outcomes.exists() {
            // These files, or these lines of them, have no place to change.
            return Ok(Vec::new());
        }
        let json = fs::read_to_string(&outcomes)
            .with_context(|| format!("read {}", outcomes.display()))?;
        read(&json, |file| {
            fs::read_to_string(workspace::root().join(file)).ok()
        })
    }

    fn command(&self, wanted: &Wanted, output: &Path) -> Result<Command> {
        let mut command = shell::cargo(&["mutants", "--package", wanted.package]);
        for file in &wanted.files {
            command.args(["--file", file]);
        }
        command.args(["--profile", "mutants", "--jobs", "1", "--no-config"]);
        command.args(["--minimum-test-timeout", HANGS, "--output"]);
        command.arg(output);
        if let Some(shard) = wanted.shard {
            command.args(["--shard", shard, "--sharding", "round-robin"]);
        }
        // The program's output is progress, whereas stdout is for results.
        command.stdout(std::io::stderr());
        command.env("PATH", self.path()?);
        Ok(command)
    }

    /// The PATH with the program, for cargo.
    fn path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::env::split_paths(&path);
        std::env::join_paths(std::iter::once(self.bin.clone()).chain(directories))
            .context("put cargo-mutants on the PATH")
    }
}

/// Writes the changes since a revision to a file.
fn diff<'a>(revision: &str, to: &'a Path) -> Result<&'a Path> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root());
    git.args(["diff", "--no-color", "--no-ext-diff", revision, "--"]);
    let output = git.output().context("start `git diff`")?;
    if !output.status.success() {
        bail!(
            "`git diff {revision}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    fs::write(to, &output.stdout).with_context(|| format!("write {}", to.display()))?;
    Ok(to)
}

/// The needed part of `outcomes.json`.
#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    scenario: Scenario,
    summary: Fate,
}

#[derive(Deserialize)]
enum Scenario {
    Baseline,
    Mutant(Place),
}

#[derive(Deserialize)]
struct Place {
    /// `FILE:LINE:COLUMN: CHANGE`.
    name: String,
    file: String,
    span: Span,
}

#[derive(Deserialize)]
struct Span {
    start: Start,
}

#[derive(Deserialize)]
struct Start {
    line: usize,
}

/// Reads `outcomes.json`; `source` returns the content of a file of the repository.
fn read(json: &str, source: impl Fn(&str) -> Option<String>) -> Result<Vec<Mutant>> {
    let read: Outcomes = serde_json::from_str(json).context("the outcomes of cargo-mutants")?;
    let mut mutants = Vec::new();
    for outcome in read.outcomes {
        let Scenario::Mutant(place) = outcome.scenario else {
            continue;
        };
        let line = place.span.start.line;
        let source = source(&place.file).unwrap_or_default();
        let text = source
            .lines()
            .nth(line.saturating_sub(1))
            .unwrap_or_default();
        let change = place.name.split_once(": ").map(|(_, change)| change);
        mutants.push(Mutant {
            line,
            text: text.trim().to_owned(),
            change: change.unwrap_or(&place.name).to_owned(),
            file: place.file,
            fate: outcome.summary,
        });
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read() {
        let json = r#"{ "outcomes": [
            { "scenario": "Baseline", "summary": "Success", "log_path": "log/baseline.log" },
            { "scenario": { "Mutant": {
                "name": "a/src/b.rs:2:7: replace + with - in sum",
                "package": "a",
                "file": "a/src/b.rs",
                "span": {
                    "start": { "line": 2, "column": 7 }, "end": { "line": 2, "column": 8 } } } },
              "summary": "MissedMutant" } ],
            "total_mutants": 1 }"#;
        let source =
            |file: &str| (file == "a/src/b.rs").then(|| "fn sum() {\n    1 + 2\n}".to_owned());
        let mutants = read(json, source).unwrap();
        let wanted = Mutant {
            file: "a/src/b.rs".to_owned(),
            line: 2,
            text: "1 + 2".to_owned(),
            change: "replace + with - in sum".to_owned(),
            fate: Fate::Survived,
        };
        assert_eq!(mutants, [wanted]);
    }
}
