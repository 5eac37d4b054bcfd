//! `cargo xtask fresh`: whether the README's commands work on a machine without installed
//! dependencies.

mod enter;
mod root;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use overlay_tests::interrupt;

use crate::shell;
use root::Root;

/// Run the README's commands in a bare Debian 12 with a clean checkout.
///
/// Makes a root directory with debootstrap (kept in target/fresh for the next time), copies it,
/// puts a clone of HEAD into the copy, and runs `cargo xtask demo` and `cargo xtask test` there, in
/// namespaces of its own. What is not committed is not tested. Rust is this machine's, by rustup;
/// how registries are reached is taken over from this machine: apt's and cargo's configuration,
/// certificates, proxies. The kernel is this machine's, too. The root is removed at the end,
/// whatever came of it. Needs root, Debian 12, git, debootstrap and 15 GB; takes a quarter of an
/// hour for the demo and most of an hour for the tests, because everything is fetched and built.
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
    let root = Root::make(arguments.keep)?;
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
        let held = enter::run(root.path(), readme.word(), more)?;
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
