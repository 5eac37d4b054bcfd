//! Packets, each of which leads the decision a way that no other does. They are what new ones are
//! made from, and outlive a run in a file of one [`Recording`] a line.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::path;
use crate::recording::Recording;
use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// More would take longer to read than they are worth.
const MOST: usize = 20_000;

/// A packet and its tables.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The tables, which many entries share.
    pub world: Arc<World>,
    /// The packet.
    pub visit: Visit,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    entries: Vec<Entry>,
    /// How many of them were written by people.
    written: usize,
    paths: HashSet<u64>,
}

impl Corpus {
    /// Keeps a packet whose `path` is new; returns whether it is.
    pub fn keep(&mut self, path: u64, entry: impl FnOnce() -> Entry) -> bool {
        if self.entries.len() >= MOST || !self.paths.insert(path) {
            return false;
        }
        self.entries.push(entry());
        true
    }

    /// Keeps a packet if it goes a new way.
    pub fn add(&mut self, entry: Entry) {
        let (_, path) = path::decide(&entry.visit, &entry.world);
        self.keep(path, || entry);
    }

    /// Adds what people have written, which is less odd than what chance makes.
    pub fn add_written(&mut self, entry: Entry) {
        self.add(entry);
        self.written = self.entries.len();
    }

    /// What people have written.
    pub fn written(&self) -> &[Entry] {
        &self.entries[..self.written]
    }

    /// What is kept.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reads a file into the corpus. Lines of another version of this program are left out, and
    /// counted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(&mut self, file: &Path) -> Result<usize> {
        if !file.exists() {
            return Ok(0);
        }
        let open = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
        let mut foreign = 0;
        for line in BufReader::new(open).lines() {
            let line = line.with_context(|| format!("read {}", file.display()))?;
            match recorded(&line) {
                Ok((world, visits)) => {
                    for visit in visits {
                        self.add(Entry {
                            world: Arc::clone(&world),
                            visit,
                        });
                    }
                }
                Err(_) => foreign += 1,
            }
        }
        Ok(foreign)
    }

    /// Writes the corpus to a file, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let directory = file.parent().context("a file lies in a directory")?;
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let mut new = tempfile::NamedTempFile::new_in(directory)
            .with_context(|| format!("make a file in {}", directory.display()))?;
        let mut worlds: BTreeMap<*const World, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            worlds
                .entry(Arc::as_ptr(&entry.world))
                .or_default()
                .push(entry);
        }
        for entries in worlds.values() {
            let visits: Vec<Visit> = entries.iter().map(|entry| entry.visit.clone()).collect();
            let Some(first) = entries.first() else {
                continue;
            };
            let line = serde_json::to_string(&Recording::of("corpus", &first.world, &visits))?;
            writeln!(new, "{line}").with_context(|| format!("write {}", file.display()))?;
        }
        new.persist(file)
            .with_context(|| format!("write {}", file.display()))?;
        Ok(())
    }
}

fn recorded(line: &str) -> Result<(Arc<World>, Vec<Visit>)> {
    let recording: Recording = serde_json::from_str(line)?;
    Ok((Arc::new(recording.world()?), recording.visits()?))
}
