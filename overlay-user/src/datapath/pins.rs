//! Paths of the data path's pins: `<root>/v<ABI>/maps/<map>` and
//! `<root>/v<ABI>/links/<program>_<ifindex>`, and below `<root>/v<ABI>/programs` what the CNI
//! plugin attaches while no agent runs.
//!
//! Links are named after the interface's index, not its name: a device may be renamed under a
//! running link.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use overlay_common::Hook;
use overlay_common::schema::ABI_VERSION;

use super::Error;
use crate::files;

/// The default root of the pins.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/overlay";

/// Directories for pins are for root only.
const MODE: u32 = 0o700;

/// The pins of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    /// The directory of the links' pins.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The pin of the link that holds the program of `hook` on an interface.
    #[must_use]
    pub fn link(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.links().join(format!("{}_{ifindex}", hook.name()))
    }

    /// The directory of the programs' pins.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.version().join("programs")
    }

    /// Whether a data path is pinned here.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.version().join("maps").is_dir()
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// [`Error::NotBpfFs`], or [`Error::Pin`] where the kernel refuses.
    pub fn create(&self) -> Result<(), Error> {
        let parent = self.root.parent().unwrap_or(&self.root);
        if !is_bpffs(parent)? {
            return Err(Error::NotBpfFs {
                path: self.root.clone(),
            });
        }
        for dir in [self.version().join("maps"), self.links(), self.programs()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(&dir)
                .map_err(|source| Error::Pin {
                    call: "mkdir",
                    path: dir.clone(),
                    source,
                })?;
        }
        fs::set_permissions(&self.root, fs::Permissions::from_mode(MODE)).map_err(|source| {
            Error::Pin {
                call: "chmod",
                path: self.root.clone(),
                source,
            }
        })
    }

    /// The pinned links: hook, interface index and path, in the order in which they are to be
    /// detached. Programs that carry packets come before those that remember translated flows,
    /// because with only the latter detached, replies that a program carries would not be
    /// translated back.
    ///
    /// # Errors
    /// [`Error::Pin`] where the directory cannot be read; a missing one has no links.
    pub fn list_links(&self) -> Result<Vec<(Hook, u32, PathBuf)>, Error> {
        let links = list(&self.links())?.into_iter();
        let mut links: Vec<_> = links
            .filter_map(|path| {
                let (hook, ifindex) = site_of(&path)?;
                Some((hook, ifindex, path))
            })
            .collect();
        links.sort();
        Ok(links)
    }

    /// The ABI versions of which there are pins, in order.
    ///
    /// # Errors
    /// [`Error::Pin`] where the root cannot be read; a missing one has none.
    pub fn versions(&self) -> Result<Vec<u32>, Error> {
        let paths = list(&self.root)?.into_iter();
        let mut versions: Vec<u32> = paths.filter_map(|path| version_of(&path)).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// The directories of other ABI versions: what a newer or an older agent has left.
    ///
    /// # Errors
    /// [`Error::Pin`] where the root cannot be read; a missing one has none.
    pub fn other_versions(&self) -> Result<Vec<PathBuf>, Error> {
        let own = self.version();
        let is_other = |path: &PathBuf| *path != own && version_of(path).is_some();
        Ok(list(&self.root)?.into_iter().filter(is_other).collect())
    }

    /// Moves the pins of maps and links whose names are wanted here from the directories of other
    /// ABI versions; returns how many. What is pinned here already stays.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses, [`Error::NotBpfFs`].
    pub fn take_over(&self, is_wanted: impl Fn(&str) -> bool) -> Result<usize, Error> {
        let mut moved = 0;
        for version in self.other_versions()? {
            for kind in ["maps", "links"] {
                for pin in list(&version.join(kind))? {
                    let name = pin.file_name().and_then(|name| name.to_str());
                    let Some(name) = name.filter(|name| is_wanted(name)) else {
                        continue;
                    };
                    let own = self.version().join(kind).join(name);
                    if own.exists() {
                        continue;
                    }
                    self.create()?;
                    fs::rename(&pin, own).map_err(|source| Error::Pin {
                        call: "rename",
                        path: pin.clone(),
                        source,
                    })?;
                    moved += 1;
                }
            }
        }
        Ok(moved)
    }

    /// The pins of links in the directory of another ABI version, whatever they are called there,
    /// in the order of [`Pins::list_links`].
    ///
    /// # Errors
    /// [`Error::Pin`] where the directory cannot be read; a missing one has no links.
    pub fn links_of(version: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut links = list(&version.join("links"))?;
        links.sort_by_key(|path| site_of(path));
        Ok(links)
    }

    /// Removes all pins in the directory of another ABI version.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses.
    pub fn remove_version(version: &Path) -> Result<(), Error> {
        remove_directory(version)
    }

    /// Removes a pin; a missing one is no error.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses.
    pub fn remove(path: &Path) -> Result<(), Error> {
        files::remove(path).map_err(|source| Error::Pin {
            call: "unlink",
            path: path.to_owned(),
            source,
        })
    }

    /// Removes the pins of the programs, so that the CNI plugin does not attach them any more.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses.
    pub fn remove_programs(&self) -> Result<(), Error> {
        remove_directory(&self.programs())
    }

    /// Removes all pins as [`Pins::remove_all`], but for this version's pins of maps and links
    /// whose names are to be kept.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses.
    pub fn remove_all_but(&self, is_kept: impl Fn(&str) -> bool) -> Result<(), Error> {
        let is_kept = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(&is_kept)
        };
        let directories = [self.version().join("maps"), self.links()];
        let mut kept = 0;
        for path in directories.iter().map(|it| list(it)) {
            kept += path?.iter().filter(|path| is_kept(path)).count();
        }
        if kept == 0 {
            return self.remove_all();
        }
        for version in self.other_versions()? {
            remove_directory(&version)?;
        }
        for directory in directories {
            for path in list(&directory)?.iter().filter(|path| !is_kept(path)) {
                Self::remove(path)?;
            }
        }
        self.remove_programs()
    }

    /// Removes every pin of every ABI version, and with them the links and maps that nothing else
    /// holds. A directory that is on no BPF file system stays, because its files are no pins.
    ///
    /// # Errors
    /// [`Error::Pin`] where the kernel refuses.
    pub fn remove_all(&self) -> Result<(), Error> {
        match self.root.try_exists() {
            Ok(true) if is_bpffs(&self.root)? => remove_directory(&self.root),
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Pin {
                call: "stat",
                path: self.root.clone(),
                source,
            }),
        }
    }
}

