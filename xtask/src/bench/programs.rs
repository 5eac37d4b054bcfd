//! What every program costs for every verdict, run by the kernel on made-up packets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lab::Output;
use crate::lab::table::table;
use crate::{build, setup, shell, workspace};

/// The test that measures instead.
const RUNNER: &str = "cost_of_every_case";

/// What it writes.
#[derive(Deserialize, Serialize)]
struct Costs {
    /// By program: how many instructions the verifier walked through.
    verified_instructions: BTreeMap<String, u32>,
    runs: Vec<Cost>,
}

#[derive(Deserialize, Serialize)]
struct Cost {
    program: String,
    /// What happens to the packet, and the packet's name where several end so.
    verdict: String,
    packet: String,
    /// Median of one run, the timer included.
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

/// Measures this tree's programs, and those of another revision on the same packets.
pub fn run(against: Option<&str>, output: Output) -> Result<()> {
    let against = against
        .map(|revision| {
            Ok::<_, anyhow::Error>(Against {
                revision: revision.to_owned(),
                costs: of_revision(revision)?,
            })
        })
        .transpose()?;
    let now = measure(&workspace::bpf_object())?;
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

/// Runs the programs of an object file on the packets that the decision is tested with.
fn measure(object: &Path) -> Result<Costs> {
    setup::ensure_protoc()?;
    shell::progress(&format!("running the programs of {}", object.display()));
    let answer = workspace::root().join("target/program-costs.json");
    let mut command = shell::cargo(&["test", "--quiet", "--package", "overlay-tests"]);
    command.args(["--test", "programs", "--", "--ignored", "--exact", RUNNER]);
    command
        .env("OVERLAY_BPF_OBJECT", object)
        .env("OVERLAY_COSTS", &answer)
        .stdout(std::io::stderr());
    shell::run(&mut command)?;
    let text = fs::read(&answer).with_context(|| format!("read {}", answer.display()))?;
    fs::remove_file(&answer).with_context(|| format!("remove {}", answer.display()))?;
    serde_json::from_slice(&text).context("understand the costs")
}

/// Builds the programs of another revision in a worktree of its own, which goes afterwards.
fn of_revision(revision: &str) -> Result<Costs> {
    let tree = workspace::root().join("target/bench-against");
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.current_dir(workspace::root()).args(arguments);
        shell::run(&mut command)
    };
    let place = tree.to_string_lossy().into_owned();
    // What an interrupted run has left.
    let _ = fs::remove_dir_all(&tree);
    git(&["worktree", "prune"])?;
    git(&["worktree", "add", "--quiet", "--detach", &place, revision])?;
    let costs =
        build::programs_of(&tree, build::Warnings::Shown).and_then(|object| measure(&object));
    let removed = git(&["worktree", "remove", "--force", &place]);
    costs.and_then(|costs| removed.map(|()| costs))
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
