//! The cost of every program for every verdict, measured by the kernel on invented packets.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lab::Output;
use crate::lab::table::table;
use crate::{build, setup, shell, workspace};

/// The test that makes the measurement.
const RUNNER: &str = "cost_of_every_case";

/// The output of that test.
#[derive(Deserialize, Serialize)]
struct Costs {
    /// The number of instructions that the verifier walked through, by program.
    verified_instructions: BTreeMap<String, u32>,
    runs: Vec<Cost>,
}

#[derive(Deserialize, Serialize)]
struct Cost {
    program: String,
    /// The verdict on the packet, with the packet's name where several have that verdict.
    verdict: String,
    packet: String,
    /// The shortest of many runs, the timer included, because longer runs were disturbed.
    nanoseconds: u64,
}

#[derive(Serialize)]
struct Findings {
    now: Costs,
    against: Option<Against>,
}

#[derive(Serialize)]
struct Against {
    revision: String,
    costs: Costs,
}

/// Number of times that both trees take turns, so that a slow minute affects both.
const TURNS: usize = 3;

/// Measures this tree's programs, and those of another revision on the same packets.
pub fn run(against: Option<&str>, output: Output) -> Result<()> {
    let other = against.map(Worktree::check_out).transpose()?;
    // Cargo considers the crates of both trees the same, so each tree has a separate directory,
    // which stays for the next run.
    let builds = workspace::root().join("target/against");
    let (mut now, mut before) = (None, None);
    for _ in 0..TURNS {
        if let Some(Worktree { place, object, .. }) = &other {
            fastest(&mut before, measure(place, &builds, object)?);
        }
        fastest(
            &mut now,
            measure(
                workspace::root(),
                &workspace::target(),
                &workspace::bpf_object(),
            )?,
        );
    }
    let against = other.as_ref().zip(before).map(|(tree, costs)| Against {
        revision: tree.revision.clone(),
        costs,
    });
    let now = now.context("no turn was taken")?;
    let findings = Findings { now, against };
    match output {
        Output::Json => {
            let json = serde_json::to_string_pretty(&findings).context("write JSON")?;
            println!("{json}");
        }
        Output::Table => println!("{}", render(&findings)),
    }
    Ok(())
}

/// Runs the programs of an object file on the test packets of `tree`, because the maps belong to
/// the programs.
fn measure(tree: &Path, target: &Path, object: &Path) -> Result<Costs> {
    setup::ensure_protoc()?;
    shell::progress(&format!("running the programs of {}", object.display()));
    let answer =
        workspace::root().join(format!("target/program-costs-{}.json", std::process::id()));
    let mut command = shell::cargo(&["test", "--quiet", "--package", "overlay-tests"]);
    command.args(["--test", "programs", "--", "--ignored", "--exact", RUNNER]);
    command
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .env("OVERLAY_BPF_OBJECT", object)
        .env("OVERLAY_COSTS", &answer)
        .stdout(std::io::stderr());
    shell::run(&mut command)?;
    let text = fs::read(&answer).with_context(|| format!("read {}", answer.display()))?;
    fs::remove_file(&answer).with_context(|| format!("remove {}", answer.display()))?;
    serde_json::from_slice(&text).context("understand the costs")
}

/// Keeps the faster of two measurements of each case.
fn fastest(best: &mut Option<Costs>, new: Costs) {
    let Some(best) = best else {
        *best = Some(new);
        return;
    };
    for (best, new) in best.runs.iter_mut().zip(new.runs) {
        best.nanoseconds = best.nanoseconds.min(new.nanoseconds);
    }
}

/// A checkout of another revision, with its programs; removed when dropped.
struct Worktree {
    revision: String,
    place: PathBuf,
    object: PathBuf,
}

impl Worktree {
    fn check_out(revision: &str) -> Result<Self> {
        let place = workspace::root().join("target/bench-against");
        // This removes the remains of an interrupted run.
        let _ = fs::remove_dir_all(&place);
        git(&["worktree".as_ref(), "prune".as_ref()])?;
        let add = ["worktree", "add", "--quiet", "--detach"].map(OsStr::new);
        git(&[&add[..], &[place.as_os_str(), revision.as_ref()]].concat())?;
        let mut tree = Self {
            revision: revision.to_owned(),
            place,
            object: PathBuf::new(),
        };
        tree.object = build::programs_of(&tree.place, &[], build::Warnings::Shown)?;
        Ok(tree)
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let remove = ["worktree", "remove", "--force"].map(OsStr::new);
        if let Err(error) = git(&[&remove[..], &[self.place.as_os_str()]].concat()) {
            shell::progress(&format!("{} stays: {error:#}", self.place.display()));
        }
    }
}

fn git(arguments: &[&OsStr]) -> Result<()> {
    let mut command = std::process::Command::new("git");
    command.current_dir(workspace::root()).args(arguments);
    shell::run(&mut command)
}

fn render(findings: &Findings) -> String {
    let mut instructions = table(["PROGRAM", "VERIFIED INSTRUCTIONS", "BEFORE"]);
    let before = findings.against.as_ref().map(|against| &against.costs);
    for (program, count) in &findings.now.verified_instructions {
        let old = before.and_then(|before| before.verified_instructions.get(program));
        instructions.add_row([
            program.clone(),
            count.to_string(),
            old.map_or_else(String::new, ToString::to_string),
        ]);
    }
    let mut runs = table(["PROGRAM", "VERDICT", "PACKET", "NS", "BEFORE", ""]);
    for cost in &findings.now.runs {
        let same = |old: &&Cost| {
            (&old.program, &old.verdict, &old.packet)
                == (&cost.program, &cost.verdict, &cost.packet)
        };
        let old = before.and_then(|before| before.runs.iter().find(same));
        let share = |old: &Cost| cost.nanoseconds as f64 / old.nanoseconds as f64;
        runs.add_row([
            cost.program.clone(),
            cost.verdict.clone(),
            cost.packet.clone(),
            cost.nanoseconds.to_string(),
            old.map_or_else(String::new, |old| old.nanoseconds.to_string()),
            old.map_or_else(String::new, |old| format!("×{:.2}", share(old))),
        ]);
    }
    format!("{instructions}\n\n{runs}")
}
