//! Runs other programs and reports progress.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use overlay_tests::command::show;
use overlay_tests::interrupt;

/// Reports a step on stderr, because stdout is for results.
pub fn progress(text: &str) {
    eprintln!("==> {text}");
}

/// Runs a program with our own stdout and stderr, and demands success.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("start `{shown}`"))?;
    interrupt::check()?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a cargo build, passes its messages on, and returns the number of warnings. Cargo repeats
/// the warnings of crates that need no compilation, so the number does not depend on earlier
/// builds. With `-D warnings` in the flags everything would be compiled twice.
pub fn run_counting_warnings(command: &mut Command) -> Result<usize> {
    command.arg("--message-format=json").stdout(Stdio::piped());
    let shown = show(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let output = child.stdout.take().context("the output of cargo")?;
    let mut warnings = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("read the output of cargo")?;
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        let message = &message["message"];
        if let Some(rendered) = message["rendered"].as_str() {
            eprint!("{rendered}");
        }
        warnings += usize::from(message["level"] == "warning");
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{shown}`"))?;
    interrupt::check()?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(warnings)
}

/// A cargo command in the repository, by the cargo that runs us.
///
/// Variables that `cargo run` sets about this package are removed. Otherwise build scripts that
/// read such variables (ring's does) would run again, with all dependent builds, whenever cargo is
/// called in the other way.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .current_dir(crate::workspace::root())
        .args(arguments);
    for (name, _) in std::env::vars_os() {
        let about_us = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name
            .to_str()
            .is_some_and(|name| about_us.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Looks for a program on the PATH, which `environment` has completed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| is_program(path))
}

/// The directory to which `cargo install` writes programs.
pub fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    Some(home.join("bin"))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
