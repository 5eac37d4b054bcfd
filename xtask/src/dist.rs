//! The binaries for deployment: stripped, with their debug information in files beside them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{shell, workspace};

/// The binaries on a node.
const BINARIES: [&str; 3] = ["overlayd", "overlayctl", "overlay-cni"];

/// Writes the binaries of the release build to target/dist. Each links to its `.debug` file by name
/// and checksum (`.gnu_debuglink`), so that debuggers and backtraces find this file in the same
/// directory or below /usr/lib/debug.
///
/// # Errors
/// When `objcopy` is missing or fails. It comes with the linker (package binutils).
pub fn strip() -> Result<()> {
    let directory = workspace::target().join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    for name in BINARIES {
        let built = workspace::target().join("release").join(name);
        let debug = format!("{name}.debug");
        // objcopy runs in the directory, because the link contains the name exactly as given here.
        objcopy(&directory, &["--only-keep-debug"], &built, &debug)?;
        let link = format!("--add-gnu-debuglink={debug}");
        objcopy(&directory, &["--strip-unneeded", &link], &built, name)?;
    }
    shell::progress(&format!(
        "stripped, with debug information: {}",
        directory.display()
    ));
    Ok(())
}

fn objcopy(directory: &Path, flags: &[&str], from: &Path, to: &str) -> Result<()> {
    let mut command = Command::new("objcopy");
    command.current_dir(directory).args(flags).arg(from).arg(to);
    shell::run(&mut command)
}
