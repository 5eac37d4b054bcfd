//! Builds Kubernetes as before Go had modules, because the source package has no metadata of its
//! vendored modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use overlay_tests::kubernetes::PROGRAMS;

use super::go::Go;
use super::{COMPILER, SOURCE, create, openapi};
use crate::apt::Apt;
use crate::shell;

/// The path of the tree below GOPATH.
const PACKAGE: &str = "k8s.io/kubernetes";
/// The path of the compiler below its unpacked packages.
const GOROOT: &str = "usr/lib/go-1.19";
/// The program that embeds files in Go source, which the source package lacks.
const BINDATA: &str = "./vendor/github.com/go-bindata/go-bindata/go-bindata";
/// The files that the tests read (`hack/generate-bindata.sh`).
const EMBEDDED: [&str; 5] = [
    "test/conformance/testdata/...",
    "test/e2e/testing-manifests/...",
    "test/e2e_node/testing-manifests/...",
    "test/images/...",
    "test/fixtures/...",
];
/// The lists of the areas and of the clouds that the tests import.
const IMPORTS: [&str; 2] = ["test/e2e/e2e_test.go", "test/e2e/e2e.go"];
/// The areas that are built, and the only cloud that the tests of networks call. All others, with
/// the libraries of their clouds, would take two minutes more.
const AREAS: [&str; 3] = ["common\"", "network\"", "framework/providers/gce\""];
/// The program that most pods of the tests run.
const AGNHOST: &str = "./test/images/agnhost";
/// Packages with variables for the version, because clients complain about a program without a
/// version.
const VERSIONED: [&str; 2] = [
    "k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
];

/// Kubernetes' tree below Go's path, and the compiler.
pub(super) struct Source {
    go: Go,
    tree: PathBuf,
    work: PathBuf,
    link_flags: String,
}

impl Source {
    /// Fetches the tree and the compiler, and unpacks them below `work`.
    pub(super) fn fetch(apt: &Apt, version: &str, work: &Path) -> Result<Self> {
        let [fetched, go, tree] = [
            work.join("source"),
            work.join("go"),
            work.join("path/src").join(PACKAGE),
        ];
        for directory in [&fetched, &tree] {
            create(directory)?;
        }
        apt.unpack(&COMPILER.map(str::to_owned), &go)?;
        apt.fetch_source(SOURCE, &fetched)?;
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--strip-components=1", "--directory"]);
        shell::run(unpack.arg(&tree).arg("--file").arg(archive(&fetched)?))?;
        Ok(Self {
            go: Go::new(go.join(GOROOT), work),
            tree,
            work: work.to_owned(),
            link_flags: link_flags(version),
        })
    }

    /// Builds a package of the tree: `build`, or `test` with `-c` for its tests.
    fn build(&self, verb: &[&str], package: &str, output: &Path) -> Result<()> {
        let (verb, more) = verb.split_first().context("a verb of Go")?;
        let mut command = self.go.command(verb, &self.tree);
        command
            .args(more)
            .args(["-ldflags", &self.link_flags, "-o"]);
        shell::run(command.arg(output).arg(package))
    }
}

/// Builds the programs of a cluster.
pub(super) fn cluster(source: &Source, built: &Path) -> Result<()> {
    shell::progress("Kubernetes: API descriptions");
    openapi::generate(&source.go, &source.tree, &source.work)?;
    for (number, program) in PROGRAMS.iter().enumerate() {
        let count = PROGRAMS.len();
        shell::progress(&format!(
            "Kubernetes: {program} ({} of {count})",
            number + 1
        ));
        source.build(
            &["build"],
            &format!("./cmd/{program}"),
            &built.join(program),
        )?;
    }
    Ok(())
}

/// Builds the end-to-end tests, and the programs in their images.
pub(super) fn tests(source: &Source, built: &Path) -> Result<()> {
    shell::progress("Kubernetes: files of its tests");
    let generator = source.work.join("go-bindata");
    source.build(&["build"], BINDATA, &generator)?;
    let mut embed = Command::new(&generator);
    embed
        .current_dir(&source.tree)
        .args(["-nometadata", "-pkg", "generated"]);
    embed
        .args(["-o", "test/e2e/generated/bindata.go"])
        .args(EMBEDDED);
    shell::run(&mut embed)?;
    shell::progress("Kubernetes: its tests");
    for file in IMPORTS {
        let path = source.tree.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        fs::write(&path, of_areas(&text)).with_context(|| format!("write {}", path.display()))?;
    }
    // The tests of networks call a cloud's library, which the cluster is built without.
    let verb = ["test", "-vet=off", "-tags=dockerless", "-c"];
    source.build(&verb, "./test/e2e", &built.join("e2e.test"))?;
    source.build(&["build"], AGNHOST, &built.join("agnhost"))?;
    for name in ["localhost.crt", "localhost.key"] {
        let from = source.tree.join(AGNHOST).join("porter").join(name);
        fs::copy(&from, built.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

/// A list of imports without those areas and clouds that are not built.
fn of_areas(text: &str) -> String {
    let is_kept = |line: &&str| {
        line.trim()
            .strip_prefix("_ \"k8s.io/kubernetes/test/e2e/")
            .is_none_or(|area| AREAS.contains(&area))
    };
    let kept = text.lines().filter(is_kept);
    kept.map(|line| format!("{line}\n")).collect()
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

/// The linker's flags: the version, and no debugging information.
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
    fn only_areas_of_networks_are_imported() {
        let text = "import (\n\t\"flag\"\n\t\"k8s.io/kubernetes/test/e2e/framework\"\n\
            \t_ \"k8s.io/kubernetes/test/e2e/apps\"\n\
            \t_ \"k8s.io/kubernetes/test/e2e/framework/providers/aws\"\n\
            \t_ \"k8s.io/kubernetes/test/e2e/network\"\n)\n";
        let kept = of_areas(text);
        assert!(!kept.contains("apps") && !kept.contains("aws"), "{kept}");
        assert_eq!(kept.lines().count(), 5, "{kept}");
    }

    #[test]
    fn the_version_is_that_of_the_source() {
        assert_eq!(upstream("1.20.5+really1.20.2-1.1+deb12u1"), "1.20.2");
        assert_eq!(upstream("1.20.5-2"), "1.20.5");
        let flags = link_flags("1.20.5+really1.20.2-1.1");
        assert!(flags.contains("version.gitVersion=v1.20.2 "), "{flags}");
        assert!(flags.contains("version.gitMinor=20 "), "{flags}");
    }
}
