//! The files of `deploy/`, run for real.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{Lab, Node, Options, Pod, command};
use serde_json::{Value, json};

const CONFLIST: &str = include_str!("../../deploy/10-flannel.conflist");
const DAEMON_SET: &str = include_str!("../../deploy/daemonset.yaml");
/// The directory of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The node's port that leads to the pod, and the pod's port.
const HOST_PORT: u16 = 31_080;
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

/// Calls one plugin of the list as a runtime does.
fn call(node: &Node, plugin: &Path, verb: &str, pod: &Pod, config: &Value) -> Result<Value> {
    let place = node.namespace();
    let mut program = place.command(plugin);
    program
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", PLUGINS)
        .env("CNI_CONTAINERID", pod.container())
        .env("CNI_NETNS", pod.namespace().path())
        .env("CNI_IFNAME", "eth0")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = place.start(&mut program)?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(config.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output().context("wait for a plugin")?;
    let shown = format!("{} {verb}", plugin.display());
    let output = command::require_success(&shown, output)?;
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

/// The second plugin of the list, on the result of the first.
#[test]
fn the_conflist_maps_host_ports_by_the_real_portmap() -> Result<()> {
    let plugin = Path::new(PLUGINS).join("portmap");
    ensure!(
        plugin.exists(),
        "{} is missing: `apt-get install containernetworking-plugins`",
        plugin.display()
    );
    let lab = Lab::up(Options::for_test("portmap"))?;
    let (node, pod) = (lab.node(1), lab.pod(1, 1));
    let list: Value = serde_json::from_str(CONFLIST)?;
    let [first, second] = [&list["plugins"][0], &list["plugins"][1]];
    ensure!(
        first["type"] == "flannel" && second["type"] == "portmap",
        "{list}"
    );
    // The first plugin made the lab's pods with the same configuration.
    let made: Value = serde_json::from_str(&node.read_file("/etc/cni/net.d/10-flannel.conflist")?)?;
    ensure!(made["plugins"][0] == *first, "the lab has {made}");
    let mut config = second.clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    let version = list["cniVersion"].as_str().context("no cniVersion")?;
    config["prevResult"] = pod.previous_result(version);
    let mapping = json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"});
    config["runtimeConfig"] = json!({"portMappings": [mapping]});

    let listener = pod
        .namespace()
        .inside(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    let target = SocketAddr::from((node.underlay_address(), HOST_PORT));
    let reach = |from: &overlay_tests::Namespace| -> Result<SocketAddr> {
        let stream = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE))??;
        drop(stream);
        Ok(listener.accept()?.1)
    };
    let outside = lab.namespace("outside")?;
    ensure!(reach(&outside).is_err(), "the port is mapped already");
    let result = call(&node, &plugin, "ADD", &pod, &config)?;
    ensure!(result["ips"] == pod.cni_result()["ips"], "{result}");
    reach(&outside).context("from beyond the cluster")?;
    reach(&lab.node(2).namespace()).context("from another node")?;
    // Through the node's address, translated on the sender's node or on the other.
    let seen = reach(&lab.pod(2, 1).namespace()).context("from a pod of another node")?;
    println!("portmap shows a remote pod as {seen}");
    call(&node, &plugin, "DEL", &pod, &config)?;
    ensure!(reach(&outside).is_err(), "the port is still mapped");
    lab.down()
}

/// The script of an init container: the lines of its block, without their indentation.
fn script(container: &str) -> Result<String> {
    let name = format!("- name: {container}\n");
    let (_, after) = DAEMON_SET.split_once(&name).context("no such container")?;
    let (_, block) = after.split_once("- |\n").context("no script")?;
    let indent = block.len() - block.trim_start().len();
    let lines = block
        .lines()
        .take_while(|line| line.len() - line.trim_start().len() >= indent);
    Ok(lines
        .map(|line| &line[indent..])
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The command of an init container without a script, as one line for a shell.
fn run_line(container: &str) -> Result<String> {
    let name = format!("- name: {container}\n");
    let (_, after) = DAEMON_SET.split_once(&name).context("no such container")?;
    let (_, command) = after.split_once("command: [").context("no command")?;
    let (command, _) = command.split_once(']').context("no end of the command")?;
    Ok(command.replace(", ", " "))
}

#[test]
fn the_init_containers_do_what_they_are_for() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        start_agents: false,
        ..Options::for_test("init")
    })?;
    let node = lab.node(1);
    let run = |script: &str| node.run(["sh", "-ec", script]);
    run("echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    ensure!(
        DAEMON_SET.contains("{ name: sysctls, hostPath: { path: /proc/sys/net,")
            && DAEMON_SET.contains("{ name: sysctls, mountPath: /host/net }"),
        "the settings are mounted elsewhere"
    );
    run(&script("sysctls")?.replace("/host/net/", "/proc/sys/net/"))?;
    for setting in [
        "net/ipv4/ip_forward",
        "net/netfilter/nf_conntrack_tcp_be_liberal",
    ] {
        let value = node.read_file(format!("/proc/sys/{setting}"))?;
        ensure!(value.trim() == "1", "{setting} is {value}");
    }
    let tables = run("nft list tables")?;
    ensure!(!tables.contains("overlay_init"), "{tables}");

    // The image's plugin, beside the node's own plugins.
    let plugin = lab.options().bin_dir.join("overlay-cni");
    let install = run_line("install-cni")?.replace("/opt/overlay/", "/run/image/");
    run(&format!(
        "mkdir -p /run/image /opt/cni/bin /etc/cni/net.d; rm -f /opt/cni/bin/flannel \
        /etc/cni/net.d/*
         cp {} /run/image/overlay-cni; ls /opt/cni/bin/portmap",
        plugin.display()
    ))?;
    // Twice, because the second run finds the files of the first.
    for _ in 0..2 {
        run(&install)?;
        run("cmp /run/image/overlay-cni /opt/cni/bin/flannel")?;
        let list: Value =
            serde_json::from_str(&node.read_file("/etc/cni/net.d/10-flannel.conflist")?)?;
        let wanted: Value = serde_json::from_str(CONFLIST)?;
        ensure!(list["plugins"] == wanted["plugins"], "installed: {list}");
        let left = run("find /opt/cni/bin /etc/cni/net.d -name '.*'")?;
        ensure!(left.is_empty(), "left behind: {left}");
        let version =
            run(r#"echo '{"cniVersion":"1.0.0"}' | CNI_COMMAND=VERSION /opt/cni/bin/flannel"#)?;
        ensure!(version.contains("supportedVersions"), "{version}");
    }
    lab.down()
}
