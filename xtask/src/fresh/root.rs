//! A bare Debian in a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use overlay_tests::{command, interrupt};

use crate::apt::Mirrors;
use crate::{shell, workspace};

/// The directory of roots, in the repository.
const CACHE: &str = "target/fresh";
/// Debian 12, which the README names.
const RELEASE: &str = "bookworm";
/// The packages that the README requires before its first command, besides Rust itself.
const ASKED_FOR: &str = "ca-certificates,gcc,libc6-dev";
/// The names of rustup's programs.
const RUSTUP_NAMES: &[&str] = &[
    "cargo",
    "rustc",
    "rustdoc",
    "rustfmt",
    "cargo-fmt",
    "cargo-clippy",
    "clippy-driver",
];
/// The machine's configuration for its registries, files and directories.
const CONFIGURATION: &[&str] = &[
    "/etc/apt",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt",
];

/// The root of one run. In this process's namespace nothing is mounted there.
pub struct Root {
    path: PathBuf,
    keep: bool,
}

impl Root {
    /// Makes the root, with a clean checkout in `/root/overlay`.
    pub fn make(keep: bool) -> Result<Self> {
        let cache = workspace::root().join(CACHE);
        let base = base(&cache)?;
        interrupt::check()?;
        let root = Self {
            path: cache.join(format!("root-{}", std::process::id())),
            keep,
        };
        furnish(&base, &root.path)?;
        Ok(root)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("the root is left in {}", self.path.display());
            return;
        }
        if self.path.exists()
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("error: remove {}: {error}", self.path.display());
        }
    }
}

/// A bare Debian, from an earlier run or made now.
fn base(cache: &Path) -> Result<PathBuf> {
    let base = cache.join(RELEASE);
    if base.is_dir() {
        return Ok(base);
    }
    ensure!(
        shell::find("debootstrap").is_some(),
        "debootstrap is missing: `apt-get install debootstrap`"
    );
    let about = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    ensure!(
        about
            .lines()
            .any(|line| line == format!("VERSION_CODENAME={RELEASE}")),
        "apt's configuration is taken over from this machine, which is no Debian 12"
    );
    shell::progress("debootstrap (takes a minute or two)");
    let new = cache.join(format!("{RELEASE}.new"));
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("remove {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("create {}", new.display()))?;
    // debootstrap runs in a separate mount namespace, so that mounts which it leaves disappear.
    let mut debootstrap = Command::new("unshare");
    debootstrap
        .args(["--mount", "debootstrap", "--variant=minbase"])
        .arg(format!("--include={ASKED_FOR}"))
        .arg(RELEASE)
        .arg(&new)
        .arg(Mirrors::of_this_machine()?.main)
        .stdout(std::io::stderr());
    shell::run(&mut debootstrap)?;
    fs::rename(&new, &base).with_context(|| format!("rename {}", new.display()))?;
    Ok(base)
}

/// Copies the base and adds the parts for a run: configuration, rustup's programs, a clean
/// checkout.
fn furnish(base: &Path, root: &Path) -> Result<()> {
    shell::run(Command::new("cp").arg("-a").arg(base).arg(root))?;
    for source in CONFIGURATION.iter().map(Path::new) {
        let target = below(root, source);
        if source.exists() {
            take_over(source, &target)?;
        }
    }
    let home = root.join("root");
    let bin = home.join(".cargo/bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    let cargo_bin = shell::cargo_bin().context("neither CARGO_HOME nor HOME is set")?;
    let rustup = cargo_bin.join("rustup");
    fs::copy(&rustup, bin.join("rustup"))
        .with_context(|| format!("copy {}: Rust has to come from rustup", rustup.display()))?;
    for name in RUSTUP_NAMES {
        symlink("rustup", bin.join(name)).with_context(|| format!("link {name}"))?;
    }
    for name in ["config.toml", "config"] {
        let source = cargo_bin.with_file_name(name);
        if source.exists() {
            take_over(&source, &home.join(".cargo").join(name))?;
        }
    }
    let status = command::run(
        "git",
        [
            "-C",
            &workspace::root().display().to_string(),
            "status",
            "--porcelain",
        ],
    )?;
    if !status.is_empty() {
        shell::progress("what is not committed is left out");
    }
    let mut clone = Command::new("git");
    clone.args(["clone", "--quiet", "--no-hardlinks"]);
    shell::run(clone.arg(workspace::root()).arg(home.join("overlay")))
}

/// A path of the machine, in the root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Copies a file or a directory over an existing one, following links.
fn take_over(source: &Path, target: &Path) -> Result<()> {
    if target.is_dir() {
        fs::remove_dir_all(target).with_context(|| format!("remove {}", target.display()))?;
    }
    shell::run(
        Command::new("cp")
            .args(["-rL", "--preserve=mode"])
            .arg(source)
            .arg(target),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_in_the_root() {
        let path = below(Path::new("/r"), Path::new("/etc/apt"));
        assert_eq!(path, Path::new("/r/etc/apt"));
    }
}
