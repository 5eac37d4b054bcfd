//! `cargo xtask`: all commands for work on this repository.

mod adds;
mod apt;
mod bench;
mod build;
mod check;
mod conformance;
mod containerd;
mod count;
mod demo;
mod deny;
mod dist;
mod environment;
mod faults;
mod flood;
mod fresh;
mod fuzz;
mod image;
mod isolation;
mod kubernetes;
mod lab;
mod mutants;
#[cfg(test)]
mod pages;
mod parts;
mod scale;
mod setup;
mod shell;
mod soak;
mod test;
mod test_names;
mod vmtest;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use overlay_tests::interrupt;

/// Everything one does with this repository.
///
/// Begin with `cargo xtask demo`: it builds the overlay and shows it at work between three nodes
/// that are namespaces of this machine. The machine's own network is never touched.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    Build(build::Arguments),
    Check(check::Arguments),
    Demo(demo::Arguments),
    Lab(lab::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Faults(faults::Arguments),
    Fuzz(fuzz::Arguments),
    Mutants(mutants::Arguments),
    Soak(soak::Arguments),
    Flood(flood::Arguments),
    Scale(scale::Arguments),
    Adds(adds::Arguments),
    Conformance(conformance::Arguments),
    Fresh(fresh::Arguments),
    Image(image::Arguments),
    Vmtest(vmtest::Arguments),
}

fn main() -> ExitCode {
    environment::settle();
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(_) if interrupt::requested() => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    interrupt::install()?;
    match command {
        Command::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Build(arguments) => build::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(check::Arguments {}) => check::run(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Vmtest(arguments) => vmtest::run(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Flood(arguments) => flood::run(&arguments),
        Command::Scale(arguments) => scale::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Adds(arguments) => adds::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Fresh(arguments) => fresh::run(&arguments),
        Command::Image(arguments) => image::run(&arguments).map(|()| ExitCode::SUCCESS),
    }
}
