//! `overlay-cni install`: the plugin and its configuration where runtimes look for them.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use rscni_types::types::CNI_COMMAND;
use rscni_types::version::SpecVersion;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::time::timeout;

use super::versions;

/// The list that is installed unless another one is given.
const LIST: &str = include_str!("../../../deploy/10-flannel.conflist");
/// Name of the file in the directory of configurations.
const LIST_NAME: &str = "10-flannel.conflist";
/// The name by which the list calls this plugin.
const OWN: &str = "flannel";
/// How long a plugin may take to tell its versions.
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRAM: u32 = 0o755;
const CONFIGURATION: u32 = 0o644;

/// Puts the plugin and its configuration where container runtimes look for them
///
/// The configuration is written for the highest version of CNI that every plugin of its list
/// supports. `cniVersions` offers version 1.1.0 beside 1.0.0; runtimes before 1.1.0 ignore that
/// key.
#[derive(Debug, Parser)]
#[command(
    name = "overlay-cni install",
    bin_name = "overlay-cni install",
    no_binary_name = true
)]
pub struct Install {
    /// Directory of network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Directory of plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Another list than the plugin's own: flannel's cni-conf.json
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Leave the configuration to somebody else
    #[arg(long, conflicts_with = "list")]
    plugin_only: bool,
}

/// Why the plugin could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{call} {path}: {source}")]
    File {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The list is no configuration list.
    #[error("{0} is no CNI configuration list: {1}")]
    List(String, String),
    /// A plugin of the list is not where runtimes look for it.
    #[error(
        "the list names {0}, which is not in {1}: install the CNI reference plugins there, or \
        give a list without it by --list"
    )]
    Missing(String, PathBuf),
    /// A plugin does not report its versions.
    #[error("{0} does not tell which versions of CNI it speaks: {1}")]
    Silent(PathBuf, String),
    /// There is no version that all plugins support.
    #[error("no version of CNI is spoken by all of {0}")]
    Babel(String),
}

impl Install {
    /// Installs; returns what was done, for people.
    ///
    /// # Errors
    /// Any [`Error`]. No file is ever half written.
    pub async fn run(&self) -> Result<String, Error> {
        if self.plugin_only {
            return Ok(self.told(self.install_program()?));
        }
        let (text, source) = match &self.list {
            Some(path) => (
                fs::read_to_string(path).map_err(failed("read", path))?,
                path.display().to_string(),
            ),
            None => (LIST.to_owned(), "the plugin's own list".to_owned()),
        };
        let bad = |why: String| Error::List(source.clone(), why);
        let list: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let plugins = types(&list).ok_or_else(|| bad("it lists no plugins by type".to_owned()))?;

        let copied = self.install_program()?;
        let mut common: BTreeSet<SpecVersion> = spoken_here();
        for plugin in plugins.iter().filter(|plugin| **plugin != OWN) {
            let spoken = self.spoken_by(plugin).await?;
            common.retain(|version| spoken.contains(version));
        }
        let list = for_versions(&list, &common).ok_or_else(|| Error::Babel(plugins.join(", ")))?;
        let path = self.conf_dir.join(LIST_NAME);
        let text = format!("{list:#}\n");
        let is_new = fs::read_to_string(&path).is_ok_and(|old| old == text);
        if !is_new {
            replace(&path, CONFIGURATION, |file| file.write_all(text.as_bytes()))?;
        }
        let versions: Vec<_> = common
            .iter()
            .rev()
            .take(1)
            .map(ToString::to_string)
            .collect();
        Ok(format!(
            "{}\n{} {}: CNI {}, spoken by {}",
            self.told(copied),
            if is_new { "in place:" } else { "wrote" },
            path.display(),
            versions.concat(),
            plugins.join(", ")
        ))
    }

    /// What was done about the program, for people.
    fn told(&self, copied: bool) -> String {
        let what = if copied { "installed" } else { "in place:" };
        format!("{what} {}", self.bin_dir.join(OWN).display())
    }

