//! The sizes of the programs for each kernel's verifier, as reported by the machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use overlay_tests::machine::SIZE;

use crate::{shell, workspace};

/// Instructions by kernel (`6.12`) and program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sizes(BTreeMap<String, BTreeMap<String, u32>>);

/// The checked-in table, which the tests are built with.
fn path() -> PathBuf {
    workspace::root().join("tests/tests/kernels/sizes.json")
}

impl Sizes {
    /// Notes a line of a machine's output, if it has a size: `size of ov_pod_in: 1234`.
    pub fn note(&mut self, release: &str, line: &str) {
        // The test's name may come before the size.
        let told = line.split_once(SIZE);
        let Some((program, size)) = told.and_then(|(_, rest)| rest.split_once(": ")) else {
            return;
        };
        let numbers: Vec<&str> = release.splitn(3, '.').collect();
        let (Ok(size), [major, minor, ..]) = (size.trim().parse(), &numbers[..]) else {
            return;
        };
        self.0
            .entry(format!("{major}.{minor}"))
            .or_default()
            .insert(program.to_owned(), size);
    }

    /// Adds another machine's sizes.
    pub fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Writes the sizes to the table, in place of the table's entries for these kernels.
    pub fn record(self) -> Result<()> {
        if self.0.is_empty() {
            bail!("no machine told how large the programs are: nothing recorded");
        }
        let path = path();
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut table: BTreeMap<String, BTreeMap<String, u32>> = serde_json::from_slice(&text)
            .with_context(|| format!("understand {}", path.display()))?;
        table.extend(self.0);
        let text = serde_json::to_string_pretty(&table)? + "\n";
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        shell::progress(&format!("recorded in {}", path.display()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_noted() {
        let mut sizes = Sizes::default();
        sizes.note("6.12.117+deb12-cloud-amd64", "size of ov_pod_in: 1234");
        sizes.note("6.12.117+deb12-cloud-amd64", "test lab ... ok");
        let programs = BTreeMap::from([("ov_pod_in".to_owned(), 1234)]);
        assert_eq!(
            sizes,
            Sizes(BTreeMap::from([("6.12".to_owned(), programs)]))
        );
    }
}
