//! Files and listening sockets are no more open than necessary.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pins::{LINKS, MAPS, PINS};
use overlay_tests::{Lab, Node, Options, StoreKind};

/// Mode, user and group of a path, as numbers.
fn mode(node: &Node, path: &str) -> Result<String> {
    Ok(node
        .run(["stat", "-c", "%a %u:%g", path])?
        .trim()
        .to_owned())
}

#[test]
fn files_and_sockets_are_tight() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        store: StoreKind::Dir,
        ..Options::for_test("lp-files")
    })?;
    let node = lab.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    // The file mode creation mask does not matter.
    let agent = lab.options().bin_dir.join("overlayd");
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("agent");
    std::fs::write(
        &script,
        format!("#!/bin/sh\numask 0\nexec {} \"$@\"\n", agent.display()),
    )?;
    node.run(["chmod", "755", &script.display().to_string()])?;
    node.run(["rm", "-rf", "/run/overlay", "/run/flannel"])?;
    node.run(["rm", "-rf", "/sys/fs/bpf/overlay"])?;
    node.start_agent_from(&script, &["--healthz-ip=127.0.0.1"])?;
    let peers = format!("{MAPS}/ov_peers4");
    overlay_tests::wait_until("the agent", crate::PATIENCE, || {
        let answer = node.exec(["test", "-f", "/run/flannel/subnet.env"]);
        let pinned = node.exec(["test", "-e", &peers]);
        answer.is_ok_and(|it| it.status.success()) && pinned.is_ok_and(|it| it.status.success())
    })?;
    let mut wrong = Vec::new();
    for (path, wanted) in [
        // Other programs read the file, as with flannel's.
        ("/run/flannel/subnet.env", "644 0:0"),
        ("/run/overlay", "755 0:0"),
        // A process that can open the file can lock it, and keep agents from starting.
        ("/run/overlay/agent.lock", "600 0:0"),
        ("/run/overlay/agent.json", "600 0:0"),
        ("/sys/fs/bpf/overlay", "700 0:0"),
        (&PINS.to_string(), "700 0:0"),
        (&MAPS.to_string(), "700 0:0"),
        (&LINKS.to_string(), "700 0:0"),
        (&peers, "600 0:0"),
    ] {
        let found = mode(&node, path)?;
        if found != wanted {
            wrong.push(format!("{path}: {found} instead of {wanted}"));
        }
    }
    let others = node.run([
        "sh",
        "-c",
        "find /var/lib/cni /run/overlay /run/flannel -mindepth 1 -perm /022 ! -type l",
    ])?;
    ensure!(
        others.is_empty() && wrong.is_empty(),
        "{}\nwritable by others:\n{others}",
        wrong.join("\n")
    );
    let listening = node.run(["ss", "-Hltn"])?;
    let ports: Vec<_> = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    ensure!(ports == ["127.0.0.1:8081"], "listening: {ports:?}");
    Ok(())
}
