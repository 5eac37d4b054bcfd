//! A password and a key reach no program but etcd.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Options, wait_until};

use crate::{PATIENCE, log_length, log_since};

/// Text that must not appear anywhere.
const MARKER: &str = "s3cr3t-0f-th3-l4b";

#[test]
fn secrets_are_told_to_nobody() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        ..Options::for_test("lp-secret")
    })?;
    let node = lab.node(1);
    let directory = tempfile::tempdir()?;
    let agent = lab.options().bin_dir.join("overlayd");
    // The password is in the environment, as the help advises, and the log has its most verbose
    // level.
    let script = directory.path().join("agent");
    let text = format!(
        "#!/bin/sh\nexport OVERLAY_LOG=trace FLANNELD_ETCD_PASSWORD={MARKER}\nexec {} \"$@\"\n",
        agent.display()
    );
    fs::write(&script, text)?;
    node.run(["chmod", "755", &script.display().to_string()])?;
    let key = directory.path().join("key.pem");
    fs::write(
        &key,
        format!("-----BEGIN PRIVATE KEY-----\n{MARKER}\n-----END PRIVATE KEY-----\n"),
    )?;
    let file = |name: &str| format!("--etcd-{name}file={}", key.display());

    for (what, flags, word, lives) in [
        // An etcd without users reports this, and the agent repeats its request.
        (
            "a password",
            vec!["--etcd-username=root".to_owned()],
            "cannot read the network configuration",
            true,
        ),
        (
            "a key that is none",
            vec![
                "--etcd-endpoints=https://192.168.66.254:2379".to_owned(),
                file("key"),
                file("cert"),
                file("ca"),
            ],
            "etcd",
            true,
        ),
        (
            "a password in an endpoint",
            vec![format!(
                "--etcd-endpoints=http://root:{MARKER}@192.168.66.254:2379"
            )],
            "carries a user name or password",
            false,
        ),
    ] {
        node.stop_agent(Signal::SIGTERM)?;
        let log = log_length(&node);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let agent = node.start_agent_from(&script, &flags)?;
        wait_until(&format!("the agent to tell of {what}"), PATIENCE, || {
            log_since(&node, log).is_ok_and(|log| log.contains(word))
        })
        .with_context(|| node.agent_log_tail())?;
        if lives {
            ensure!(
                agent.process.is_alive(),
                "{what}: {}",
                node.agent_log_tail()
            );
            let line = fs::read(format!("/proc/{}/cmdline", agent.process.pid))?;
            ensure!(
                !String::from_utf8_lossy(&line).contains(MARKER),
                "{what}: in the command line"
            );
            let answer = node.http_get("/readyz")?.body + &node.http_get("/metrics")?.body;
            ensure!(!answer.contains(MARKER), "{what}: {answer}");
        }
        if !lives {
            agent.process.wait_gone(PATIENCE)?;
        }
        ensure!(
            !log_since(&node, log)?.contains(MARKER),
            "{what}: in the log"
        );
        let told = node.exec(["overlayctl", "status", "--output", "json"])?;
        let notes = node.exec(["grep", "-rl", MARKER, "/run/overlay", "/run/flannel"])?;
        ensure!(
            !String::from_utf8_lossy(&told.stdout).contains(MARKER),
            "{what}: in the status"
        );
        ensure!(
            notes.stdout.is_empty(),
            "{what}: in {}",
            String::from_utf8_lossy(&notes.stdout)
        );
    }
    // The help shows environment variables, but not the value of this one.
    let help = format!("FLANNELD_ETCD_PASSWORD={MARKER} overlayd --help");
    let help = node.run(["sh", "-c", &help])?;
    ensure!(
        help.contains("FLANNELD_ETCD_PASSWORD") && !help.contains(MARKER),
        "{help}"
    );
    Ok(())
}

#[test]
fn programs_that_the_agent_runs_do_not_inherit_the_password() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        start_agents: false,
        store: overlay_tests::StoreKind::Dir,
        ..Options::for_test("lp-inherit")
    })?;
    let node = lab.node(1);
    // A script in place of nft, which writes its environment, then calls the real nft.
    let directory = tempfile::tempdir()?;
    let told = directory.path().join("told");
    let nft = directory.path().join("nft");
    let real = node.run(["sh", "-c", "command -v nft"])?;
    fs::write(
        &nft,
        format!(
            "#!/bin/sh\nenv >> {}\nexec {} \"$@\"\n",
            told.display(),
            real.trim()
        ),
    )?;
    let agent = directory.path().join("agent");
    let text = format!(
        "#!/bin/sh\nexport FLANNELD_ETCD_PASSWORD={MARKER} PATH={}:$PATH\nexec {} \"$@\"\n",
        directory.path().display(),
        lab.options().bin_dir.join("overlayd").display()
    );
    fs::write(&agent, text)?;
    for path in [&nft, &agent] {
        node.run(["chmod", "755", &path.display().to_string()])?;
    }
    node.start_agent_from(&agent, &[])?;
    node.wait_ready(PATIENCE)?;
    let told = fs::read_to_string(told)?;
    ensure!(told.contains("PATH=") && !told.contains(MARKER), "{told}");
    Ok(())
}
