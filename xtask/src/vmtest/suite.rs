//! The files of end-to-end tests that run in machines on request.

use anyhow::{Result, bail};

use crate::test_names;

/// The name for every file that machines can run.
pub const ALL: &str = "all";
/// The files that `all` leaves out, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("chart", "asks nothing of the kernel"),
    ("containers", "needs containerd"),
    ("cri", "needs containerd 2"),
    ("image", "asks nothing of the kernel"),
    ("inputs", "asks nothing of the kernel"),
    ("kernels", "is made for machines, and runs without --suite"),
    ("kubernetes", "needs a cluster"),
    ("store_kube", "needs an API server of Kubernetes"),
];

/// The files that a user has named, each once.
///
/// # Errors
/// When there is no such file.
pub fn files(named: &[String]) -> Result<Vec<String>> {
    chosen(named, &test_names::files()?)
}

/// The reasons for files that `all` leaves out, a line each.
pub fn left_out() -> Vec<String> {
    let line = |(file, why): &(&str, &str)| format!("not run: {file} {why}");
    LEFT_OUT.iter().map(line).collect()
}

fn chosen(named: &[String], known: &[String]) -> Result<Vec<String>> {
    let mut files: Vec<String> = Vec::new();
    for name in named {
        if name == ALL {
            let is_run = |file: &&String| LEFT_OUT.iter().all(|(left, _)| left != file);
            files.extend(known.iter().filter(is_run).cloned());
        } else if known.contains(name) {
            files.push(name.clone());
        } else {
            bail!(
                "no file {name} in tests/tests: there are {}, and {ALL}",
                known.join(", ")
            );
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_is_every_file_that_machines_can_run() {
        let known = strings(&["chart", "healing", "kubernetes", "restart"]);
        let chosen = |named: &[&str]| chosen(&strings(named), &known);
        assert_eq!(chosen(&["all"]).unwrap(), ["healing", "restart"]);
        assert_eq!(
            chosen(&["restart", "all"]).unwrap(),
            ["restart", "healing"],
            "each once, in the order of the user"
        );
        // A file that `all` leaves out may be named.
        assert_eq!(chosen(&["chart"]).unwrap(), ["chart"]);
        let error = chosen(&["heeling"]).unwrap_err().to_string();
        assert!(
            error.contains("heeling") && error.contains("healing"),
            "{error}"
        );
    }

    #[test]
    fn what_is_left_out_exists() {
        let known = test_names::files().unwrap();
        for (file, _) in LEFT_OUT {
            assert!(known.contains(&(*file).to_owned()), "{file}");
        }
    }
}
