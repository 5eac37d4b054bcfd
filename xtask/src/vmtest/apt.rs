//! Debian's kernels by apt, from suites that this machine need not have configured, and never
//! installed.
//!
//! A private configuration names the suites; where they are served is taken from the machine's own
//! sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use overlay_tests::command;

use crate::shell;

/// Debian's keys, which sign every suite.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian, as far as kernels go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// `NAME-security`, on its own mirrors.
    Security(&'static str),
    /// Any other.
    Main(&'static str),
}

/// apt with a private configuration.
pub struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Sets it up in `directory`, for these suites, and fetches their package lists.
    pub fn new(directory: &Path, suites: &[Suite]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let mirrors = Mirrors::of_this_machine()?;
        let sources: String = suites
            .iter()
            .map(|suite| {
                let (mirror, name) = match suite {
                    Suite::Security(name) => (&mirrors.security, format!("{name}-security")),
                    Suite::Main(name) => (&mirrors.main, (*name).to_owned()),
                };
                format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {name} main\n")
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
        .context("fetch the package lists of the kernels' suites")?;
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

    /// The names of all packages that begin so.
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

    /// Fetches packages and unpacks them below `root`.
    pub fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        let fetched = root.with_extension("fetched");
        let _ = fs::remove_dir_all(&fetched);
        fs::create_dir_all(&fetched).with_context(|| format!("create {}", fetched.display()))?;
        let mut download = self.command("apt-get");
        // The user that apt would fetch as may not write here.
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

/// Where Debian is served for this machine.
pub struct Mirrors {
    pub main: String,
    pub security: String,
}

impl Mirrors {
    /// As this machine's apt is set up.
    ///
    /// # Errors
    /// Where apt has no lists of Debian's packages.
    pub fn of_this_machine() -> Result<Self> {
        let format = ["indextargets", "--format", "$(LABEL) $(REPO_URI)"];
        let targets = command::run("apt-get", format)
            .context("kernels come from Debian's packages, by apt-get")?;
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
                 kernels cannot be fetched (has `apt-get update` run?)"
            ),
        }
    }
}
