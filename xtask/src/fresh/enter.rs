//! Runs a command in a root like on a separate machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Prefixes of the environment variables that are needed to reach registries.
const TO_REGISTRIES: &[&str] = &[
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "CURL_CA_BUNDLE",
    "PIP_",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_",
];

/// Runs `cargo xtask WORD` in the root; returns whether the command succeeded.
pub fn run(root: &Path, word: &str, more: &[OsString]) -> Result<bool> {
    let rustup = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let rustup = rustup
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")))
        .context("neither RUSTUP_HOME nor HOME is set")?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
        ])
        .args(["sh", "-c", include_str!("enter.sh"), "enter.sh"])
        .arg(root)
        .args(["cargo", "xtask", word])
        .args(more)
        .env_clear()
        .envs(environment(std::env::vars_os()))
        .env("RUSTUP", rustup);
    let status = command.status().context("start `unshare`")?;
    Ok(status.success())
}

/// The environment after a login in the root, with the variables for registries.
fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let passes = |name: &str| {
        name == "TERM"
            || name.to_ascii_lowercase().ends_with("_proxy")
            || TO_REGISTRIES.iter().any(|prefix| name.starts_with(prefix))
    };
    let login = [
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        (
            "PATH",
            "/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
    ];
    inherited
        .filter(|(name, _)| name.to_str().is_some_and(passes))
        .chain(login.map(|(name, value)| (name.into(), value.into())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_to_registries_is_passed_on() {
        let inherited = [
            ("https_proxy", "a"),
            ("CARGO_NET_RETRY", "3"),
            ("CARGO_TARGET_DIR", "elsewhere"),
            ("RUSTFLAGS", "-C debuginfo=0"),
            ("OVERLAY_BIN_DIR", "elsewhere"),
            ("PATH", "elsewhere"),
        ]
        .map(|(name, value)| (name.into(), value.into()));
        let passed = environment(inherited.into_iter());
        let names: Vec<_> = passed.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["CARGO_NET_RETRY", "HOME", "LANG", "PATH", "https_proxy"]
        );
        assert!(
            passed[&OsString::from("PATH")]
                .to_str()
                .unwrap()
                .contains("/usr/sbin")
        );
    }
}
