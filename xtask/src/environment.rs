//! The environment of all programs that xtask runs: the variables of a shell must not change the
//! tests.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use overlay_tests::lab::PREFIX_ENV;

use crate::shell;

/// Prefixes of variables that agents, plugins, labs, tests or their programs read.
const LEAKS: &[&str] = &[
    "OVERLAY_",
    "FLANNELD_",
    "ETCD_",
    "ETCDCTL_",
    "CONTAINERD_",
    "CNI_",
];
/// The directories of system tools, which are often not on the PATH of people and of CI.
const SYSTEM_TOOLS: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// cargo's target directory, under the name that labs read as well.
const TARGET: &str = "CARGO_TARGET_DIR";
/// Other names of the target directory, and variables that would move the binaries elsewhere.
const BUILD_TARGETS: &[&str] = &["CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_TARGET"];

/// Sets the environment of this process and all its children. To be called while there is one
/// thread.
#[expect(
    unsafe_code,
    reason = "the environment may be changed while there is one thread"
)]
pub fn settle() {
    let changes = changes(&env::vars_os().collect());
    let removed: Vec<_> = changes
        .iter()
        .filter(|(name, value)| value.is_none() && is_leak(name))
        .map(|(name, _)| name.to_string_lossy())
        .collect();
    if !removed.is_empty() {
        shell::progress(&format!("not passed on: {}", removed.join(", ")));
    }
    for (name, value) in &changes {
        match value {
            // SAFETY: there is one thread, so that no other code reads the environment meanwhile.
            Some(value) => unsafe { env::set_var(name, value) },
            // SAFETY: as above.
            None => unsafe { env::remove_var(name) },
        }
    }
}

/// The changes of variables: a new value, or removal.
fn changes(variables: &BTreeMap<OsString, OsString>) -> Vec<(OsString, Option<OsString>)> {
    let value = |name: &str| variables.get(OsStr::new(name));
    let mut changes: Vec<(OsString, Option<OsString>)> = variables
        .keys()
        .filter(|name| is_leak(name) || BUILD_TARGETS.iter().any(|target| *name == target))
        .map(|name| (name.clone(), None))
        .collect();
    if value(TARGET).is_none()
        && let Some(directory) = value(BUILD_TARGETS[0])
    {
        changes.push((TARGET.into(), Some(directory.clone())));
    }
    if let Some(path) = complete(value("PATH").cloned().unwrap_or_default()) {
        changes.push(("PATH".into(), Some(path)));
    }
    changes
}

fn is_leak(name: &OsStr) -> bool {
    // Two labs at a time have different prefixes; apart from the prefix, labs are equal.
    name.to_str().is_some_and(|name| {
        name != PREFIX_ENV && LEAKS.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// A PATH with all required directories, if some are missing.
fn complete(path: OsString) -> Option<OsString> {
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    let before = directories.len();
    let wanted = SYSTEM_TOOLS.iter().map(|path| Path::new(path).to_owned());
    for directory in wanted.chain(shell::cargo_bin()) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    (directories.len() > before)
        .then(|| env::join_paths(directories).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(variables: &[(&str, &str)]) -> BTreeMap<String, Option<String>> {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let text = |text: OsString| text.into_string().unwrap();
        changes(&variables.collect())
            .into_iter()
            .map(|(name, value)| (text(name), value.map(text)))
            .collect()
    }

    #[test]
    fn what_changes_the_tests_is_removed() {
        let changed = changed(&[
            ("OVERLAY_SLOWNESS", "9"),
            ("FLANNELD_IFACE", "eth7"),
            ("ETCDCTL_ENDPOINTS", "elsewhere:2379"),
            (PREFIX_ENV, "x-"),
            ("HOME", "/root"),
        ]);
        let removed: Vec<_> = changed
            .iter()
            .filter(|(_, value)| value.is_none())
            .collect();
        assert_eq!(removed.len(), 3, "{removed:?}");
        assert!(!changed.contains_key(PREFIX_ENV) && !changed.contains_key("HOME"));
    }

    #[test]
    fn cargo_builds_where_labs_look() {
        let one = changed(&[("CARGO_BUILD_TARGET_DIR", "/there")]);
        assert_eq!(one["CARGO_TARGET_DIR"].as_deref(), Some("/there"));
        assert_eq!(one["CARGO_BUILD_TARGET_DIR"], None);
        let both = changed(&[
            ("CARGO_BUILD_TARGET_DIR", "/there"),
            ("CARGO_TARGET_DIR", "/here"),
        ]);
        assert!(!both.contains_key("CARGO_TARGET_DIR"), "{both:?}");
    }

    #[test]
    fn system_tools_are_found() {
        let path = complete("/usr/bin:/sbin".into()).unwrap();
        let path = path.to_str().unwrap();
        assert!(
            path.starts_with("/usr/bin:/sbin:/usr/local/sbin:/usr/sbin"),
            "{path}"
        );
        assert_eq!(complete(path.into()), None);
    }
}
