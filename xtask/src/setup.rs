//! `cargo xtask setup`: finds or installs the dependencies for building and trying the overlay.

mod install;
mod kernel;
mod parts;
mod toolchain;

use anyhow::{Result, bail, ensure};
use overlay_tests::StoreKind;

pub use toolchain::{DEBIAN_CARGO, DEBIAN_RUSTC, Toolchain};

use crate::{containerd, kubernetes, shell};
use parts::Part;

/// Find or install the eBPF toolchain and the real parts of the lab.
///
/// Quick when nothing is missing. As root on Debian (and its kin) what is missing is installed by
/// apt-get and `cargo install`; elsewhere the exact commands are printed and the exit code is not
/// zero.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only look and report; install nothing. Exits non-zero when something is missing.
    #[arg(long)]
    check: bool,
    /// Build the programs of a Kubernetes cluster, too, for `lab up --kubernetes` and the tests.
    #[arg(long, conflicts_with = "check")]
    kubernetes: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let missing: Vec<&Part> = parts::ALL.iter().filter(|part| !part.is_there()).collect();
    let toolchain = toolchain::find();
    for part in parts::ALL {
        let state = if part.is_there() { "found" } else { "missing" };
        println!("{:<20} {state:<8} {}", part.package, part.purpose);
    }
    match &toolchain {
        Ok(found) => println!("{:<20} {:<8} {found}", "eBPF toolchain", "found"),
        Err(lack) => println!("{:<20} {:<8} {lack}", "eBPF toolchain", "missing"),
    }
    if !missing.is_empty() || toolchain.is_err() {
        if arguments.check {
            bail!("parts are missing: run `cargo xtask setup` as root");
        }
        install::packages(&missing)?;
        let found = toolchain.or_else(|_| install::toolchain())?;
        println!("everything is there; eBPF programs are built with {found}");
    }
    if !arguments.check {
        containerd::ensure()?;
    }
    if arguments.kubernetes {
        kubernetes::programs()?;
    }
    Ok(())
}

/// The eBPF toolchain, installed if needed.
pub fn ensure_toolchain() -> Result<Toolchain> {
    toolchain::find().or_else(|lack| {
        shell::progress(&format!("setup: {lack}"));
        install::toolchain()
    })
}

/// The parts of rustup's toolchain that check and lint.
pub fn ensure_components() -> Result<()> {
    for (component, command) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = shell::cargo(&[command, "--version"]).output();
        ensure!(
            there.is_ok_and(|output| output.status.success()),
            "{component} is missing: `rustup component add {component}`"
        );
    }
    Ok(())
}

/// Loads the modules that tests need, and reports the features that this machine's kernel lacks.
pub fn ready_kernel() {
    kernel::load_modules();
    for lack in kernel::lacks() {
        shell::progress(&lack);
    }
}

/// Ensures the dependencies of a plain `cargo build` of the agent: the protobuf compiler and its
/// files.
pub fn ensure_protoc() -> Result<()> {
    ensure(|part| part.needed == parts::Needed::Build)
}

/// Ensures the dependencies of the lab.
pub fn ensure_lab(store: StoreKind) -> Result<()> {
    ensure(|part| match part.needed {
        parts::Needed::Lab => true,
        parts::Needed::Etcd => store == StoreKind::Etcd,
        parts::Needed::Build
        | parts::Needed::Measuring
        | parts::Needed::Tests
        | parts::Needed::Cluster
        | parts::Needed::Conformance
        | parts::Needed::Machines => false,
    })
}

/// Ensures the dependencies of a Kubernetes cluster besides the lab's, and the programs in its
/// images.
pub fn ensure_cluster() -> Result<()> {
    ensure(|part| part.needed == parts::Needed::Cluster)
}

/// Ensures all dependencies of a lab with Kubernetes; builds its programs at the first call.
pub fn ensure_kubernetes() -> Result<()> {
    ensure_lab(StoreKind::Etcd)?;
    ensure_cluster()?;
    kubernetes::ensure_programs()
}

/// Ensures all dependencies of Kubernetes' own tests; builds them and a cluster's programs at the
/// first call.
pub fn ensure_conformance() -> Result<()> {
    ensure_lab(StoreKind::Etcd)?;
    ensure_cluster()?;
    ensure(|part| part.needed == parts::Needed::Conformance)?;
    kubernetes::ensure_suite()
}

/// Ensures the dependencies of measurements besides the lab's.
pub fn ensure_measuring() -> Result<()> {
    ensure(|part| part.needed == parts::Needed::Measuring)
}

/// Ensures the dependencies of test machines with other kernels, and the programs inside of them.
pub fn ensure_machines() -> Result<()> {
    ensure(|part| {
        !matches!(
            part.needed,
            parts::Needed::Etcd | parts::Needed::Conformance
        )
    })
}

/// Ensures the dependencies of the end-to-end tests, the lab's included.
pub fn ensure_tests() -> Result<()> {
    ensure(|part| part.needed != parts::Needed::Conformance)
}

fn ensure(wanted: impl Fn(&Part) -> bool) -> Result<()> {
    let missing: Vec<&Part> = parts::ALL
        .iter()
        .filter(|part| wanted(part) && !part.is_there())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|part| part.package).collect();
    shell::progress(&format!("setup: installing {}", names.join(", ")));
    install::packages(&missing)
}
