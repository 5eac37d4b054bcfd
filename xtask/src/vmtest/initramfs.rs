//! Packs a machine's files into an initramfs: a cpio archive of the "newc" kind, which the kernel
//! unpacks into its root at boot. The archive is not compressed, because decompression in the
//! emulated machine would cost many times the time that the host saves.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};
use overlay_tests::machine;

use super::guest;
use super::modules::Module;

/// An archive that is being written.
pub struct Initramfs<W: Write> {
    to: W,
    directories: BTreeSet<PathBuf>,
    inode: u32,
}

/// Writes the initramfs of a machine: its files, modules, and the commands to run.
pub fn pack(
    path: &Path,
    files: &guest::Files,
    modules: &[Module],
    commands: &[String],
) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let archive = Initramfs {
        to: BufWriter::new(file),
        directories: BTreeSet::new(),
        inode: 0,
    };
    archive
        .machine(files, modules, commands)
        .with_context(|| format!("write {}", path.display()))
}

impl<W: Write> Initramfs<W> {
    fn machine(
        mut self,
        files: &guest::Files,
        modules: &[Module],
        commands: &[String],
    ) -> Result<()> {
        for directory in [
            "/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/etc", "/var/lib",
        ] {
            self.directory(Path::new(directory))?;
        }
        // tcpdump looks up the user that it runs as.
        let root = b"root:x:0:0:root:/root:/bin/sh\n";
        self.file(Path::new("/etc/passwd"), root)?;
        for (path, file) in files {
            match file {
                guest::File::Copy(from) => {
                    let content =
                        fs::read(from).with_context(|| format!("read {}", from.display()))?;
                    self.file(path, &content)?;
                }
                guest::File::Link(to) => {
                    let to = to.to_string_lossy();
                    self.entry(path, ModeFileType::Symlink, 0o777, to.as_bytes())?;
                }
            }
        }
        let mut list = String::new();
        for (number, module) in modules.iter().enumerate() {
            let path = format!("/vm/module/{number:03}-{}.ko", module.name);
            self.file(Path::new(&path), &module.content)?;
            list += &path;
            list.push('\n');
        }
        self.file(Path::new(machine::MODULES), list.as_bytes())?;
        self.file(Path::new(machine::COMMANDS), commands.join("\n").as_bytes())?;
        newc::trailer(self.to)?.flush()?;
        Ok(())
    }

    fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.entry(path, ModeFileType::Regular, 0o755, content)
    }

    /// Adds a directory and its parents.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|path| path.parent().is_some() && !self.directories.contains(*path))
            .map(Path::to_owned)
            .collect();
        for path in missing.into_iter().rev() {
            self.write(&path, ModeFileType::Directory, 0o755, &[])?;
            self.directories.insert(path);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        kind: ModeFileType,
        permissions: u32,
        content: &[u8],
    ) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.write(path, kind, permissions, content)
    }

    fn write(
        &mut self,
        path: &Path,
        kind: ModeFileType,
        permissions: u32,
        content: &[u8],
    ) -> Result<()> {
        self.inode += 1;
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        let size = u32::try_from(content.len()).context("a file of more than 4 GiB")?;
        let mut entry = Builder::new(&name)
            .ino(self.inode)
            .nlink(1)
            .mode(permissions)
            .set_mode_file_type(kind)
            .write(&mut self.to, size);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}
