//! The files of an installation, and their use by runtimes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::Options;
use overlay_tests::containers::{Containerd, image};
use serde_json::{Value, json};

use crate::{Attachment, lab, taken};

fn install(directory: &Path, more: &[&str]) -> Result<Output> {
    let mut install = Command::new(Options::default().bin_dir.join("overlay-cni"));
    install
        .arg("install")
        .arg("--conf-dir")
        .arg(directory.join("net.d"))
        .arg("--bin-dir")
        .arg(directory.join("bin"))
        .args(more);
    install.output().context("run overlay-cni install")
}

fn plugin(directory: &Path, name: &str, answer: &str) -> Result<()> {
    let path = directory.join("bin").join(name);
    fs::create_dir_all(directory.join("bin"))?;
    fs::write(&path, format!("#!/bin/sh\n{answer}\n"))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn speaks(versions: &[&str]) -> String {
    let answer = json!({"cniVersion": "1.0.0", "supportedVersions": versions});
    format!("[ \"$CNI_COMMAND\" = VERSION ] && echo '{answer}'")
}

fn written(directory: &Path) -> Result<Value> {
    let path = directory.join("net.d/10-flannel.conflist");
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

#[test]
fn the_list_is_of_the_highest_version_that_all_plugins_speak() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    let missing = install(place, &[])?;
    let complaint = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(
        !missing.status.success() && complaint.contains("portmap"),
        "{missing:?}"
    );
    for (spoken, one, offered) in [
        (&["0.4.0", "1.0.0"][..], "1.0.0", Value::Null),
        (&["1.0.0", "1.1.0"], "1.0.0", json!(["1.0.0", "1.1.0"])),
        (&["0.3.1", "0.4.0", "9.0.0"], "0.4.0", Value::Null),
    ] {
        plugin(place, "portmap", &speaks(spoken))?;
        let output = install(place, &[])?;
        ensure!(output.status.success(), "{output:?}");
        let list = written(place)?;
        ensure!(
            list["cniVersion"] == one && list["cniVersions"] == offered,
            "{spoken:?}: {list}"
        );
        ensure!(list["plugins"][1]["type"] == "portmap", "{list}");
    }
    // The plugin is a copy that runs, and a second installation changes nothing.
    let state = || -> Result<_> {
        let id = |path: &str| fs::metadata(place.join(path)).map(|file| (file.ino(), file.mode()));
        Ok((id("bin/flannel")?, id("net.d/10-flannel.conflist")?))
    };
    let before = state()?;
    let again = Command::new(place.join("bin/flannel"))
        .args(["install", "--conf-dir"])
        .arg(place.join("net.d"))
        .arg("--bin-dir")
        .arg(place.join("bin"))
        .output()?;
    ensure!(again.status.success() && state()? == before, "{again:?}");
    let names: Vec<_> = fs::read_dir(place.join("net.d"))?.flatten().collect();
    ensure!(names.len() == 1, "{names:?}");

    for (answer, word) in [
        ("exit 1", "does not tell"),
        (speaks(&["9.0.0"]).as_str(), "no version"),
    ] {
        plugin(place, "portmap", answer)?;
        let output = install(place, &[])?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{output:?}");
        ensure!(complaint.contains(word), "{complaint}");
    }
    ensure!(
        written(place)?["cniVersion"] == "0.4.0",
        "a failure changed the list"
    );
    Ok(())
}

/// Where another program writes the configuration, no other plugin is required either.
#[test]
fn the_plugin_alone_is_installed_where_asked_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    let output = install(place, &["--plugin-only"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.lines().count() == 1,
        "{output:?}"
    );
    ensure!(said.starts_with("installed "), "{said}");
    ensure!(!place.join("net.d").exists(), "a configuration was written");
    let plugin = Command::new(place.join("bin/flannel"))
        .arg("--version")
        .output()?;
    ensure!(plugin.status.success(), "{plugin:?}");
    let both = install(place, &["--plugin-only", "--list=/nowhere"])?;
    ensure!(!both.status.success(), "{both:?}");
    Ok(())
}

/// A runtime that does not know the latest version can still use the list.
#[test]
fn an_older_runtime_works_with_what_is_installed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let archive = image(directory.path())?;
    let lab = lab("installed", 1, "auto")?;
    let node = lab.node(1);
    let list = node.read_file("/etc/cni/net.d/10-flannel.conflist")?;
    ensure!(
        list.contains("cniVersions") && list.contains("1.1.0"),
        "{list}"
    );
    let before = taken(&node)?;
    let runtime = Containerd::start(&node, &archive)?;
    let container = runtime.run("web", &["sh", "-c", "exec httpd -f -p 80 -h /www"])?;
    let address = runtime.address(&container)?;
    lab.pod(1, 1).run(["ping", "-c1", "-W2", &address])?;
    runtime.end(container)?;
    ensure!(taken(&node)? == before, "an address stays taken");
    lab.down()
}

/// Calls as libcni makes them: with the list's name and version, and with the valid attachments
/// under both names of the key.
#[test]
fn a_runtime_that_knows_them_gets_status_and_garbage_collection() -> Result<()> {
    let lab = lab("status", 1, "off")?;
    let node = lab.node(1);
    let conf = json!({"name": "cbr0", "type": "flannel", "cniVersion": "1.1.0"});
    let dead = Attachment::new(&lab, 1, "dead")?;
    dead.answer("STATUS", &conf, &[])?;
    let before = taken(&node)?;
    dead.answer("ADD", &conf, &[])?;
    let valid: Vec<_> = node
        .pods()
        .iter()
        .map(|pod| json!({"containerID": pod.container(), "ifname": "eth0"}))
        .collect();
    let mut collecting = conf.clone();
    collecting["cni.dev/attachments"] = json!(valid);
    collecting["cni.dev/valid-attachments"] = json!(valid);
    dead.answer("GC", &collecting, &[])?;
    ensure!(
        taken(&node)? == before,
        "the dead pod's address stays taken"
    );
    lab.pod(1, 1)
        .run(["ping", "-c1", "-W2", &lab.pod(1, 2).address().to_string()])?;

    // Without the agent's file no pod can be added; existing pods keep working.
    node.stop_agent(nix::sys::signal::Signal::SIGTERM)?;
    node.run(["mv", "/run/flannel/subnet.env", "/run/flannel/away"])?;
    let error = dead.error("STATUS", &conf, &[])?;
    ensure!(error["code"] == 50, "{error}");
    // Runtimes pass both texts to the kubelet.
    let told = format!("{}; {}", error["msg"], error["details"]).replace('"', "");
    let begin = "pods cannot be added now; cannot read /run/flannel/subnet.env: ";
    let end = "check that overlayd runs and reaches its store";
    ensure!(told.starts_with(begin) && told.ends_with(end), "{told}");
    node.run(["ip", "link", "set", "cni0", "down"])?;
    let error = dead.error("STATUS", &conf, &[])?;
    ensure!(error["code"] == 51, "{error}");
    lab.down()
}
