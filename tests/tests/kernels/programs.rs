//! Every program is loaded by the agent's own code, and has not grown too much.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Program, Xdp, loaded_programs};
use aya::{Btf, Ebpf, EbpfLoader};
use nix::mount::{MsFlags, mount, umount};
use overlay_common::Hook;
use overlay_tests::machine::{RECORD_ENV, SIZE};
use overlay_user::datapath::object;
use overlay_user::datapath::pins::Pins;
use overlay_user::datapath::programs::{Mechanism, Programs, name, tc_hooks};

use crate::kernel::{Version, expected_mechanism};

/// Size of each program by kernel. `cargo xtask vmtest --kernel all --record` writes the file.
const SIZES: &str = include_str!("sizes.json");
/// Factor by which a program may grow before the test fails.
const GROWTH: f64 = 1.2;

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn every_program_loads_and_keeps_its_size() -> Result<()> {
    let directory = tempfile::tempdir()?;
    mount(
        Some("bpf"),
        directory.path(),
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let pins = Pins::new(directory.path().join("overlay"));
    let loaded = Programs::load(object::bytes()?, &pins, Mechanism::Clsact);
    let sizes = loaded.map(|(mut programs, _)| sizes(&mut programs));
    umount(directory.path())?;
    match (sizes, expected_mechanism()) {
        (Ok(sizes), _) => compare(&sizes?),
        // Without the fast path the test only needs a refusal with a cause.
        (Err(error), None) => {
            println!("not loaded, as expected: {error}");
            Ok(())
        }
        (Err(error), Some(_)) => Err(error.into()),
    }
}

/// Number of instructions that the verifier walked through, or, where the verifier does not count
/// them (before Linux 5.16), size in bytes of the translated program.
fn sizes(programs: &mut Programs) -> Result<BTreeMap<String, u32>> {
    let mut ids = BTreeMap::new();
    for hook in tc_hooks() {
        ids.insert(programs.id(hook)?, name(hook).to_owned());
    }
    // The agent loads this program only for a NIC with early refusal.
    let early = name(Hook::NetXdp);
    let mut ebpf = EbpfLoader::new().load(object::bytes()?)?;
    let program: &mut Xdp = ebpf
        .program_mut(early)
        .context("no XDP program")?
        .try_into()?;
    program.load()?;
    ids.insert(program.info()?.id(), early.to_owned());
    let mut sockets = EbpfLoader::new().load(object::services()?)?;
    load_sockets(&mut sockets)?;
    for (name, program) in sockets.programs() {
        ids.insert(program.info()?.id(), name.to_owned());
    }
    let mut sizes = BTreeMap::new();
    for info in loaded_programs() {
        let info = info?;
        if let Some(name) = ids.get(&info.id()) {
            let size = info.verified_instruction_count().or(info.size_translated());
            sizes.insert(name.clone(), size.context("a program without a size")?);
        }
    }
    ensure!(
        sizes.len() == ids.len(),
        "loaded programs are not listed: {sizes:?}"
    );
    Ok(sizes)
}

/// Loads the programs at the socket.
fn load_sockets(ebpf: &mut Ebpf) -> Result<()> {
    let btf = Btf::from_sys_fs()?;
    for (_, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load()?,
            Program::CgroupSkb(program) => program.load()?,
            Program::Iter(program) => program.load("bpf_sk_storage_map", &btf)?,
            other => anyhow::bail!("a program of another type: {:?}", other.prog_type()),
        }
    }
    Ok(())
}

fn compare(sizes: &BTreeMap<String, u32>) -> Result<()> {
    let table: BTreeMap<String, BTreeMap<String, u32>> = serde_json::from_str(SIZES)?;
    let version = Version::running();
    let before = table.get(&version.to_string());
    for (name, size) in sizes {
        println!("{SIZE}{name}: {size}");
        if std::env::var_os(RECORD_ENV).is_some() {
            continue;
        }
        let before = before.and_then(|before| before.get(name));
        let before = before.with_context(|| {
            format!(
                "{name} on Linux {version} is not in sizes.json: `cargo xtask vmtest --kernel \
                all --record`"
            )
        })?;
        ensure!(
            f64::from(*size) <= f64::from(*before) * GROWTH,
            "{name} has grown from {before} to {size} instructions on Linux {version}; if that has \
            to be, `cargo xtask vmtest --kernel all --record`"
        );
    }
    Ok(())
}
