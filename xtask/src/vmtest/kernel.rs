//! The kernels for tests, and their download.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Suite};
use crate::shell;

/// A line of kernels that Debian serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// The name on the command line: `6.1`, or `newest`.
    pub name: &'static str,
    /// Whether the kernel has every helper that the programs call. Otherwise the agent has to
    /// report that, and no program can be tested.
    pub loads_programs: bool,
    /// The suite with the series; the security suites are small and complete.
    suite: Suite,
}

/// Every series, oldest first.
pub const ALL: &[Series] = &[
    Series {
        loads_programs: false,
        ..series("5.10", Suite::Security("bullseye"))
    },
    series("6.1", Suite::Security("bookworm")),
    series("6.12", Suite::Security("bookworm")),
    series("6.18", Suite::Main("trixie-backports")),
    series(NEWEST, Suite::Main("trixie-backports")),
];

/// The default series: the kernels of stable distributions.
pub const ALWAYS: [&str; 2] = ["6.1", "6.12"];
const NEWEST: &str = "newest";

const fn series(name: &'static str, suite: Suite) -> Series {
    Series {
        name,
        loads_programs: true,
        suite,
    }
}

/// The variant of a kernel's build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Small, quick to boot.
    Cloud,
    /// For hardware of every kind; includes 9p.
    Generic,
}

impl Flavour {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Cloud => "-cloud-amd64",
            Self::Generic => "-amd64",
        }
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Series of the kernel.
    pub series: Series,
    /// The release, as printed by `uname -r`.
    pub release: String,
    /// The kernel's image.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// The series that users have named, separated by commas; `all` is every one.
pub fn named(names: &[String]) -> Result<Vec<Series>> {
    if names.iter().any(|name| name == "all") {
        return Ok(ALL.to_vec());
    }
    for name in names {
        if !ALL.iter().any(|series| series.name == name) {
            let known: Vec<_> = ALL.iter().map(|series| series.name).collect();
            bail!("no kernel {name}: there are {}, and all", known.join(", "));
        }
    }
    let wanted = |series: &&Series| names.iter().any(|name| name == series.name);
    Ok(ALL.iter().filter(wanted).copied().collect())
}

/// Fetches the kernels that are missing; kernels are stored below `cache`.
pub fn fetch(cache: &Path, wanted: &[Series], flavour: Flavour) -> Result<Vec<Kernel>> {
    let mut suites: Vec<Suite> = wanted.iter().map(|series| series.suite).collect();
    suites.sort_unstable();
    suites.dedup();
    let apt = Apt::new(&cache.join("apt"), &suites)?;
    let names = apt.names("linux-image-")?;
    let mut kernels = Vec::new();
    for series in wanted {
        let release = newest(&names, series.name, flavour)
            .with_context(|| format!("Debian serves no kernel {}", series.name))?;
        let root = cache.join("kernels").join(&release);
        if !root.is_dir() {
            shell::progress(&format!("kernel {release}"));
            let new = cache.join("kernels").join(format!("{release}.new"));
            let _ = fs::remove_dir_all(&new);
            fs::create_dir_all(&new).with_context(|| format!("create {}", new.display()))?;
            apt.unpack(&packages(&apt, &release)?, &new)?;
            fs::rename(&new, &root).with_context(|| format!("rename {}", new.display()))?;
        }
        kernels.push(unpacked(*series, &root, release)?);
    }
    Ok(kernels)
}

/// The packages of a kernel. From 6.19 on the image and the modules are in separate packages.
fn packages(apt: &Apt, release: &str) -> Result<Vec<String>> {
    let image = format!("linux-image-{release}");
    let mut packages = apt.dependencies(&image)?;
    packages.retain(|name| {
        ["linux-binary-", "linux-modules-"]
            .map(|part| format!("{part}{release}"))
            .contains(name)
    });
    packages.push(image);
    Ok(packages)
}

fn unpacked(series: Series, root: &Path, release: String) -> Result<Kernel> {
    let first = |paths: &[String]| {
        let mut paths = paths.iter().map(|path| root.join(path));
        paths.find(|path| path.exists())
    };
    let image = first(&[
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ]);
    let modules = first(&[
        format!("lib/modules/{release}"),
        format!("usr/lib/modules/{release}"),
    ]);
    Ok(Kernel {
        series,
        image: image.with_context(|| format!("{} has no kernel image", root.display()))?,
        modules: modules.with_context(|| format!("{} has no modules", root.display()))?,
        release,
    })
}

/// The release of the newest kernel of a series.
fn newest(packages: &[String], series: &str, flavour: Flavour) -> Option<String> {
    packages
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| {
            let version = release.strip_suffix(flavour.suffix());
            // A name without a patch level is that of an empty package.
            version.is_some_and(|version| version.matches('.').count() >= 2 && !is_foreign(version))
        })
        .filter(|release| {
            series == NEWEST
                || release
                    .strip_prefix(series)
                    .is_some_and(|rest| rest.starts_with('.'))
        })
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// Whether the name has the mark of another flavour, or of a build for an older distribution.
fn is_foreign(version: &str) -> bool {
    version.contains("-cloud") || version.contains("-rt") || version.contains("deb11")
}

/// The numbers in a name, for the comparison of releases.
fn numbers(release: &str) -> Vec<u32> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_found() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-rt-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned);
        let newest = |series, flavour| newest(&names, series, flavour);
        assert_eq!(
            newest("6.1", Flavour::Cloud).as_deref(),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(
            newest("6.1", Flavour::Generic).as_deref(),
            Some("6.1.0-56-amd64")
        );
        assert_eq!(
            newest(NEWEST, Flavour::Cloud).as_deref(),
            Some("6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(newest("5.10", Flavour::Cloud), None);
    }

    #[test]
    fn kernels_are_named() {
        assert_eq!(named(&["all".to_owned()]).unwrap(), ALL);
        let two = named(&["6.12".to_owned(), "6.1".to_owned()]).unwrap();
        assert_eq!(
            two.iter().map(|series| series.name).collect::<Vec<_>>(),
            ["6.1", "6.12"]
        );
        assert!(
            named(&["4.19".to_owned()])
                .unwrap_err()
                .to_string()
                .contains("newest")
        );
    }
}
