//! The code that is changed on purpose: code that decides, and that tests reach without root.

/// A part of the code, with a name for the command line.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// The name on the command line.
    pub name: &'static str,
    /// The package of the area.
    pub package: &'static str,
    /// Files of the area in the repository, as paths or as patterns with `**`.
    pub files: &'static [&'static str],
}

impl Area {
    /// Whether a file of the repository belongs to the area.
    pub fn has(&self, file: &str) -> bool {
        self.files.iter().any(|pattern| {
            let directory = pattern.strip_suffix("**");
            directory.map_or(file == *pattern, |directory| file.starts_with(directory))
        })
    }
}

/// The areas; those whose errors do most harm come first.
pub const ALL: &[Area] = &[
    Area {
        name: "decision",
        package: "overlay-common",
        files: &["overlay-common/src/**"],
    },
    Area {
        name: "lease",
        package: "overlay-user",
        files: &[
            "overlay-user/src/lease/**",
            "overlay-user/src/lease.rs",
            "overlay-user/src/per_family.rs",
            "overlay-user/src/mac.rs",
        ],
    },
    Area {
        name: "ipam",
        package: "overlay-user",
        files: &["overlay-user/src/ipam/**", "overlay-user/src/ipam.rs"],
    },
    Area {
        name: "reconcile",
        package: "overlay-user",
        files: &["overlay-user/src/reconcile/**"],
    },
    Area {
        name: "backend",
        package: "overlay-user",
        files: &["overlay-user/src/backend/**"],
    },
    Area {
        name: "store",
        package: "overlay-user",
        files: &[
            "overlay-user/src/store/table.rs",
            "overlay-user/src/store/registry.rs",
            "overlay-user/src/store/entry.rs",
        ],
    },
    Area {
        name: "plan",
        package: "overlay-user",
        files: &["overlay-user/src/agent/plan.rs"],
    },
    Area {
        name: "pods",
        package: "overlay-user",
        files: &["overlay-user/src/kernel/pods/claims.rs"],
    },
    Area {
        name: "service",
        package: "overlay-user",
        files: &[
            "overlay-user/src/service/**",
            "overlay-user/src/service.rs",
            "overlay-user/src/datapath/services/contents.rs",
            "overlay-user/src/shared_map.rs",
        ],
    },
    Area {
        name: "tables",
        package: "overlay-user",
        files: &["overlay-user/src/datapath/tables.rs"],
    },
    Area {
        name: "config",
        package: "overlay-user",
        files: &["overlay-user/src/config/**"],
    },
];

/// The names of all areas.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|area| area.name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::workspace;

    #[test]
    fn every_pattern_has_files() {
        for area in ALL {
            for pattern in area.files {
                let path = workspace::root().join(pattern.trim_end_matches("**"));
                assert!(path.exists(), "{}: {pattern}", area.name);
                assert!(Path::new(pattern).starts_with(area.package), "{pattern}");
            }
        }
    }

    #[test]
    fn files_are_told_apart() {
        let area = |name| ALL.iter().find(|area| area.name == name).unwrap();
        assert!(area("decision").has("overlay-common/src/decide/pod.rs"));
        assert!(area("ipam").has("overlay-user/src/ipam/range.rs"));
        assert!(area("ipam").has("overlay-user/src/ipam.rs"));
        assert!(!area("ipam").has("overlay-user/src/ipam.rs.orig"));
        assert!(!area("store").has("overlay-user/src/store/etcd.rs"));
    }
}
