//! `cargo xtask fresh`: whether the README's commands work where nothing has been installed yet.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use overlay_tests::{command, interrupt};

use crate::vmtest::apt::Mirrors;
use crate::{shell, workspace};

/// Where roots are kept, in the repository.
const CACHE: &str = "target/fresh";
/// Debian 12, which the README names.
const RELEASE: &str = "bookworm";
/// What the README asks for before its first command, besides Rust itself.
const ASKED_FOR: &str = "ca-certificates,gcc,libc6-dev";
/// The names under which rustup installs itself.
const RUSTUP_NAMES: &[&str] = &[
    "cargo",
    "rustc",
    "rustdoc",
    "rustfmt",
    "cargo-fmt",
    "cargo-clippy",
    "clippy-driver",
];
/// What leads to registries, by the first letters of environment variables.
const TO_REGISTRIES: &[&str] = &[
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "CURL_CA_BUNDLE",
    "PIP_",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_",
];
/// Where the machine says how its registries are reached, files and directories.
const CONFIGURATION: &[&str] = &[
    "/etc/apt",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt",
];

/// Run the README's commands in a bare Debian 12 with a clean checkout.
///
/// Makes a root directory with debootstrap (kept in target/fresh for the next time), copies it, puts a clone of
/// HEAD into the copy, and runs `cargo xtask demo` and `cargo xtask test` there, in namespaces of its own. What
/// is not committed is not tested. Rust is this machine's, by rustup; how registries are reached is taken over
/// from this machine: apt's and cargo's configuration, certificates, proxies. The kernel is this machine's, too.
/// The root is removed at the end, whatever came of it. Needs root, Debian 12, git, debootstrap and 15 GB; takes
/// a quarter of an hour for the demo and most of an hour for the tests, because everything is fetched and built.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fresh                             both commands
  cargo xtask fresh --only demo
  cargo xtask fresh --only test -- reachability only tests whose name contains that word
  cargo xtask fresh --keep                      leave the root in target/fresh for a look around")]
pub struct Arguments {
    /// Only one of the two commands.
    #[arg(long, value_enum)]
    only: Option<Readme>,
    /// Leave the root where it is.
    #[arg(long)]
    keep: bool,
    /// Passed on to `cargo xtask test`.
    #[arg(last = true)]
    test_arguments: Vec<OsString>,
}

/// A command of the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Readme {
    Demo,
    Test,
}

impl Readme {
    const fn word(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Test => "test",
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "making a root needs root: run `cargo xtask fresh` with sudo"
    );
    let cache = workspace::root().join(CACHE);
    let root = Root {
        path: cache.join(format!("root-{}", std::process::id())),
        keep: arguments.keep,
    };
    let base = base(&cache)?;
    interrupt::check()?;
    furnish(&base, &root.path)?;
    let wanted = arguments
        .only
        .map_or_else(|| vec![Readme::Demo, Readme::Test], |only| vec![only]);
    let mut outcomes = Vec::new();
    for readme in wanted {
        let more: &[OsString] = match readme {
            Readme::Demo => &[],
            Readme::Test => &arguments.test_arguments,
        };
        shell::progress(&format!(
            "cargo xtask {} in a bare Debian 12",
            readme.word()
        ));
        let start = Instant::now();
        let held = enter(&root.path, readme.word(), more)?;
        interrupt::check()?;
        outcomes.push((readme, start.elapsed(), held));
    }
    println!("\n{}", table(&outcomes));
    Ok(if outcomes.iter().all(|(_, _, held)| *held) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn table(outcomes: &[(Readme, Duration, bool)]) -> String {
    let line = |(readme, took, held): &(Readme, Duration, bool)| {
        let state = if *held { "ok" } else { "FAILED" };
        format!(
            "cargo xtask {} {:>7.1} s  {state}",
            readme.word(),
            took.as_secs_f32()
        )
    };
    outcomes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The root of one run. Nothing is mounted there as this process sees it.
struct Root {
    path: PathBuf,
    keep: bool,
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

/// A bare Debian, from an earlier time or made now.
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
    // In a mount namespace of its own: what debootstrap mounts and leaves goes with it.
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

/// Copies the base and adds what belongs to a run: configuration, rustup's programs, a clean checkout.
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

/// Copies a file or a directory, links followed, over what is there.
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

/// Runs `cargo xtask WORD` in the root; whether it succeeded.
fn enter(root: &Path, word: &str, more: &[OsString]) -> Result<bool> {
    let rustup = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let rustup = rustup
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")))
        .context("neither RUSTUP_HOME nor HOME is set")?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
        ])
        .args(["sh", "-c", include_str!("fresh/enter.sh"), "enter.sh"])
        .arg(root)
        .args(["cargo", "xtask", word])
        .args(more)
        .env_clear()
        .envs(environment(std::env::vars_os()))
        .env("RUSTUP", rustup);
    let status = command.status().context("start `unshare`")?;
    Ok(status.success())
}

/// The environment of a root that has just logged in, and what leads to registries.
fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let passes = |name: &str| {
        name == "TERM"
            || name.to_ascii_lowercase().ends_with("_proxy")
            || TO_REGISTRIES.iter().any(|prefix| name.starts_with(prefix))
    };
    let login = [
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        (
            "PATH",
            "/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
    ];
    inherited
        .filter(|(name, _)| name.to_str().is_some_and(passes))
        .chain(login.map(|(name, value)| (name.into(), value.into())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_to_registries_is_passed_on() {
        let inherited = [
            ("https_proxy", "a"),
            ("CARGO_NET_RETRY", "3"),
            ("CARGO_TARGET_DIR", "elsewhere"),
            ("RUSTFLAGS", "-C debuginfo=0"),
            ("OVERLAY_BIN_DIR", "elsewhere"),
            ("PATH", "elsewhere"),
        ]
        .map(|(name, value)| (name.into(), value.into()));
        let passed = environment(inherited.into_iter());
        let names: Vec<_> = passed.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["CARGO_NET_RETRY", "HOME", "LANG", "PATH", "https_proxy"]
        );
        assert!(
            passed[&OsString::from("PATH")]
                .to_str()
                .unwrap()
                .contains("/usr/sbin")
        );
    }

    #[test]
    fn paths_lie_in_the_root() {
        let path = below(Path::new("/r"), Path::new("/etc/apt"));
        assert_eq!(path, Path::new("/r/etc/apt"));
    }
}
