//! The programs of a Kubernetes cluster, built from the source package of Debian 12, which carries
//! all that they are built from. Debian's own packages have the client and the node's programs
//! only.

mod build;
mod go;
mod openapi;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use overlay_tests::kubernetes::{BIN_DIR_ENV, PROGRAMS};

use crate::apt::{Apt, Suite};
use crate::{shell, workspace};

/// Where they are kept, in the repository.
const CACHE: &str = "target/kubernetes";
/// Debian 12, the last release with this package.
const SUITES: [Suite; 2] = [Suite::Main("bookworm"), Suite::Security("bookworm")];
const SOURCE: &str = "kubernetes";
/// What this version of Kubernetes can be built with.
const COMPILER: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];
/// Changes whenever the programs are built another way.
const RECIPE: u32 = 1;

/// Builds the programs at the first call, unless the environment names others.
pub fn ensure_programs() -> Result<()> {
    if std::env::var_os(BIN_DIR_ENV).is_none() && current().is_none() {
        programs()?;
    }
    Ok(())
}

/// The programs that were built last, where nothing of theirs is missing.
fn current() -> Option<PathBuf> {
    let built = fs::canonicalize(workspace::root().join(CACHE).join("bin")).ok()?;
    let name = built.file_name()?.to_string_lossy().into_owned();
    let whole = PROGRAMS.iter().all(|program| built.join(program).is_file());
    (whole && name.ends_with(&format!("-r{RECIPE}"))).then_some(built)
}

/// Builds the programs of the version that Debian serves, unless they are there.
pub fn programs() -> Result<()> {
    let cache = workspace::root().join(CACHE);
    let apt = Apt::with_sources(&cache.join("apt"), &SUITES)?;
    let version = apt.source_version(SOURCE)?;
    let compiler = apt.version(COMPILER[0])?;
    let key = format!("{version}-go{compiler}-r{RECIPE}").replace(['/', ':'], "_");
    let done = cache.join(&key);
    if !done.is_dir() {
        shell::progress(&format!(
            "Kubernetes {version} with Go {compiler}: four minutes on two cores, once"
        ));
        let work = cache.join("work");
        let _ = fs::remove_dir_all(&work);
        create(&work)?;
        let built = build::build(&apt, &version, &work)?;
        fs::rename(&built, &done).with_context(|| format!("rename {}", built.display()))?;
        // Go's cache alone is four times as large as the programs.
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let link = cache.join("bin");
    let new = cache.join("bin.new");
    let _ = fs::remove_file(&new);
    symlink(&key, &new).with_context(|| format!("link {}", new.display()))?;
    fs::rename(&new, &link).with_context(|| format!("rename {}", new.display()))
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
