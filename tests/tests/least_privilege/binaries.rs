//! Each binary with its set of capabilities, and with the set less one.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, command, fast_path, wait_until};

use crate::{
    CLEANUP, FAST_PATH, KERNEL_PATH, PATIENCE, PLUGIN, STATUS, confined, executable, log_length,
    log_since, script, without,
};

fn ping(lab: &Lab) -> Result<()> {
    let target = lab.pod(2, 1).address().to_string();
    lab.pod(1, 1)
        .run(["ping", "-c3", "-i0.1", "-W2", &target])
        .map(drop)
}

/// Starts node 1's agent with these capabilities only.
fn start(lab: &Lab, directory: &Path, capabilities: &[&str], flags: &[&str]) -> Result<()> {
    let node = lab.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    let agent = lab.options().bin_dir.join("overlayd");
    let script = script(directory, &agent, capabilities)?;
    node.start_agent_from(&script, flags).map(drop)
}

#[test]
fn the_agent_runs_with_its_own_set() -> Result<()> {
    let lab = Lab::up(Options::for_test("lp-agent"))?;
    let directory = tempfile::tempdir()?;
    let node = lab.node(1);
    // There is no state before, so that everything has to be made: programs, maps, device, rules.
    node.stop_agent(Signal::SIGTERM)?;
    node.run(["overlayd", "cleanup", "--store=dir:/run/nowhere"])?;
    start(&lab, directory.path(), FAST_PATH, &["--xdp=on"])?;
    node.wait_ready(PATIENCE)?;
    fast_path::wait_serving(&node)?;
    let before = fast_path::packets(&node, "net_in", "decapsulated")?;
    ping(&lab)?;
    ensure!(
        fast_path::packets(&node, "net_in", "decapsulated")? >= before + 3,
        "not by the fast path"
    );
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("early refusal: by native XDP on eth0"),
        "{answer}"
    );
    let rules = node.run(["iptables-save"])?;
    ensure!(rules.contains("MASQUERADE"), "no rules:\n{rules}");
    // The agent adopts the existing state.
    start(&lab, directory.path(), FAST_PATH, &["--xdp=on"])?;
    node.wait_ready(PATIENCE)?;
    fast_path::wait_serving(&node)?;
    ping(&lab)?;

    start(&lab, directory.path(), KERNEL_PATH, &["--fast-path=off"])?;
    node.wait_ready(PATIENCE)?;
    ping(&lab)?;
    let log = log_since(&node, 0)?;
    ensure!(!log.contains("ermitted"), "{log}");
    Ok(())
}

#[test]
fn an_agent_without_a_capability_says_which() -> Result<()> {
    let lab = Lab::up(Options::for_test("lp-lacks"))?;
    let directory = tempfile::tempdir()?;
    let node = lab.node(1);
    for (lacks, word) in [("bpf", "lacks CAP_BPF"), ("perfmon", "lacks CAP_PERFMON")] {
        start(&lab, directory.path(), &without(FAST_PATH, lacks), &[])?;
        // The kernel path carries all packets.
        node.wait_ready(PATIENCE)?;
        let answer = node.http_get("/readyz")?.body;
        ensure!(
            answer.contains("fast path: down") && answer.contains(word),
            "{answer}"
        );
        ping(&lab)?;
    }
    for (lacks, flags) in [("net_admin", &[][..]), ("net_admin", &["--fast-path=off"])] {
        let log = log_length(&node);
        start(&lab, directory.path(), &without(FAST_PATH, lacks), flags)?;
        wait_until("the agent to give up", PATIENCE, || {
            log_since(&node, log).is_ok_and(|log| log.contains("overlayd lacks CAP_NET_ADMIN"))
        })
        .with_context(|| node.agent_log_tail())?;
    }
    node.stop_agent(Signal::SIGTERM)?;
    Ok(())
}

/// A container that is not privileged sees `/proc/sys` read-only.
#[test]
fn a_read_only_sysctl_comes_with_its_cure() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        ..Options::for_test("lp-proc")
    })?;
    let directory = tempfile::tempdir()?;
    let node = lab.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    let overlayd = lab.options().bin_dir.join("overlayd");
    let confined = script(directory.path(), &overlayd, FAST_PATH)?;
    let contained = directory.path().join("contained");
    let text = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {} \"$@\"",
        confined.display()
    );
    executable(
        &contained,
        &format!("exec unshare --mount sh -c '{text}' sh \"$@\""),
    )?;
    node.start_agent_from(&contained, &[])?;
    node.wait_ready(PATIENCE)?;
    let forwarding = |value| {
        let line = format!("echo {value} > /proc/sys/net/ipv4/ip_forward");
        node.run(["sh", "-c", &line])
    };
    forwarding(0)?;
    let mut last = String::new();
    wait_until("the agent to say what it cannot", PATIENCE, || {
        last = node
            .http_get("/readyz")
            .map_or_else(|error| error.to_string(), |answer| answer.body);
        last.contains("restart the pod") && last.contains("sysctl -w net.ipv4.ip_forward=1")
    })
    .with_context(|| last.clone())?;
    forwarding(1)?;
    node.wait_ready(PATIENCE)?;
    lab.down()
}

