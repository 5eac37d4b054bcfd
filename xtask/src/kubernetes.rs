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
    recipe: 2,
    about: "its tests of networks: five minutes on two cores, once, and less just after the above",
    build: build::tests,
};

/// Builds the cluster's programs at the first call, unless the environment names others.
pub fn ensure_programs() -> Result<()> {
    ensure(&[&CLUSTER])
}

/// Builds the cluster's programs and Kubernetes' own tests at the first call, unless the
/// environment names others.
pub fn ensure_suite() -> Result<()> {
    ensure(&[&CLUSTER, &TESTS])
}

/// Builds the programs of the version in Debian, unless they exist.
pub fn programs() -> Result<()> {
    make(&[&CLUSTER])
}

fn ensure(products: &[&Product]) -> Result<()> {
    let are_built = || products.iter().all(|product| product.current().is_some());
    if std::env::var_os(BIN_DIR_ENV).is_none() && !are_built() {
        make(products)?;
    }
    Ok(())
}

/// Builds those that are missing from one unpacked source, so that a later one finds the packages
/// of an earlier one in the compiler's cache.
fn make(products: &[&Product]) -> Result<()> {
    let cache = workspace::root().join(CACHE);
    let apt = Apt::with_sources(&cache.join("apt"), &SUITES)?;
    let version = apt.source_version(SOURCE)?;
    let compiler = apt.version(COMPILER[0])?;
    let key = |product: &Product| {
        format!("{version}-go{compiler}{}", product.end()).replace(['/', ':'], "_")
    };
    let is_missing = |product: &&&Product| !cache.join(key(product)).is_dir();
    let missing: Vec<_> = products.iter().filter(is_missing).collect();
    if !missing.is_empty() {
        let work = cache.join("work");
        let _ = fs::remove_dir_all(&work);
        create(&work)?;
        let source = Source::fetch(&apt, &version, &work)?;
        for product in missing {
            shell::progress(&format!(
                "Kubernetes {version} with Go {compiler}: {}",
                product.about
            ));
            let built = work.join("built");
            create(&built)?;
            (product.build)(&source, &built)?;
            fs::rename(&built, cache.join(key(product)))
                .with_context(|| format!("rename {}", built.display()))?;
        }
        // Go's cache alone is four times as large as the programs.
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    for product in products {
        let link = cache.join(product.link);
        let new = cache.join(format!("{}.new", product.link));
        let _ = fs::remove_file(&new);
        symlink(key(product), &new).with_context(|| format!("link {}", new.display()))?;
        fs::rename(&new, &link).with_context(|| format!("rename {}", new.display()))?;
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
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
