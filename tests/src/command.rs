//! Runs other programs; errors name the command and its output.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command in the form in which people type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Turns a bad exit status into an error that carries the command and its stderr.
///
/// # Errors
/// When the program failed.
pub fn require_success(shown: &str, output: Output) -> Result<Output> {
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let answer = String::from_utf8_lossy(&output.stdout);
        bail!(
            "`{shown}` failed ({}): {} {}",
            output.status,
            complaint.trim(),
            answer.trim()
        );
    }
    Ok(output)
}

/// Runs a program to its end and returns what it wrote to stdout.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run<I, S>(program: &str, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let shown = show(&command);
    let output = command
        .output()
        .with_context(|| format!("start `{shown}`"))?;
    let output = require_success(&shown, output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs one `ip` command, written as on a command line.
///
/// # Errors
/// When `ip` is missing or refuses.
pub fn ip(line: &str) -> Result<String> {
    run("ip", line.split_whitespace())
}

/// Runs many `ip` commands (one a line, without the leading `ip`) inside a network namespace.
///
/// # Errors
/// When `ip` is missing or refuses one of them.
pub fn ip_batch(namespace: &str, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let shown = show(&command);
    let mut child = command
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(lines.as_bytes())
            .with_context(|| format!("write to `{shown}`"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for `{shown}`"))?;
    require_success(&format!("{shown}:\n{lines}"), output)?;
    Ok(())
}