/// Runs a command with these capabilities only; returns its exit code and output.
fn run(node: &Node, capabilities: &[&str], line: &str) -> Result<(i32, String)> {
    let words = confined(capabilities);
    let line = format!("{words} {line}");
    let output = node.exec(line.split(' '))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, text(&output.stdout) + &text(&output.stderr)))
}

#[test]
fn tools_run_with_their_own_sets() -> Result<()> {
    let lab = Lab::up(Options::for_test("lp-tools"))?;
    let node = lab.node(1);
    fast_path::wait_serving(&node)?;

    let (code, text) = run(&node, STATUS, "overlayctl status")?;
    ensure!(code == 0 && text.contains("ov_net_in"), "{code}: {text}");
    let (code, text) = run(&node, &without(STATUS, "bpf"), "overlayctl status")?;
    ensure!(code == 3 && text.contains("CAP_BPF"), "{code}: {text}");
    let (code, text) = run(&node, &without(STATUS, "net_admin"), "overlayctl status")?;
    ensure!(
        code == 3 && text.contains("CAP_NET_ADMIN"),
        "{code}: {text}"
    );

    let probe = without(FAST_PATH, "net_raw");
    let (code, text) = run(&node, &probe, "overlayd probe")?;
    ensure!(code == 0, "{code}: {text}");
    for (lacks, word) in [
        ("bpf", "CAP_BPF"),
        ("perfmon", "CAP_PERFMON"),
        ("net_admin", "CAP_NET_ADMIN"),
    ] {
        let (code, text) = run(&node, &without(&probe, lacks), "overlayd probe")?;
        ensure!(
            code == 3 && text.contains(&format!("lacks {word}")),
            "{code}: {text}"
        );
    }

    node.stop_agent(Signal::SIGTERM)?;
    let cleanup = "overlayd cleanup --store=dir:/run/nowhere";
    let (code, text) = run(&node, &without(CLEANUP, "net_admin"), cleanup)?;
    ensure!(
        code != 0 && text.contains("CAP_NET_ADMIN"),
        "{code}: {text}"
    );
    node.start_agent(&[])?;
    node.stop_agent(Signal::SIGTERM)?;
    let (code, text) = run(&node, CLEANUP, cleanup)?;
    ensure!(code == 0, "{code}: {text}");
    let left = node.run([
        "sh",
        "-c",
        "ls /sys/fs/bpf; ip -br link; nft list tables; iptables-save",
    ])?;
    for word in ["flannel.1", "overlay", "MASQUERADE"] {
        ensure!(!left.contains(word), "{word} is left:\n{left}");
    }
    Ok(())
}

/// The status shows which programs filters run, although opening the programs would need another
/// capability.
#[test]
fn status_tells_filters_with_its_own_set() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 1,
        agent_args: vec!["--attach=clsact".to_owned()],
        ..Options::for_test("lp-filters")
    })?;
    let node = lab.node(1);
    fast_path::wait_serving(&node)?;
    let (code, text) = run(&node, STATUS, "overlayctl status")?;
    let is_told = ["ov_net_in", "ov_pod_in", "ov_pod_out", "ov_vtep_out"]
        .iter()
        .all(|program| text.contains(program));
    ensure!(code == 0 && is_told, "{code}: {text}");
    lab.down()
}

#[test]
fn the_plugin_runs_with_its_own_set() -> Result<()> {
    let lab = Lab::up(Options::for_test("lp-cni"))?;
    let directory = tempfile::tempdir()?;
    let node = lab.node(1);
    let plugin = lab.options().bin_dir.join("overlay-cni");
    let install = |node: &Node, capabilities: &[&str]| -> Result<()> {
        let script = script(directory.path(), &plugin, capabilities)?;
        let line = format!("ln -sf {} /opt/cni/bin/flannel", script.display());
        node.run(line.split(' ')).map(drop)
    };
    install(&node, PLUGIN)?;
    let pod = lab.add_pod(1)?;
    let target = lab.pod(2, 1).address().to_string();
    pod.run(["ping", "-c1", "-W2", &target])?;
    let (container, netns) = (pod.container().to_owned(), pod.namespace().path());
    let check = [("prevResult", pod.cni_result().clone())];
    let output = node.cni("CHECK", Some((&container, &netns)), &check)?;
    ensure!(output.status.success(), "{output:?}");
    for (lacks, number) in [("sys_admin", 1), ("net_admin", 2)] {
        install(&lab.node(number), &without(PLUGIN, lacks))?;
        let error = lab.add_pod(number).err().context("a pod all the same")?;
        let wanted = format!("CAP_{}", lacks.to_uppercase());
        ensure!(format!("{error:#}").contains(&wanted), "{error:#}");
    }
    install(&node, PLUGIN)?;
    let device = pod.host_interface()?;
    pod.remove()?;
    let links = command::ip(&format!("-n {} -br link", node.namespace().name()))?;
    ensure!(!links.contains(&device), "{device} is left:\n{links}");
    Ok(())
}
