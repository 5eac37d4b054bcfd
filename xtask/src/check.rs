//! `cargo xtask check`: the checks that need neither root nor the eBPF toolchain.

use std::process::ExitCode;

use anyhow::Result;

use crate::parts::{self, Run};
use crate::{setup, shell};

/// The packages that build without the eBPF toolchain and whose tests need no root.
const PACKAGES: &[&str] = &[
    "--package",
    "overlay-common",
    "--package",
    "overlay-user",
    "--package",
    "xtask",
];

/// Check format, lints, unit tests and the decision's tests.
///
/// Needs neither root nor the eBPF toolchain, makes no namespaces, and takes about two minutes once
/// the dependencies are compiled. It is the check for every change while it is being made; `cargo
/// xtask test` is the one before it is handed in. Runs everything even if an early part fails.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask check
  cargo test -p overlay-user --lib lease::   the unit tests of one module
  cargo test -p overlay-common --test decide every_case   the cases of the decision")]
pub struct Arguments {}

pub fn run() -> Result<ExitCode> {
    let mut run = Run::default();
    run.part("setup", |_| {
        setup::ensure_components()?;
        setup::ensure_protoc()
    })?;
    if run.is_broken() {
        // The other parts would fail for the same missing package.
        return Ok(run.close());
    }
    run.part("format", |_| {
        shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
    })?;
    run.part("clippy", |_| {
        let mut clippy = shell::cargo(&["clippy"]);
        clippy
            .args(PACKAGES)
            .args(["--all-targets", "--", "-D", "warnings"]);
        shell::run(&mut clippy)
    })?;
    let mut units = parts::cargo_test(PACKAGES);
    run.cargo_test("unit tests", units.args(["--lib", "--bins"]))?;
    let mut decision = parts::cargo_test(&["--package", "overlay-common", "--test", "*"]);
    run.cargo_test("decision", &mut decision)?;
    Ok(run.close())
}
