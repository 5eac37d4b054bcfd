//! The systemd unit and the DaemonSet give exactly the tested sets.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::FAST_PATH;

/// A file of `deploy/`.
pub fn deploy(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// For kernels before 5.11, which count maps as locked memory. The tests' kernel is newer.
const OLD_KERNELS: &str = "sys_resource";

#[test]
fn the_unit_gives_what_is_tested() -> Result<()> {
    let unit = deploy("overlayd.service")?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("no CapabilityBoundingSet")?;
    let given: BTreeSet<String> = line
        .split(' ')
        .map(|it| it.trim_start_matches("CAP_").to_lowercase())
        .collect();
    let wanted = FAST_PATH.iter().copied().chain([OLD_KERNELS]);
    ensure!(given == wanted.map(str::to_owned).collect(), "{given:?}");
    Ok(())
}

#[test]
fn the_daemon_set_gives_what_is_tested() -> Result<()> {
    let yaml = deploy("daemonset.yaml")?;
    let (_, agent) = yaml.split_once("- name: overlayd\n").context("no agent")?;
    let line = agent
        .lines()
        .find_map(|line| line.trim().strip_prefix("add: ["))
        .context("no capabilities")?;
    let given: BTreeSet<String> = line
        .trim_end_matches(']')
        .split(", ")
        .map(str::to_lowercase)
        .collect();
    let wanted = FAST_PATH.iter().map(|it| (*it).to_owned());
    ensure!(given == wanted.collect(), "{given:?}");
    ensure!(agent.contains("drop: [ALL]"), "others are not dropped");
    Ok(())
}

/// Clusters of the tests run containers with exactly these privileges.
#[test]
fn no_container_is_privileged() -> Result<()> {
    for name in [
        "daemonset.yaml",
        "kube-overlay.yml",
        "uninstall.yml",
        "chart/templates/overlay.yml",
    ] {
        let yaml = deploy(name)?;
        ensure!(!yaml.contains("privileged: true"), "{name}");
        let containers = yaml.matches("\n          image: ").count();
        for word in ["allowPrivilegeEscalation: false", "drop: [ALL]"] {
            let count = yaml.matches(word).count();
            ensure!(
                count == containers && count > 0,
                "{name}: {count} of {containers} have {word}"
            );
        }
    }
    Ok(())
}

/// flanneld's default is every address.
#[test]
fn health_is_told_to_the_node_only() -> Result<()> {
    let unit = deploy("overlayd.service")?;
    let start = unit.lines().find(|line| line.starts_with("ExecStart="));
    let start = start.context("no ExecStart")?;
    ensure!(start.contains(" --healthz-ip 127.0.0.1 "), "{start}");
    let yaml = deploy("daemonset.yaml")?;
    let arguments = yaml.lines().find(|line| line.trim().starts_with("args: ["));
    let arguments = arguments.context("no args")?;
    ensure!(
        arguments.contains(" --healthz-ip=127.0.0.1,"),
        "{arguments}"
    );
    Ok(())
}

/// Checks of the unit's text; the tests in `service` check that the agent works with it.
#[test]
fn the_unit_is_valid_and_hardened() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // systemd checks that the program exists.
    let unit = deploy("overlayd.service")?.replace("/usr/local/bin/overlayd", "/bin/true");
    let path = directory.path().join("overlayd.service");
    fs::write(&path, unit)?;
    let run = |arguments: &[&str]| -> Result<(bool, String)> {
        let output = Command::new("systemd-analyze")
            .args(arguments)
            .arg(&path)
            .output()
            .context("run systemd-analyze")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    };
    // Only this unit is checked, because messages about other units on a machine without systemd do
    // not count.
    let (fine, text) = run(&["verify", "--man=no", "--recursive-errors=no"])?;
    ensure!(fine && !text.contains("overlayd.service"), "{text}");
    // 0 is safest, 10 is a service without any protection.
    let (fine, text) = run(&["security", "--offline=yes", "--threshold=30"])?;
    ensure!(fine, "{text}");
    Ok(())
}
