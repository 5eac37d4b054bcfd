//! Installs missing dependencies, or prints the commands.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::parts::Part;
use super::toolchain::{self, LINKER, Toolchain};
use crate::shell;

/// The linker's release; a later one may need a later LLVM than the compiler's.
const LINKER_VERSION: &str = "0.13.0";
/// Packages with Debian's compiler for the BPF target.
const COMPILER: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Only the setup that holds this directory's lock may call apt-get. apt's own lock on its lists
/// cannot be used, because `apt-get update` fails where it would have to wait.
const PACKAGES: &str = "/var/lib/dpkg";
/// How long apt-get waits while another program installs packages, for instance Debian's own
/// upgrades.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=600";

/// Installs packages by apt-get.
pub fn packages(parts: &[&Part]) -> Result<()> {
    let names: Vec<&str> = parts.iter().map(|part| part.package).collect();
    apt_get(&names)
}

/// Installs Debian's compiler and the linker that fits it.
pub fn toolchain() -> Result<Toolchain> {
    match toolchain::find() {
        Ok(found) => return Ok(found),
        Err(toolchain::Lack::Compiler) => apt_get(COMPILER)?,
        Err(toolchain::Lack::Linker) => {}
    }
    if shell::find(LINKER).is_none() {
        linker()?;
    }
    toolchain::find().map_err(|lack| anyhow!("after the installation there is still {lack}"))
}

/// Builds the linker against the LLVM of its compiler.
fn linker() -> Result<()> {
    if toolchain::debian().is_none() {
        // rustup's compiler contains an LLVM, which the linker's default features find.
        bail!("{LINKER} is missing: `cargo install {LINKER} --version {LINKER_VERSION}`");
    }
    let llvm = toolchain::debian_llvm().context("/usr/bin/rustc does not tell its LLVM version")?;
    apt_get(&[&format!("llvm-{llvm}-dev"), &format!("libpolly-{llvm}-dev")])?;
    shell::progress(&format!(
        "{LINKER} {LINKER_VERSION} for LLVM {llvm} (takes a minute or two)"
    ));
    let mut command = shell::cargo(&["install", LINKER, "--version", LINKER_VERSION, "--locked"]);
    command.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
    ]);
    command.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    shell::run(&mut command)
}

/// Installs packages, or prints the command and fails where this program may not install.
fn apt_get(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let install = format!(
        "apt-get install --no-install-recommends {}",
        names.join(" ")
    );
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this machine has no apt-get; install with its own means what Debian does by\n  \
            {install}"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("parts are missing; run this as root:\n  {install}\nor `cargo xtask setup` as root");
    }
    let _turn = turn()?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        // Progress goes to stderr; stdout is for results.
        command
            .args(["-o", LOCK_TIMEOUT])
            .args(arguments)
            .stdout(std::io::stderr())
            .env("DEBIAN_FRONTEND", "noninteractive");
        shell::run(&mut command)
    };
    let arguments: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(names.iter().copied())
        .collect();
    // Usually the package lists are recent enough; otherwise they are fetched for a second attempt.
    run(&arguments)
        .or_else(|_| run(&["update"]).and_then(|()| run(&arguments)))
        .with_context(|| format!("could not install {}", names.join(", ")))
}

/// Waits until no other checkout's setup installs packages.
fn turn() -> Result<File> {
    let lock = File::open(PACKAGES).with_context(|| format!("open {PACKAGES}"))?;
    if lock.try_lock().is_err() {
        shell::progress("waiting for another setup on this machine to install its packages");
        lock.lock().with_context(|| format!("lock {PACKAGES}"))?;
    }
    Ok(lock)
}
