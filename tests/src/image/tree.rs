//! Files that become a layer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Directories, files and links, in the order of their names; all belong to root and have no time.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link(PathBuf),
}

impl Tree {
    /// Adds a directory and its parents.
    ///
    /// # Errors
    /// When an entry of another type has that name.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        self.add(path.as_ref(), Entry::Directory { mode })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When an entry has that name.
    pub fn file(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<()> {
        let content = content.into();
        self.add(
            path.as_ref(),
            Entry::File {
                mode: 0o644,
                content,
            },
        )
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// When an entry has that name.
    pub fn program(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<()> {
        let content = content.into();
        self.add(
            path.as_ref(),
            Entry::File {
                mode: 0o755,
                content,
            },
        )
    }

    /// Adds a copy of an executable file of this machine.
    ///
    /// # Errors
    /// When the file cannot be read, or an entry has that name.
    pub fn copy(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.program(to, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When an entry has that name.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
        self.add(path.as_ref(), Entry::Link(target.as_ref().to_owned()))
    }

    fn add(&mut self, path: &Path, entry: Entry) -> Result<()> {
        let path = path.strip_prefix("/").unwrap_or(path);
        for parent in path.ancestors().skip(1) {
            if !parent.as_os_str().is_empty() {
                let directory = Entry::Directory { mode: 0o755 };
                self.0.entry(parent.to_owned()).or_insert(directory);
            }
        }
        let before = self.0.insert(path.to_owned(), entry);
        ensure!(before.is_none(), "{} is there twice", path.display());
        Ok(())
    }

    /// All entries as a tar archive.
    ///
    /// # Errors
    /// When a path does not fit in a tar archive.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            let written = match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    archive.append_data(&mut header, path, std::io::empty())
                }
                Entry::File { mode, content } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())
                }
                Entry::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)
                }
            };
            written.with_context(|| format!("archive {}", path.display()))?;
        }
        archive.into_inner().context("finish an archive")
    }
}