    /// Copies this program; `false` if the same file is installed already.
    fn install_program(&self) -> Result<bool, Error> {
        let own = Path::new("/proc/self/exe");
        let target = self.bin_dir.join(OWN);
        let file = File::open(own).map_err(failed("open", own))?;
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own_id = id(file.metadata().map_err(failed("stat", own))?);
        if fs::metadata(&target).is_ok_and(|there| id(there) == own_id) {
            return Ok(false);
        }
        replace(&target, PROGRAM, |new| io::copy(&mut &file, new).map(drop))?;
        Ok(true)
    }

    /// The versions that another plugin supports.
    async fn spoken_by(&self, plugin: &str) -> Result<BTreeSet<SpecVersion>, Error> {
        let path = self.bin_dir.join(plugin);
        if !path.exists() {
            return Err(Error::Missing(plugin.to_owned(), self.bin_dir.clone()));
        }
        let silent = |why: String| Error::Silent(path.clone(), why);
        let asked = Command::new(&path)
            .env(CNI_COMMAND, "VERSION")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(PATIENCE, asked)
            .await
            .map_err(|_| silent(format!("no answer within {} s", PATIENCE.as_secs())))?
            .map_err(|error| silent(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| silent(String::from_utf8_lossy(&output.stderr).trim().to_owned()))?;
        let versions = answer["supportedVersions"].as_array().into_iter().flatten();
        Ok(versions
            .filter_map(|version| version.as_str()?.parse().ok())
            .collect())
    }
}

fn spoken_here() -> BTreeSet<SpecVersion> {
    versions().supported_versions().iter().copied().collect()
}

/// The plugins that a list names.
fn types(list: &Value) -> Option<Vec<&str>> {
    let plugins = list["plugins"].as_array()?;
    plugins
        .iter()
        .map(|plugin| plugin["type"].as_str())
        .collect()
}

/// The list for these versions; `None` without any. The list's `cniVersion` is at most 1.0.0,
/// because a runtime up to 1.0.0 reads no other key and refuses a version that is unknown to the
/// runtime. Later versions are offered by `cniVersions`.
fn for_versions(list: &Value, versions: &BTreeSet<SpecVersion>) -> Option<Value> {
    let mut before = versions.iter().rev();
    let one = before.find(|version| **version <= SpecVersion::new(1, 0, 0))?;
    let mut text = Map::new();
    for (key, value) in list.as_object()? {
        if !matches!(key.as_str(), "cniVersion" | "cniVersions") {
            text.insert(key.clone(), value.clone());
        }
        if key == "name" {
            text.insert("cniVersion".into(), json!(one.to_string()));
            let offered: Vec<_> = versions.range(one..).map(ToString::to_string).collect();
            if offered.len() > 1 {
                text.insert("cniVersions".into(), json!(offered));
            }
        }
    }
    Some(Value::Object(text))
}

/// Replaces a file by renaming a complete new one, so that a reader never sees a part of a file.
fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory).map_err(failed("mkdir", directory))?;
    let mut new =
        NamedTempFile::new_in(directory).map_err(failed("create a file in", directory))?;
    let file = new.as_file_mut();
    write(file).map_err(failed("write", path))?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.sync_all())
        .map_err(failed("write", path))?;
    new.persist(path)
        .map(drop)
        .map_err(|error| failed("rename to", path)(error.error))
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { call, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(versions: &[&str]) -> Option<Value> {
        let list =
            json!({ "name": "x", "cniVersion": "0.3.1", "plugins": [{ "type": "flannel" }] });
        let versions = versions.iter().map(|text| text.parse().expect("a version"));
        for_versions(&list, &versions.collect())
    }

    #[test]
    fn a_version_that_old_runtimes_refuse_is_only_offered() {
        let new = chosen(&["0.4.0", "1.0.0", "1.1.0"]).expect("a list");
        assert_eq!(new["cniVersion"], "1.0.0");
        assert_eq!(new["cniVersions"], json!(["1.0.0", "1.1.0"]));
        let old = chosen(&["0.3.1", "0.4.0"]).expect("a list");
        assert_eq!(
            (&old["cniVersion"], old.get("cniVersions")),
            (&json!("0.4.0"), None)
        );
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn our_own_list_is_one() {
        let list: Value = serde_json::from_str(LIST).expect("JSON");
        assert_eq!(types(&list), Some(vec![OWN, "portmap"]));
        let whole = for_versions(&list, &spoken_here()).expect("a list");
        assert_eq!(whole["plugins"], list["plugins"]);
    }
}
