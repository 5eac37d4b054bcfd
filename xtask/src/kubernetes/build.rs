//! Building Kubernetes as it was built before Go had modules: the source package has no metadata of
//! its vendored ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use overlay_tests::kubernetes::PROGRAMS;

use super::go::Go;
use super::{COMPILER, SOURCE, create, openapi};
use crate::apt::Apt;
use crate::shell;

/// Where the tree has to be below GOPATH.
const PACKAGE: &str = "k8s.io/kubernetes";
/// Below the unpacked packages of the compiler.
const GOROOT: &str = "usr/lib/go-1.19";
/// Packages with variables that say which version this is; clients complain about one that says
/// nothing.
const VERSIONED: [&str; 2] = [
    "k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
];

/// Fetches and builds below `work`; returns the directory of the programs.
pub(super) fn build(apt: &Apt, version: &str, work: &Path) -> Result<PathBuf> {
    let [fetched, go, tree, built] = [
        work.join("source"),
        work.join("go"),
        work.join("path/src").join(PACKAGE),
        work.join("built"),
    ];
    for directory in [&fetched, &tree, &built] {
        create(directory)?;
    }
    apt.unpack(&COMPILER.map(str::to_owned), &go)?;
    apt.fetch_source(SOURCE, &fetched)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--strip-components=1", "--directory"]);
    shell::run(unpack.arg(&tree).arg("--file").arg(archive(&fetched)?))?;

    let go = Go::new(go.join(GOROOT), work);
    shell::progress("Kubernetes: API descriptions");
    openapi::generate(&go, &tree, work)?;
    let flags = link_flags(version);
    for (number, program) in PROGRAMS.iter().enumerate() {
        let count = PROGRAMS.len();
        shell::progress(&format!(
            "Kubernetes: {program} ({} of {count})",
            number + 1
        ));
        let mut command = go.command("build", &tree);
        command.args(["-ldflags", &flags, "-o"]);
        command.arg(built.join(program));
        shell::run(command.arg(format!("./cmd/{program}")))?;
    }
    Ok(built)
}

/// The archive of the original source.
fn archive(fetched: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(fetched).with_context(|| format!("read {}", fetched.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .with_context(|| format!("{} has no original source", fetched.display()))
}

/// What the linker puts into the programs: their version, and nothing for debuggers.
fn link_flags(package: &str) -> String {
    let version = upstream(package);
    let mut numbers = version.split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let mut flags = "-s -w".to_owned();
    for name in VERSIONED {
        for (variable, value) in [
            ("gitVersion", format!("v{version}")),
            ("gitMajor", major.to_owned()),
            ("gitMinor", minor.to_owned()),
            ("gitTreeState", "clean".to_owned()),
        ] {
            flags += &format!(" -X {PACKAGE}/vendor/{name}.{variable}={value}");
        }
    }
    flags
}

/// The version of Kubernetes in that of a package: `1.20.5+really1.20.2-1.1` is 1.20.2.
fn upstream(package: &str) -> &str {
    let version = package.split('-').next().unwrap_or(package);
    version.rsplit("+really").next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_source() {
        assert_eq!(upstream("1.20.5+really1.20.2-1.1+deb12u1"), "1.20.2");
        assert_eq!(upstream("1.20.5-2"), "1.20.5");
        let flags = link_flags("1.20.5+really1.20.2-1.1");
        assert!(flags.contains("version.gitVersion=v1.20.2 "), "{flags}");
        assert!(flags.contains("version.gitMinor=20 "), "{flags}");
    }
}
