//! The programs of a Kubernetes cluster, and Kubernetes' own tests, built from the source package
//! of Debian 12, which contains all needed sources. Debian's own packages have the client and the
//! node's programs only.

mod build;
mod go;
mod openapi;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use overlay_tests::kubernetes::{BIN_DIR_ENV, PROGRAMS, SUITE, SUITE_DIR};

use crate::apt::{Apt, Suite};
use crate::{shell, workspace};
use build::Source;

/// The directory of the programs, in the repository.
const CACHE: &str = "target/kubernetes";
/// Debian 12, the last release with this package.
const SUITES: [Suite; 2] = [Suite::Main("bookworm"), Suite::Security("bookworm")];
const SOURCE: &str = "kubernetes";
/// The compiler for this version of Kubernetes.
const COMPILER: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];

/// Files that are built together.
struct Product {
    /// The link to the directory with them.
    link: &'static str,
    files: &'static [&'static str],
    /// A number that changes whenever the way of building changes.
    recipe: u32,
    /// The message before the build.
    about: &'static str,
    build: fn(&Source, &Path) -> Result<()>,
}

const CLUSTER: Product = Product {
    link: "bin",
    files: &PROGRAMS,
    recipe: 1,
    about: "four minutes on two cores, once",
    build: build::cluster,
};
const TESTS: Product = Product {
    link: SUITE_DIR,
    files: &SUITE,
    recipe: 1,
    about: "its tests: four minutes on two cores, once",
    build: build::tests,
};

/// Builds the cluster's programs at the first call, unless the environment names others.
pub fn ensure_programs() -> Result<()> {
    ensure(&CLUSTER)
}

/// Builds Kubernetes' own tests at the first call, unless the environment names others.
pub fn ensure_suite() -> Result<()> {
    ensure(&TESTS)
}

/// Builds the programs of the version in Debian, unless they exist.
pub fn programs() -> Result<()> {
    CLUSTER.make()
}

fn ensure(product: &Product) -> Result<()> {
    if std::env::var_os(BIN_DIR_ENV).is_none() && product.current().is_none() {
        product.make()?;
    }
    Ok(())
}

impl Product {
    /// The directory of the last build, if it is complete.
    fn current(&self) -> Option<PathBuf> {
        let built = fs::canonicalize(workspace::root().join(CACHE).join(self.link)).ok()?;
        let name = built.file_name()?.to_string_lossy().into_owned();
        let whole = self.files.iter().all(|file| built.join(file).is_file());
        (whole && name.ends_with(&self.end())).then_some(built)
    }

    /// The end of the name of a directory with this product.
    fn end(&self) -> String {
        match self.link {
            "bin" => format!("-r{}", self.recipe),
            link => format!("-{link}-r{}", self.recipe),
        }
    }

    fn make(&self) -> Result<()> {
        let cache = workspace::root().join(CACHE);
        let apt = Apt::with_sources(&cache.join("apt"), &SUITES)?;
        let version = apt.source_version(SOURCE)?;
        let compiler = apt.version(COMPILER[0])?;
        let key = format!("{version}-go{compiler}{}", self.end()).replace(['/', ':'], "_");
        let done = cache.join(&key);
        if !done.is_dir() {
            shell::progress(&format!(
                "Kubernetes {version} with Go {compiler}: {}",
                self.about
            ));
            let work = cache.join("work");
            let _ = fs::remove_dir_all(&work);
            let built = work.join("built");
            create(&built)?;
            (self.build)(&Source::fetch(&apt, &version, &work)?, &built)?;
            fs::rename(&built, &done).with_context(|| format!("rename {}", built.display()))?;
            // Go's cache alone is four times as large as the programs.
            fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
        }
        let link = cache.join(self.link);
        let new = cache.join(format!("{}.new", self.link));
        let _ = fs::remove_file(&new);
        symlink(&key, &new).with_context(|| format!("link {}", new.display()))?;
        fs::rename(&new, &link).with_context(|| format!("rename {}", new.display()))
    }
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
