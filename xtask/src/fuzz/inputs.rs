//! libFuzzer for the parsers of outside input, by cargo-fuzz.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, shell, workspace};

/// The release of cargo-fuzz whose layout this module expects.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// The options of a run.
pub struct Wanted<'a> {
    /// A target, or `all`.
    pub target: &'a str,
    /// Duration for all targets together.
    pub time: Duration,
    /// The seed of random numbers.
    pub seed: Option<u64>,
    /// Whether results are printed as JSON.
    pub json: bool,
}

/// libFuzzer's statistics at its end.
struct Done {
    target: String,
    runs: u64,
}

pub fn run(wanted: &Wanted<'_>) -> Result<()> {
    let known = targets()?;
    let targets = if wanted.target == "all" {
        known
    } else {
        ensure!(
            known.iter().any(|name| name == wanted.target),
            "no target {:?}; there are {}",
            wanted.target,
            known.join(", ")
        );
        vec![wanted.target.to_owned()]
    };
    setup::ensure_protoc()?;
    ensure_cargo_fuzz()?;
    // All targets are built at once, so that the time of each is spent on fuzzing alone.
    shell::run(&mut cargo_fuzz("build"))?;
    let share = (wanted.time / u32::try_from(targets.len())?).max(Duration::from_secs(1));
    let mut done = Vec::new();
    for target in targets {
        shell::progress(&format!("fuzzing {target} for {} s", share.as_secs()));
        done.push(fuzz(target, share, wanted.seed)?);
        super::go_on()?;
    }
    let sum: u64 = done.iter().map(|done| done.runs).sum();
    if wanted.json {
        let runs: serde_json::Map<_, _> = done
            .into_iter()
            .map(|done| (done.target, done.runs.into()))
            .collect();
        println!(
            "{:#}",
            serde_json::json!({"runs": runs, "total": sum, "failures": 0})
        );
    } else {
        for Done { target, runs } in done {
            println!("{target:<16} {runs:>12} runs");
        }
        println!("{sum} runs, 0 failures");
    }
    Ok(())
}

/// The names of the files that are linked to libFuzzer.
fn targets() -> Result<Vec<String>> {
    let directory = directory().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?
    {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    workspace::root().join("tests/fuzz")
}

/// A command of cargo-fuzz without a sanitizer for memory errors, because no parser has unsafe
/// code, and a stable compiler is then sufficient.
fn cargo_fuzz(verb: &str) -> Command {
    let mut command = shell::cargo(&[
        "fuzz",
        verb,
        "--fuzz-dir",
        "tests/fuzz",
        "--sanitizer",
        "none",
        "--features",
        "libfuzzer",
    ]);
    // As fast as another release, with the checks of arithmetic that a release leaves out.
    for (name, value) in [
        ("OPT_LEVEL", "2"),
        ("DEBUG_ASSERTIONS", "true"),
        ("OVERFLOW_CHECKS", "true"),
    ] {
        command.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    command
        .arg("--target-dir")
        .arg(super::corpora().join("build"));
    command
}

fn ensure_cargo_fuzz() -> Result<()> {
    if shell::find("cargo-fuzz").is_some() {
        return Ok(());
    }
    shell::progress(&format!(
        "cargo-fuzz {CARGO_FUZZ_VERSION} (takes a minute or two)"
    ));
    let install = [
        "install",
        "cargo-fuzz",
        "--version",
        CARGO_FUZZ_VERSION,
        "--locked",
    ];
    shell::run(&mut shell::cargo(&install))
}

fn fuzz(target: String, time: Duration, seed: Option<u64>) -> Result<Done> {
    let corpus = super::corpora().join(&target);
    fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let log = super::corpora().join(format!("{target}.log"));
    let mut command = cargo_fuzz("run");
    // libFuzzer writes new inputs to the first directory, and only reads the second.
    command
        .arg(&target)
        .arg(&corpus)
        .arg(directory().join("seeds").join(&target));
    command.args(["--", "-print_final_stats=1"]);
    command.arg(format!("-max_total_time={}", time.as_secs()));
    if let Some(seed) = seed {
        // Zero stands for a random seed.
        command.arg(format!("-seed={}", seed.max(1) as u32));
    }
    let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.stderr(file);
    let status = command.status().context("start cargo fuzz")?;
    let said = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    super::go_on()?;
    if !status.success() {
        eprintln!("{said}");
        bail!(
            "target {target} fails as told above; an input that shows it is in \
            tests/fuzz/artifacts/{target}"
        );
    }
    let runs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse().ok());
    Ok(Done {
        target,
        runs: runs.with_context(|| format!("no figures in {}", log.display()))?,
    })
}
