//! Calls that other programs delay, or that come late.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::wait_until;
use serde_json::json;

use crate::{Attachment, NOTICED, lab, taken};

/// Calls that remove a pod do not wait for packet filters that the plugin never wrote to.
#[test]
fn a_pod_that_was_not_masqueraded_goes_without_the_lock_of_iptables() -> Result<()> {
    let lab = lab("xtables", 1, "off")?;
    let node = lab.node(1);
    // The variant of iptables that takes the lock.
    let legacy = tempfile::tempdir()?;
    for name in ["iptables", "iptables-restore"] {
        symlink("/usr/sbin/xtables-legacy-multi", legacy.path().join(name))?;
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", legacy.path().display());
    let slow = [("PATH", path.as_str()), ("OVERLAY_DEADLINE", "3")];
    let holder = node.spawn(["flock", "--no-fork", "/run/xtables.lock", "sleep", "600"])?;
    wait_until("the lock to be held", NOTICED, || {
        node.exec(["flock", "--nonblock", "/run/xtables.lock", "true"])
            .is_ok_and(|tried| !tried.status.success())
    })?;
    let conf = json!({"name": "cbr0", "type": "flannel", "cniVersion": "1.1.0"});
    let before = taken(&node)?;
    let pod = Attachment::new(&lab, 1, "slow")?;
    pod.answer("ADD", &conf, &slow)?;
    pod.answer("DEL", &conf, &slow)?;
    ensure!(taken(&node)? == before, "the address stays taken");

    // Garbage collection and the undoing of a failed ADD do not wait either.
    pod.answer("ADD", &conf, &slow)?;
    let valid: Vec<_> = node
        .pods()
        .iter()
        .map(|pod| json!({"containerID": pod.container(), "ifname": "eth0"}))
        .collect();
    let mut collecting = conf.clone();
    collecting["cni.dev/valid-attachments"] = json!(valid);
    pod.answer("GC", &collecting, &slow)?;
    let mut failing = conf.clone();
    failing["ipam"] = json!({"routes": [{"dst": "192.168.0.0/16", "gw": "203.0.113.1"}]});
    let error = pod.error("ADD", &failing, &slow)?;
    ensure!(error.to_string().contains("route"), "{error}");
    ensure!(taken(&node)? == before, "an address stays taken");
    holder.stop(Signal::SIGTERM)?;
    lab.down()
}

/// The plugin removes its own rules, whichever program masquerades at the time of DEL.
#[test]
fn a_masqueraded_pod_takes_its_rules_along() -> Result<()> {
    let lab = lab("masq", 1, "off")?;
    let node = lab.node(1);
    let pod = Attachment::new(&lab, 1, "masked")?;
    let mut conf = json!({
        "name": "cbr0", "type": "flannel", "cniVersion": "1.1.0", "delegate": {"ipMasq": true},
    });
    let rules = || node.run(["iptables", "-w", "-t", "nat", "-S"]);
    pod.answer("ADD", &conf, &[])?;
    ensure!(rules()?.contains("OVERLAY-veth"), "not masqueraded");
    conf["delegate"] = json!({});
    pod.answer("DEL", &conf, &[])?;
    ensure!(!rules()?.contains("OVERLAY-veth"), "{}", rules()?);
    lab.down()
}

/// A runtime that gives an ADD up calls DEL; the ADD, still running, must not continue with an
/// address that is no longer its own.
#[test]
fn an_add_that_lost_its_address_is_undone() -> Result<()> {
    let lab = lab("lost", 1, "off")?;
    let node = lab.node(1);
    let before = (taken(&node)?, node.run(["ls", "/sys/class/net"])?);
    // The ADD waits at its masquerading; meanwhile its address is removed.
    let fakes = tempfile::tempdir()?;
    let fake = fakes.path().join("iptables-restore");
    let thief = format!(
        "#!/bin/sh\ncat >/dev/null\ngrep -l '^late' {}/* | xargs rm\n",
        crate::ADDRESSES
    );
    fs::write(&fake, thief)?;
    fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", fakes.path().display());
    let conf = json!({
        "name": "cbr0", "type": "flannel", "cniVersion": "1.1.0", "delegate": {"ipMasq": true},
    });
    let pod = Attachment::new(&lab, 1, "late")?;
    let error = pod.error("ADD", &conf, &[("PATH", &path)])?;
    ensure!(error.to_string().contains("DEL"), "{error}");
    let after = (taken(&node)?, node.run(["ls", "/sys/class/net"])?);
    ensure!(after == before, "{after:?} instead of {before:?}");
    lab.down()
}
