//! Embeds the eBPF objects where `cargo xtask build` has put them.
//!
//! Without them the crate still builds, for machines without an eBPF toolchain: the agent then
//! serves the kernel path only and says so.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=OVERLAY_BPF_OBJECT");
    let built =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
            .join("../target/bpf");
    let packets = env::var_os("OVERLAY_BPF_OBJECT")
        .map_or_else(|| built.join("overlay.bpf.o"), PathBuf::from);
    embed(&packets, "overlay.bpf.o");
    embed(&built.join("services.bpf.o"), "services.bpf.o");
}

fn embed(object: &Path, name: &str) {
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(object).unwrap_or_default();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join(name), bytes).expect("writing to OUT_DIR");
}
