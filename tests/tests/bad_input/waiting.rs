//! Waits of the plugin that may be in vain: the plugin reports them in time, and the runtime can
//! try again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{StoreKind, wait_until};

use crate::cni::{call, cni_error};
use crate::witness::{all_is_well, talks};
use crate::{PATIENCE, lab};

/// CNI's number for an error after which the runtime should try again later.
const TRY_AGAIN: u64 = 11;
/// STATUS's number for "an ADD would fail".
const UNAVAILABLE: u64 = 50;
/// The directory of addresses.
const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";

#[test]
fn cni_calls_do_not_wait_for_ever() -> Result<()> {
    let lab = lab("cni-wait", 1, StoreKind::Dir)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    let addresses = || node.run(["ls", ADDRESSES]);
    let devices = || node.run(["ls", "/sys/class/net"]);
    let before = (addresses()?, devices()?);
    // This namespace exists as long as its process.
    let sleeper = node.spawn(["unshare", "--net", "sleep", "600"])?;
    let netns = format!("/proc/{}/ns/net", sleeper.process()?.pid);
    let own = node
        .namespace()
        .inside(|| fs::read_link("/proc/thread-self/ns/net"))??;
    wait_until("a namespace", PATIENCE, || {
        fs::read_link(&netns).is_ok_and(|other| other != own)
    })?;
    let variables = |verb| {
        vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "waiting"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth7"),
            ("OVERLAY_DEADLINE", "2"),
        ]
    };
    let plain = r#"{"name":"cbr0","type":"flannel","cniVersion":"1.1.0"}"#;
    let masquerading =
        r#"{"name":"cbr0","type":"flannel","cniVersion":"1.1.0","delegate":{"ipMasq":true}}"#;

    // Another process holds the lock.
    let lock = format!("{ADDRESSES}/lock");
    let holder = node.spawn(["flock", "--no-fork", &lock, "sleep", "600"])?;
    wait_until("the lock to be held", PATIENCE, || {
        node.exec(["flock", "--nonblock", &lock, "true"])
            .is_ok_and(|tried| !tried.status.success())
    })?;
    for (verb, code) in [
        ("ADD", TRY_AGAIN),
        ("DEL", TRY_AGAIN),
        ("STATUS", UNAVAILABLE),
    ] {
        let error = cni_error(&call(&node, &variables(verb), plain.as_bytes())?)?;
        let named = format!("locked by process {} (sleep)", holder.process()?.pid);
        ensure!(
            error["code"] == code && error.to_string().contains(&named),
            "{verb}: {error}"
        );
    }
    holder.stop(Signal::SIGTERM)?;
    ensure!(
        (addresses()?, devices()?) == before,
        "a call left something"
    );

    // iptables hangs.
    let fakes = tempfile::tempdir()?;
    for name in ["iptables", "iptables-restore"] {
        let fake = fakes.path().join(name);
        fs::write(&fake, "#!/bin/sh\nexec sleep 600\n")?;
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", fakes.path().display());
    for (verb, program) in [("ADD", "iptables-restore -w"), ("DEL", "iptables -w")] {
        let mut variables = variables(verb);
        variables.push(("PATH", &path));
        let error = cni_error(&call(&node, &variables, masquerading.as_bytes())?)?;
        let message = error["msg"].as_str().unwrap_or_default();
        ensure!(
            error["code"] == TRY_AGAIN
                && message.starts_with(program)
                && message.contains("not done within 2 s"),
            "{verb}: {error}"
        );
    }
    // The address stays allocated until a DEL succeeds, because it may still be masqueraded.
    let deleted = call(&node, &variables("DEL"), masquerading.as_bytes())?;
    ensure!(deleted.status.success(), "{deleted:?}");
    ensure!(
        (addresses()?, devices()?) == before,
        "a call left something"
    );

    // Afterwards all calls work again.
    for verb in ["ADD", "DEL"] {
        let answer = call(&node, &variables(verb), masquerading.as_bytes())?;
        ensure!(answer.status.success(), "{verb}: {answer:?}");
    }
    sleeper.stop(Signal::SIGTERM)?;
    all_is_well(&lab, talks)
}
