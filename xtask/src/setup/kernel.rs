//! The features of this machine's kernel for labs and tests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Modules that tests need and that are not loaded automatically.
const MODULES: &[&str] = &["br_netfilter", "tun", "vxlan"];

/// A feature that not every kernel has.
struct Feature {
    name: &'static str,
    here: bool,
    /// The consequence where the feature is missing.
    otherwise: &'static str,
}

/// Loads the modules that tests need, where they exist.
pub fn load_modules() {
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["--quiet", "--all"]).args(MODULES);
    // A built-in feature is no module, and `lacks` reports a missing one.
    let _ = modprobe
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The features that this kernel lacks, a line for each, with the consequence.
pub fn lacks() -> Vec<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = version(&release);
    let exists = |path: &str| Path::new(path).exists();
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let memory = controllers.split_whitespace().any(|name| name == "memory");
    [
        Feature {
            name: "tcx (Linux 6.6)",
            here: version >= Some((6, 6)),
            otherwise: "programs are attached by clsact",
        },
        Feature {
            name: "BIG TCP for IPv4 (Linux 6.3)",
            here: version >= Some((6, 3)),
            otherwise: "no super-packets beyond 64 KiB are tested",
        },
        Feature {
            name: "br_netfilter",
            here: exists("/proc/sys/net/bridge"),
            otherwise: "tests of Services between pods of one node fail",
        },
        Feature {
            name: "a memory control group",
            here: memory || exists("/sys/fs/cgroup/memory"),
            otherwise: "tests of memory limits fail",
        },
        Feature {
            name: "time namespaces (Linux 5.6)",
            here: exists("/proc/self/ns/time"),
            otherwise: "tests of clocks fail",
        },
        Feature {
            name: "/dev/net/tun",
            here: exists("/dev/net/tun"),
            otherwise: "machines with other kernels have no network card",
        },
    ]
    .into_iter()
    .filter(|feature| !feature.here)
    .map(
        |Feature {
             name, otherwise, ..
         }| { format!("Linux {} has no {name}: {otherwise}", release.trim()) },
    )
    .collect()
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_understood() {
        assert_eq!(version("6.1.0-56-cloud-amd64\n"), Some((6, 1)));
        assert_eq!(version("6.12+"), Some((6, 12)));
        assert_eq!(version("linux"), None);
        assert!(version("6.10.1") >= Some((6, 6)));
    }
}
