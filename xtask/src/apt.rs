//! Debian's packages by apt, from suites that need not be configured on this machine. The packages
//! are never installed.
//!
//! A private configuration names the suites; the mirrors are read from the machine's own sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use overlay_tests::command;

use crate::shell;

/// Debian's keys, which sign every suite.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// `NAME-security`, on its own mirrors.
    Security(&'static str),
    /// Any other suite.
    Main(&'static str),
}

/// apt with a private configuration.
pub struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Sets apt up in `directory`, for these suites, and fetches their package lists.
    pub fn new(directory: &Path, suites: &[Suite]) -> Result<Self> {
        Self::with(directory, suites, &["deb"])
    }

    /// Sets apt up as [`Apt::new`], with the suites' source packages as well.
    pub fn with_sources(directory: &Path, suites: &[Suite]) -> Result<Self> {
        Self::with(directory, suites, &["deb", "deb-src"])
    }

    fn with(directory: &Path, suites: &[Suite], kinds: &[&str]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let mirrors = Mirrors::of_this_machine()?;
        let sources: String = suites
            .iter()
            .flat_map(|suite| kinds.iter().map(move |kind| (suite, kind)))
            .map(|(suite, kind)| {
                let (mirror, name) = match suite {
                    Suite::Security(name) => (&mirrors.security, format!("{name}-security")),
                    Suite::Main(name) => (&mirrors.main, (*name).to_owned()),
                };
                format!("{kind} [arch=amd64 signed-by={KEYRING}] {mirror} {name} main\n")
            })
            .collect();
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let list = write("sources.list", &sources)?;
        let config = write(
            "apt.conf",
            &format!(
                "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\n\
                 Dir::State::lists \"{}\";\nDir::Cache \"{}\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
                list.display(),
                directory.join("lists").display(),
                directory.join("cache").display(),
            ),
        )?;
        let apt = Self { config };
        shell::run(
            apt.command("apt-get")
                .args(["-qq", "update"])
                .stdout(std::io::stderr()),
        )
        .context("fetch lists of packages")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }

    fn answer(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("apt-cache");
        let shown = arguments.join(" ");
        let output = command
            .args(arguments)
            .output()
            .with_context(|| format!("start `apt-cache {shown}`"))?;
        let output = command::require_success(&format!("apt-cache {shown}"), output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.answer(&["pkgnames", prefix])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The names of the packages that a package depends on.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let about = self.answer(&["show", "--no-all-versions", package])?;
        let list = about
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "));
        let first_word = |entry: &str| entry.split_whitespace().next().map(str::to_owned);
        Ok(list
            .unwrap_or_default()
            .split(',')
            .filter_map(first_word)
            .collect())
    }

    /// The version of a package that would be installed.
    pub fn version(&self, package: &str) -> Result<String> {
        version(&self.answer(&["show", "--no-all-versions", package])?)
            .with_context(|| format!("Debian serves no package {package}"))
    }

    /// The version of a source package.
    pub fn source_version(&self, package: &str) -> Result<String> {
        version(&self.answer(&["showsrc", package])?)
            .with_context(|| format!("Debian serves no source package {package}"))
    }

    /// Fetches the files of a source package into `directory`; their digests are checked.
    pub fn fetch_source(&self, package: &str, directory: &Path) -> Result<()> {
        let mut fetch = self.command("apt-get");
        fetch
            .args(["-qq", "-o", "APT::Sandbox::User=root", "source"])
            .args(["--download-only", package])
            .current_dir(directory)
            .stdout(std::io::stderr());
        shell::run(&mut fetch)
    }

    /// Fetches packages and unpacks them below `root`.
    pub fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        let fetched = root.with_extension("fetched");
        let _ = fs::remove_dir_all(&fetched);
        fs::create_dir_all(&fetched).with_context(|| format!("create {}", fetched.display()))?;
        let mut download = self.command("apt-get");
        // The user as which apt would fetch has no write permission here.
        download
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(&fetched)
            .stdout(std::io::stderr());
        shell::run(&mut download)?;
        for entry in
            fs::read_dir(&fetched).with_context(|| format!("read {}", fetched.display()))?
        {
            let path = entry.context("read a directory")?.path();
            shell::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
        }
        fs::remove_dir_all(&fetched).with_context(|| format!("remove {}", fetched.display()))
    }
}

/// The version in the first paragraph about a package.
fn version(about: &str) -> Option<String> {
    let line = about
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    Some(line.to_owned())
}

/// The mirrors of Debian for this machine.
pub struct Mirrors {
    pub main: String,
    pub security: String,
}

impl Mirrors {
    /// The mirrors in the configuration of this machine's apt.
    ///
    /// # Errors
    /// Where apt has no lists of Debian's packages.
    pub fn of_this_machine() -> Result<Self> {
        let format = ["indextargets", "--format", "$(LABEL) $(REPO_URI)"];
        let targets = command::run("apt-get", format)
            .context("kernels and Kubernetes come from Debian's packages, by apt-get")?;
        let of = |label: &str| {
            let line = targets
                .lines()
                .find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
            line.map(str::to_owned)
        };
        match (of("Debian"), of("Debian-Security")) {
            (Some(main), Some(security)) => Ok(Self { main, security }),
            _ => bail!(
                "apt knows no mirror of Debian and of its security updates on this machine: \
                 neither kernels nor Kubernetes can be fetched (has `apt-get update` run?)"
            ),
        }
    }
}
