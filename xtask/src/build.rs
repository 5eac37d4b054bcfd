//! `cargo xtask build`: the eBPF programs, then the binaries that carry them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Toolchain};
use crate::{dist, shell, workspace};

mod dwarf;

/// Build the eBPF programs and the binaries that carry them.
///
/// The programs end up in target/bpf, overlay.bpf.o (packets) and services.bpf.o (sockets), and
/// inside `overlayd`. They have BTF and no DWARF; with both they are in overlay.debug.o and
/// services.debug.o beside them. A plain `cargo build`
/// works without any eBPF toolchain, and takes those files when they are there. A release is in
/// target/release with its debug information, and in target/dist as it is deployed: stripped, with
/// the debug information in files beside the binaries.
#[derive(clap::Args)]
pub struct Arguments {
    /// Build overlayd, overlay-cni and overlayctl with optimisation.
    #[arg(long)]
    release: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    programs(Warnings::Shown)?;
    binaries(arguments.release)?;
    if arguments.release {
        dist::strip()?;
    }
    Ok(())
}

/// The treatment of the compiler's warnings about the eBPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warnings {
    /// Warnings are printed.
    Shown,
    /// Warnings are printed and fail the build.
    Denied,
}

/// Builds the eBPF programs into one object file, and those for IPv6, which only tests load, into
/// another.
pub fn programs(warnings: Warnings) -> Result<()> {
    for (features, name) in [
        (&["ipv6"][..], "overlay-ipv6.bpf.o"),
        (&[], "overlay.bpf.o"),
    ] {
        let built = programs_of(workspace::root(), features, warnings)?;
        keep(&built, &workspace::bpf_object().with_file_name(name))?;
        // The same build makes the programs for sockets, which are equal for both families.
        let services = built.with_file_name("overlay-services");
        keep(
            &services,
            &workspace::bpf_object().with_file_name("services.bpf.o"),
        )?;
    }
    Ok(())
}

/// Builds the eBPF programs with a feature that only measuring uses; returns their object file.
pub fn programs_with(feature: &str) -> Result<PathBuf> {
    let built = programs_of(workspace::root(), &[feature], Warnings::Shown)?;
    let object = workspace::bpf_object().with_file_name(format!("overlay-{feature}.bpf.o"));
    keep(&built, &object)?;
    Ok(object)
}

/// Lints the eBPF programs, compiled for this machine, because clippy comes with rustup's compiler,
/// which has no `core` for the BPF target.
pub fn lint_programs() -> Result<()> {
    let mut command = shell::cargo(&["clippy", "--package", "overlay-ebpf"]);
    // As in `compiler`: only this crate may use features that a stable compiler otherwise refuses.
    command.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    // Nothing is linked, so the panic strategy of this machine's `core` does not matter.
    shell::run(command.args(["--", "-D", "warnings", "-C", "panic=abort"]))
}

/// Writes the compiler's output to its places: without DWARF for the embedding, and unchanged
/// beside that for debuggers.
fn keep(built: &Path, object: &Path) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    let stripped = dwarf::strip(&new).with_context(|| format!("strip {}", built.display()))?;
    write_if_new(object, &stripped)?;
    write_if_new(&debug(object), &new)
}

/// `overlay.debug.o` for `overlay.bpf.o`.
fn debug(object: &Path) -> PathBuf {
    object.with_extension("").with_extension("debug.o")
}

/// Leaves an unchanged file as it is, so that the file keeps its time, and cargo does not build the
/// agent again.
fn write_if_new(file: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(file).ok().as_deref() == Some(contents) {
        return Ok(());
    }
    // A new file replaces the old one, which another checkout may share by a hard link.
    let new = file.with_extension("new");
    fs::write(&new, contents)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("write {}", file.display()))
}

/// Builds the eBPF programs of a checkout of the repository and returns the compiler's object file.
pub fn programs_of(root: &Path, features: &[&str], warnings: Warnings) -> Result<PathBuf> {
    let toolchain = setup::ensure_toolchain()?;
    shell::progress(&format!("eBPF programs ({toolchain})"));
    let target = root.join(workspace::BPF_TARGET);
    let mut command = compiler(&toolchain);
    command.env(
        "RUSTFLAGS",
        "-C linker=bpf-linker -C debuginfo=2 -C link-arg=--btf",
    );
    // The release profile optimises for size; these options optimise for speed.
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    command.current_dir(root);
    command.args(["build", "--release", "--package", "overlay-ebpf"]);
    command
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target);
    command.arg("--features").arg(features.join(","));
    let warned = shell::run_counting_warnings(&mut command)?;
    if warned > 0 && warnings == Warnings::Denied {
        bail!("the eBPF programs compile with {warned} warnings");
    }
    Ok(target.join("bpfel-unknown-none/release/overlay-ebpf"))
}

/// Builds overlayd, overlay-cni and overlayctl.
pub fn binaries(release: bool) -> Result<()> {
    setup::ensure_protoc()?;
    shell::progress("overlayd, overlay-cni, overlayctl");
    let mut command = shell::cargo(&["build", "--package", "overlay-user", "--bins"]);
    if release {
        command.arg("--release");
    }
    shell::run(&mut command)
}

/// The cargo of the eBPF toolchain, without the environment variables of the cargo that runs us.
fn compiler(toolchain: &Toolchain) -> Command {
    let mut command = match toolchain {
        Toolchain::Debian { .. } => {
            let mut command = Command::new(setup::DEBIAN_CARGO);
            // The value is the crate's name: only this crate may use features that a stable
            // compiler otherwise refuses.
            command
                .env("RUSTC", setup::DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "aya_ebpf");
            command
        }
        Toolchain::Rustup { .. } => {
            let mut command = Command::new("cargo");
            command.args(["+nightly", "-Z", "build-std=core"]);
            command.env_remove("RUSTC");
            command
        }
    };
    for inherited in [
        "CARGO",
        "RUSTUP_TOOLCHAIN",
        "CARGO_ENCODED_RUSTFLAGS",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(inherited);
    }
    command
}
