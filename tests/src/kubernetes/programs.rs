//! The programs of Kubernetes, which `cargo xtask setup --kubernetes` builds.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Environment variable with the programs' directory.
pub const BIN_DIR_ENV: &str = "OVERLAY_KUBERNETES_DIR";

/// Name of the directory beside the programs with Kubernetes' own tests, unless all are in one.
pub const SUITE_DIR: &str = "suite";

/// The programs' names.
pub const NAMES: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// The programs' directory.
pub fn bin_dir() -> PathBuf {
    directory("bin")
}

/// The directory of Kubernetes' own tests, which few commands need.
pub(super) fn suite_dir() -> PathBuf {
    directory(SUITE_DIR)
}

fn directory(name: &str) -> PathBuf {
    std::env::var_os(BIN_DIR_ENV).map_or_else(
        || {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
            let workspace = workspace.unwrap_or(Path::new("."));
            workspace.join("target/kubernetes").join(name)
        },
        PathBuf::from,
    )
}

pub(super) fn check() -> Result<()> {
    for name in NAMES {
        let path = bin_dir().join(name);
        ensure!(
            path.is_file(),
            "{} is missing: build it with `cargo xtask setup --kubernetes`",
            path.display()
        );
    }
    Ok(())
}
