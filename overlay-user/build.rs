//! Embeds the eBPF object where `cargo xtask build` has put it.
//!
//! Without it the crate still builds, for machines without an eBPF toolchain: the agent then serves
//! the kernel path only and says so.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=OVERLAY_BPF_OBJECT");
    let object = match env::var_os("OVERLAY_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
                .join("../target/bpf/overlay.bpf.o")
        }
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_default();
    let copy =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("overlay.bpf.o");
    fs::write(&copy, bytes).expect("writing to OUT_DIR");
}
