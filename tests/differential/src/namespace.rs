//! A network namespace of its own for the programs, with the interfaces that packets arrive on.

use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use overlay_common::V4;
use overlay_user::datapath::family::UserFamily;
use overlay_user::datapath::pins::Pins;

use crate::kernel::Kernel;
use overlay_cases::world::{NIC, NIC_MAC, VETH_A, VETH_B, VETH_UNKNOWN};

/// The interfaces that a packet can arrive on.
pub const INTERFACES: [u32; 4] = [NIC, VETH_A, VETH_B, VETH_UNKNOWN];

/// Runs `work` with the programs, on a thread whose namespaces go with it.
///
/// # Errors
/// Without root, without the programs (`cargo xtask build`), and as `work` does.
///
/// # Panics
/// As `work` does.
pub fn in_kernel<T: Send + 'static>(
    work: impl FnOnce(&mut Kernel) -> Result<T> + Send + 'static,
) -> Result<T> {
    in_kernel_for::<V4, T>(work)
}

/// As [`in_kernel`], with maps for pods of a family.
///
/// # Errors
/// As [`in_kernel`].
///
/// # Panics
/// As `work` does.
pub fn in_kernel_for<F: UserFamily, T: Send + 'static>(
    work: impl FnOnce(&mut Kernel<F>) -> Result<T> + Send + 'static,
) -> Result<T> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs into the kernel needs root"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("unshare namespaces")?;
        let none = None::<&str>;
        // Mounts of ours shall not reach other namespaces.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("make mounts private")?;
        for ifindex in INTERFACES {
            add_interface(ifindex)?;
        }
        let dir = tempfile::tempdir().context("make a directory")?;
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none)
            .context("mount a BPF file system")?;
        let done =
            Kernel::load(&Pins::new(dir.path().join("overlay"))).and_then(|mut k| work(&mut k));
        umount(dir.path()).context("unmount the BPF file system")?;
        done
    };
    thread::spawn(body)
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A device to receive on, of a type that every kernel has. The kernel tells by its address what is
/// sent to this host.
fn add_interface(ifindex: u32) -> Result<()> {
    let mac = NIC_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let line = format!("link add if{ifindex} index {ifindex} address {mac} type bridge");
    let status = Command::new("ip").args(line.split(' ')).status();
    ensure!(status.context("start ip")?.success(), "`ip {line}` failed");
    Ok(())
}
