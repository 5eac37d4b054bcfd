//! The binaries as they are deployed: stripped, with their debug information in files beside them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{shell, workspace};

/// What a node runs.
const BINARIES: [&str; 3] = ["overlayd", "overlayctl", "overlay-cni"];

/// Puts the binaries of the release build into target/dist. Each links to its `.debug` file by name
/// and checksum (`.gnu_debuglink`), so that debuggers and backtraces find it in the same directory
/// or below /usr/lib/debug.
///
/// # Errors
/// When `objcopy` is missing or fails. It comes with the linker (package binutils).
pub fn strip() -> Result<()> {
    let directory = workspace::target().join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    for name in BINARIES {
        let built = workspace::target().join("release").join(name);
        let debug = format!("{name}.debug");
        // In the directory, because the link has the name as it is given here.
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