/// Hook and interface index of a pinned link.
fn site_of(path: &Path) -> Option<(Hook, u32)> {
    let (hook, ifindex) = path.file_name()?.to_str()?.rsplit_once('_')?;
    let hook = Hook::ALL.into_iter().find(|known| known.name() == hook)?;
    Some((hook, ifindex.parse().ok()?))
}

/// The ABI version whose pins a directory holds.
fn version_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// Whether a path is on a BPF file system.
fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let fs = statfs(path).map_err(|errno| Error::Pin {
        call: "statfs",
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(fs.filesystem_type() == BPF_FS_MAGIC)
}

/// The content of a directory; a missing one is empty.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Pin {
            call: "readdir",
            path: directory.to_owned(),
            source,
        }),
    }
}

/// Removes a directory and its content; a missing one is no error.
fn remove_directory(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Pin {
            call: "remove",
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_packets_is_taken_off_before_what_remembers_flows() {
        let dir = tempfile::tempdir().expect("a directory");
        let pins = Pins::new(dir.path());
        let named = |paths: Vec<PathBuf>| -> Vec<String> {
            let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into();
            paths.iter().map(name).collect()
        };
        let other = dir.path().join("v1");
        for links in [pins.links(), other.join("links")] {
            fs::create_dir_all(&links).expect("made");
            for name in [
                "pod_out_4",
                "vtep_out_3",
                "pod_in_4",
                "net_in_2",
                "pod_in_12",
            ] {
                fs::write(links.join(name), "").expect("written");
            }
        }
        fs::write(other.join("links/of_old_3"), "").expect("written");
        let order = [
            "pod_in_4",
            "pod_in_12",
            "net_in_2",
            "pod_out_4",
            "vtep_out_3",
        ];
        let own = pins.list_links().expect("links");
        assert_eq!(named(own.into_iter().map(|link| link.2).collect()), order);
        let others = named(Pins::links_of(&other).expect("links"));
        assert_eq!(others[0], "of_old_3");
        assert_eq!(others[1..], order);
    }

    #[test]
    fn what_is_on_another_file_system_is_nobodys_pin() {
        let dir = tempfile::tempdir().expect("a directory");
        let lease = dir.path().join("overlay/subnets/10.5.34.0-24.json");
        fs::create_dir_all(lease.parent().expect("a parent")).expect("made");
        fs::write(&lease, "{}").expect("written");
        let pins = Pins::new(dir.path().join("overlay"));
        pins.remove_all().expect("nothing to do");
        assert!(lease.exists(), "somebody's leases are gone");
        let missing = Pins::new(dir.path().join("missing"));
        missing.remove_all().expect("nothing to do");
    }
}
