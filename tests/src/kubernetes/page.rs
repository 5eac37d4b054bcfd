//! The commands of docs/kubernetes.md, run unchanged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Cluster, bin_dir, manifest};

const PAGE: &str = include_str!("../../../docs/kubernetes.md");
/// The begin and end of a block of commands that can be run.
const BEGIN: &str = "```sh";
const END: &str = "```";
/// kubectl with the arguments that this Kubernetes needs (`for_this_version`), and with a limit to
/// its waits.
const KUBECTL: &str = r#"#!/bin/sh
case " $* " in
    *" patch "*) ;;
    *" apply "*) set -- "$@" --validate=false ;;
    *" delete "* | *" rollout status "*) set -- "$@" --timeout=180s ;;
esac
exec "#;

/// The blocks below a heading, until the next heading.
fn blocks(page: &str, heading: &str) -> Vec<String> {
    let mut is_there = false;
    let mut blocks = Vec::new();
    // The present block, and its indentation.
    let mut block: Option<(usize, String)> = None;
    for line in page.lines() {
        let text = line.trim_start();
        if let Some((indent, lines)) = &mut block {
            if text == END {
                blocks.extend(block.take().map(|(_, lines)| lines));
            } else {
                *lines += line.get(*indent..).unwrap_or_default();
                lines.push('\n');
            }
        } else if line.starts_with('#') {
            is_there = line.trim_start_matches('#').trim() == heading;
        } else if is_there && text == BEGIN {
            block = Some((line.len() - text.len(), String::new()));
        }
    }
    blocks
}

impl Cluster {
    /// Runs every block of commands below a heading of docs/kubernetes.md.
    ///
    /// # Errors
    /// When there is none, or one fails; kubectl's report on the pods is part of the error.
    pub fn follow(&self, heading: &str) -> Result<()> {
        let count = blocks(PAGE, heading).len();
        (0..count.max(1)).try_for_each(|number| self.follow_block(heading, number, &[]))
    }

    /// Runs one block, counted from 0, with values of the variables that the block uses.
    ///
    /// # Errors
    /// As for [`Cluster::follow`].
    pub fn follow_block(
        &self,
        heading: &str,
        number: usize,
        variables: &[(&str, &str)],
    ) -> Result<()> {
        let blocks = blocks(PAGE, heading);
        let block = blocks
            .get(number)
            .with_context(|| format!("docs/kubernetes.md has no block {number} of {heading}"))?;
        let place = self.desk()?;
        let inherited = std::env::var("PATH").unwrap_or_default();
        let mut shell = self.place()?.command("bash");
        shell
            .args(["-euo", "pipefail", "-c", block])
            .env(
                "PATH",
                format!("{}:{inherited}", place.join("bin").display()),
            )
            .env("KUBECONFIG", self.directory().join("admin.conf"))
            .envs(variables.iter().copied())
            .current_dir(&place);
        self.run(&mut shell, "").map(drop).with_context(|| {
            let told = self.kubectl(["describe", "pods", "--all-namespaces"]);
            let agents = self.nodes();
            let words: Vec<_> = agents.iter().map(super::Node::last_words).collect();
            format!(
                "{heading}, block {number}\n{}\n{}",
                told.unwrap_or_default(),
                words.join("\n")
            )
        })
    }

    /// A directory like the repository, for nodes that share a machine.
    fn desk(&self) -> Result<std::path::PathBuf> {
        let place = self.directory().join("desk");
        if place.is_dir() {
            return Ok(place);
        }
        let (bin, deploy) = (place.join("bin"), place.join("deploy"));
        for directory in [&bin, &deploy] {
            fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        let write = |path: &Path, text: &str| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        for (name, text) in manifest::files() {
            write(&deploy.join(name), &text)?;
        }
        let kubectl = bin.join("kubectl");
        let real = bin_dir().join("kubectl");
        write(&kubectl, &format!("{KUBECTL}{} \"$@\"\n", real.display()))?;
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod {}", kubectl.display()))?;
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_from_what_is_only_shown() {
        let page = concat!(
            "## A\n```\nno\n```\n",
            "1. x\n\n   ```sh\n   one \\\n     two\n   ```\n",
            "```sh\n# b\n```\n",
            "## B\n```sh\nc\n```\n",
        );
        assert_eq!(blocks(page, "A"), ["one \\\n  two\n", "# b\n"]);
        assert_eq!(blocks(page, "B"), ["c\n"]);
        assert!(blocks(page, "C").is_empty());
    }

    /// Every command on the page is run by a test.
    #[test]
    fn every_block_of_the_page_is_under_a_heading_that_tests_follow() {
        let all = PAGE.lines().filter(|line| line.trim() == BEGIN).count();
        let followed: usize = FOLLOWED.iter().map(|it| blocks(PAGE, it).len()).sum();
        assert_eq!(followed, all);
        assert!(FOLLOWED.iter().all(|it| !blocks(PAGE, it).is_empty()));
    }

    /// Headings that `tests/tests/kubernetes` follow.
    const FOLLOWED: [&str; 7] = [
        "Install",
        "By the images alone",
        "All at once",
        "Node by node",
        "Back",
        "Upgrade",
        "Uninstall",
    ];
}
