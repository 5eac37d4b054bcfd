//! The names of tests: those that a filter selects, and those that are similar to a filter without
//! a match.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use overlay_tests::command;

use crate::{shell, workspace};

/// Number of names in the error when none matches.
const TOLD: usize = 6;
/// Least similarity of a name in the error.
const ALIKE: f64 = 0.35;

/// The files of end-to-end tests in tests/tests, by the names that cargo gives them.
pub fn files() -> Result<Vec<String>> {
    let directory = workspace::root().join("tests/tests");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?
    {
        let path = entry.context("read a directory")?.path();
        if is_test(&path) {
            let name = path.file_stem().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    // A file may have modules in a directory of the same name.
    names.dedup();
    Ok(names)
}

fn is_test(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists()
}

/// The unit tests, with the arguments of cargo. The fuzz targets have none, and cannot be linked
/// without libFuzzer.
pub const UNIT_TESTS: [&str; 7] = [
    "--workspace",
    "--exclude",
    "overlay-ebpf",
    "--exclude",
    "overlay-fuzz-inputs",
    "--lib",
    "--bins",
];
/// The commands by which cargo lists tests: with the arguments of the runs, so that nothing is
/// built again.
const LISTS: [&[&str]; 3] = [
    &UNIT_TESTS,
    &["--package", "overlay-common", "--test", "*"],
    &["--package", "overlay-tests", "--test", "*"],
];

/// The error of a filter without a match, with similar names.
pub fn none(filter: &str) -> Result<()> {
    let mut names: BTreeSet<String> = files()?.into_iter().collect();
    for arguments in LISTS {
        let mut list = shell::cargo(&["test", "--quiet"]);
        list.args(arguments).args(["--", "--list"]);
        let shown = command::show(&list);
        let output = list.output().with_context(|| format!("start `{shown}`"))?;
        let output = command::require_success(&shown, output)?;
        let listed = String::from_utf8_lossy(&output.stdout);
        let tests = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));
        names.extend(tests.map(str::to_owned));
    }
    let close = close(filter, &names);
    ensure!(
        !names.iter().any(|name| name.contains(filter)),
        "only ignored tests are called {filter:?}: those of other kernels run by \
         `cargo xtask vmtest -- {filter}`"
    );
    ensure!(
        close.is_empty(),
        "no test is called {filter:?}; there are {}",
        close.join(", ")
    );
    anyhow::bail!("no test is called {filter:?}, and none is like it")
}

/// The names that are most similar to `wanted`, best first.
fn close<'a>(wanted: &str, names: &'a BTreeSet<String>) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = names
        .iter()
        .map(|name| {
            let parts = name.split("::").chain([name.as_str()]);
            let best = parts.map(|part| likeness(wanted, part)).fold(0.0, f64::max);
            (best, name.as_str())
        })
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored
        .into_iter()
        .take(TOLD)
        .map(|(_, name)| name)
        .collect()
}

/// The share of neighbouring letters that two words have in common (Dice's coefficient), 0 to 1.
fn likeness(a: &str, b: &str) -> f64 {
    let pairs = |word: &str| -> BTreeSet<[u8; 2]> {
        let bytes = word.as_bytes();
        bytes.windows(2).map(|pair| [pair[0], pair[1]]).collect()
    };
    let (a, b) = (pairs(a), pairs(b));
    let all = a.len() + b.len();
    if all == 0 {
        return 0.0;
    }
    2.0 * a.intersection(&b).count() as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_found() {
        let names = [
            "faults",
            "reachability",
            "ipam::tests::a_lock_is_waited_for",
            "trace",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(close("reachabilty", &names), ["reachability"]);
        assert_eq!(
            close("a_lock_is_waited_on", &names),
            ["ipam::tests::a_lock_is_waited_for"]
        );
        assert_eq!(close("zzz", &names), [""; 0]);
    }

    #[test]
    fn files_of_tests_are_found() {
        let files = files().unwrap();
        // A file, a directory, and a file with a directory of modules.
        for name in ["healing", "refusals", "kernel_path"] {
            assert_eq!(
                files.iter().filter(|file| *file == name).count(),
                1,
                "{files:?}"
            );
        }
        assert!(!files.contains(&"support".to_owned()));
    }
}
