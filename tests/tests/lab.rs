//! The lab itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{Lab, Options};
use serde_json::Value;

/// A later build, whose state has other fields, may have to take down a lab that stays up for
/// hours.
#[test]
fn a_lab_of_another_build_can_be_taken_down() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        start_agents: false,
        ..Options::for_test("build")
    })?;
    let prefix = lab.options().prefix;
    let namespace = lab.node(1).namespace().path();
    let store = lab.store_process().context("no store")?;
    let file = lab.directory().join("lab.json");
    // Dropping the value would take the lab down as well.
    let _lab = lab.keep();
    let text = fs::read(&file)?;
    let mut state: Value = serde_json::from_slice(&text)?;
    let fields = state.as_object_mut().context("no object")?;
    fields.remove("store_processes").context("no such field")?;
    fields.insert("another".to_owned(), 1.into());
    fs::write(&file, state.to_string())?;

    let refused = Lab::attach(&prefix).err().context("it was understood")?;
    ensure!(refused.to_string().contains("another build"), "{refused:#}");

    // A malformed state stays, because only the state names the processes.
    fs::write(&file, "{}")?;
    ensure!(
        Lab::remove(&prefix).is_err(),
        "removed without knowing what"
    );
    ensure!(store.is_alive() && namespace.exists() && file.exists());

    fs::write(&file, state.to_string())?;
    ensure!(Lab::remove(&prefix)?, "no lab was found");
    ensure!(!store.is_alive(), "its store still runs");
    ensure!(!namespace.exists(), "its namespaces are still there");
    ensure!(!file.exists());
    Ok(())
}
