//! Whatever is wrong on the outside is told clearly, costs no pod its connection and brings nobody down.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, Pod, Running, StoreKind, wait_until};
use serde_json::{Value, json};

/// How long an agent may take to tell what it thinks of something.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a program may run that must end by itself, in seconds.
const END: &str = "10";
/// Where flannel keeps its leases in etcd.
const SUBNETS: &str = "/coreos.com/network/subnets";

fn lab(name: &str, nodes: usize, store: StoreKind) -> Result<Lab> {
    Lab::up(Options {
        nodes,
        store,
        ..Options::for_test(name)
    })
}

/// A conversation between two pods that must not lose a packet.
struct Talk(Running, String);

impl Talk {
    fn begin(from: &Pod, to: &Pod) -> Result<Self> {
        let name = format!("{} to {}", from.name(), to.name());
        let target = to.address().to_string();
        Ok(Self(from.spawn(["ping", "-q", "-i0.02", &target])?, name))
    }

    fn end(self) -> Result<()> {
        let output = self.0.stop(Signal::SIGINT)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains(" 0% packet loss"), "{}: {text}", self.1);
        Ok(())
    }
}

/// Conversations within a node and across nodes.
fn talks(lab: &Lab) -> Result<Vec<Talk>> {
    let mut talks = vec![Talk::begin(&lab.pod(1, 1), &lab.pod(1, 2))?];
    if lab.nodes().len() > 1 {
        talks.push(Talk::begin(&lab.pod(1, 1), &lab.pod(2, 1))?);
        talks.push(Talk::begin(&lab.pod(2, 2), &lab.pod(1, 2))?);
    }
    Ok(talks)
}

/// Ends the conversations, and looks for panics in every log.
fn all_is_well(lab: &Lab, talks: Vec<Talk>) -> Result<()> {
    talks.into_iter().try_for_each(Talk::end)?;
    for node in lab.nodes() {
        let log = fs::read_to_string(node.agent_log()).unwrap_or_default();
        ensure!(!log.contains("panicked"), "{}", node.agent_log_tail());
    }
    Ok(())
}

/// What the agent has logged since `start`.
fn log_since(node: &Node, start: usize) -> String {
    let log = fs::read(node.agent_log()).unwrap_or_default();
    String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
}

fn log_length(node: &Node) -> usize {
    fs::metadata(node.agent_log()).map_or(0, |it| it.len() as usize)
}

/// Waits until the agent has logged all of `words` since `start`.
fn wait_log(node: &Node, start: usize, words: &[&str]) -> Result<()> {
    let told = || {
        let log = log_since(node, start);
        words.iter().all(|word| log.contains(word))
    };
    wait_until(&format!("a log with {words:?}"), PATIENCE, told)
        .with_context(|| log_since(node, start))
}

/// The leases that a node does not believe, as its status tells them.
fn rejected(node: &Node) -> Result<BTreeMap<String, String>> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let list = status["rejected"].as_array().context("no list")?.clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .map(|it| (text(&it["subject"]), text(&it["reason"])))
        .collect())
}

fn lease(public_ip: &str, mac: &str) -> String {
    let data = json!({"VNI": 1, "VtepMAC": mac});
    json!({"PublicIP": public_ip, "BackendType": "vxlan", "BackendData": data}).to_string()
}

#[test]
fn hostile_leases_are_refused_by_name_and_cost_nobody_anything() -> Result<()> {
    let lab = lab("bad-lease", 2, StoreKind::Etcd)?;
    let (first, second) = (lab.node(1), lab.node(2));
    let talks = talks(&lab)?;
    let own = first.subnet()?;
    let other = second.subnet()?;
    let mac = "02:00:00:00:00:77";
    let good = "192.168.66.77";
    let link = first.json(["ip", "-j", "link", "show", "flannel.1"])?;
    let own_mac = link[0]["address"]
        .as_str()
        .context("no address")?
        .to_owned();
    let half = |net: ipnet::Ipv4Net| format!("{}-25", net.network());
    let whole = |net: ipnet::Ipv4Net| format!("{}-{}", net.network(), net.prefix_len());
    ensure!(whole(own) != whole(other), "two nodes with one subnet");
    let hostile = [
        (
            "10.244.240.0-24",
            lease("127.0.0.1", mac),
            "not the address of one host",
        ),
        (
            "10.244.241.0-24",
            lease("239.1.1.1", mac),
            "not the address of one host",
        ),
        (
            "10.244.242.0-24",
            lease("255.255.255.255", mac),
            "not the address of one host",
        ),
        (
            "10.244.243.0-24",
            lease("0.0.0.0", mac),
            "not the address of one host",
        ),
        (
            "10.244.244.0-24",
            lease("10.244.9.9", mac),
            "inside the overlay",
        ),
        (
            "10.244.245.0-24",
            lease("192.168.66.1", mac),
            "this node's own",
        ),
        ("10.9.0.0-24", lease(good, mac), "not inside the network"),
        ("0.0.0.0-0", lease(good, mac), "not inside the network"),
        ("10.244.246.0-32", lease(good, mac), "too small"),
        ("10.244.0.0-16", lease(good, mac), "overlaps"),
        (&half(own), lease(good, mac), "this node's own"),
        (&half(other), lease(good, mac), "overlaps the lease"),
        (
            "10.244.247.0-24",
            lease(good, &own_mac),
            "already that of 192.168.66.1",
        ),
        (
            "10.244.248.0-24",
            lease(good, "01:00:5e:00:00:01"),
            "not that of one device",
        ),
        ("10.244.249.0-24", lease(good, "nonsense"), "backend data"),
        (
            "10.244.250.0-24",
            lease(good, mac).replace("\"VNI\":1", "\"VNI\":99999999999"),
            "VNI",
        ),
        (
            "10.244.251.0-24",
            lease(good, mac).replace("\"VNI\":1", "\"VNI\":-1"),
            "backend data",
        ),
        (
            "10.244.252.0-24",
            lease(good, mac).replace("vxlan", "host-gw"),
            "host-gw",
        ),
        ("10.244.253.0-24", "{".to_owned(), "not a lease"),
        ("10.244.254.0-24", "[]".to_owned(), "not a lease"),
        (
            "10.244.255.0-24",
            r#"{"PublicIP":["a"]}"#.to_owned(),
            "not a lease",
        ),
        ("10.244.239.0-24", "\u{1b}[2J\n\0".to_owned(), "not a lease"),
        (
            "10.244.238.0-24",
            format!(r#"{{"PublicIP":"{}"}}"#, "9".repeat(100_000)),
            "not a lease",
        ),
        ("nonsense", lease(good, mac), "not a subnet"),
        ("10.244.300.0-24", lease(good, mac), "not a subnet"),
        ("10.244.1.0-99", lease(good, mac), "not a subnet"),
        ("evil\u{1b}[2J\nkey", lease(good, mac), "not a subnet"),
        ("10.244.1.0-24/deeper", lease(good, mac), "not a subnet"),
    ];
    let log = log_length(&first);
    for (key, value, _) in &hostile {
        // By standard input: a value may be longer than a command line.
        put(&lab, &format!("{SUBNETS}/{key}"), value)?;
    }
    wait_until("all to be refused", PATIENCE, || {
        rejected(&first).is_ok_and(|it| it.len() == hostile.len())
    })
    .with_context(|| format!("{:#?}", rejected(&first)))?;
    let told = rejected(&first)?;
    for (key, _, word) in &hostile {
        let shown = key.replace('\u{1b}', "\\u{1b}").replace('\n', "\\n");
        let reason = told
            .get(&shown)
            .with_context(|| format!("{shown} in {told:#?}"))?;
        ensure!(reason.contains(word), "{key:?}: {reason}");
        ensure!(reason.len() < 1000, "{key:?}: {} bytes", reason.len());
    }
    let answer = first.http_get("/readyz")?;
    ensure!(answer.status == 200, "{}", answer.body);
    ensure!(
        answer
            .body
            .contains("10.244.240.0-24: the public IP 127.0.0.1"),
        "{}",
        answer.body
    );
    for text in [
        answer.body,
        log_since(&first, log),
        first.run(["overlayctl", "status"])?,
    ] {
        ensure!(
            !text.contains('\u{1b}'),
            "the store writes on the terminal: {text:?}"
        );
        ensure!(text.contains("10.244.244.0-24"), "{text}");
    }
    ensure!(first.overlay_routes()? == 1, "a route to a hostile lease");

    // What is mended is believed.
    put(
        &lab,
        &format!("{SUBNETS}/10.244.240.0-24"),
        &lease(good, mac),
    )?;
    wait_until("the mended lease", PATIENCE, || {
        first.overlay_routes().is_ok_and(|it| it == 2)
    })?;
    lab.etcdctl(&["del", &format!("{SUBNETS}/10.244.240.0-24")])?;
    wait_until("its end", PATIENCE, || {
        first.overlay_routes().is_ok_and(|it| it == 1)
    })?;
    // An agent that starts among them takes its own lease again.
    first.stop_agent(Signal::SIGKILL)?;
    first.start_agent(&[])?;
    ensure!(first.subnet()? == own, "the node lost its subnet");
    ensure!(first.overlay_routes()? == 1, "a route to a hostile lease");
    all_is_well(&lab, talks)
}

/// Puts a key into etcd; the value by standard input.
fn put(lab: &Lab, key: &str, value: &str) -> Result<()> {
    let namespace = lab.namespace("store")?;
    let mut command = namespace.command("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", lab.store_endpoint()))
        .args(["put", key]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = namespace.start(&mut command)?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(value.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn thousands_of_leases_are_served_and_forgotten() -> Result<()> {
    const MANY: usize = 2000;
    let lab = Lab::up(Options {
        store: StoreKind::Dir,
        network: json!({"Network": "10.0.0.0/8", "SubnetMax": "10.1.0.0", "Backend": {"Type": "vxlan"}}),
        ..Options::for_test("bad-many")
    })?;
    let first = lab.node(1);
    let talks = talks(&lab)?;
    let leases = lab.directory().join("store/static");
    fs::create_dir_all(&leases)?;
    let name = |i: usize| leases.join(format!("10.{}.{}.0-24.json", 100 + i / 256, i % 256));
    for i in 0..MANY {
        let (high, low) = (i / 250, i % 250 + 1);
        let mac = format!("02:00:00:01:{high:02x}:{low:02x}");
        // Written aside first, as whoever shares the directory has to.
        let aside = leases.join(".aside");
        fs::write(&aside, lease(&format!("172.20.{high}.{low}"), &mac))?;
        fs::rename(&aside, name(i))?;
    }
    let routes =
        |wanted: usize| move |node: &Node| node.overlay_routes().is_ok_and(|it| it == wanted);
    wait_until("all routes", 6 * PATIENCE, || routes(MANY + 1)(&first))
        .with_context(|| format!("{:?}", first.overlay_routes()))?;
    // A peer with an MTU is one that the fast path serves.
    let served = || -> Result<usize> {
        let status = first.json(["overlayctl", "status", "--output", "json"])?;
        let peers = status["peers"].as_array().context("no peers")?;
        Ok(peers.iter().filter(|peer| peer["mtu"].is_number()).count())
    };
    wait_until("the fast path to serve all", 6 * PATIENCE, || {
        served().is_ok_and(|count| count == MANY + 1)
    })
    .with_context(|| format!("{:?}", served()))?;
    first.wait_ready(6 * PATIENCE)?;
    for i in 0..MANY {
        fs::remove_file(name(i))?;
    }
    wait_until("the routes' end", 6 * PATIENCE, || routes(1)(&first))
        .with_context(|| format!("{:?}", first.overlay_routes()))?;
    all_is_well(&lab, talks)
}

#[test]
fn a_bad_network_configuration_is_explained_until_it_is_mended() -> Result<()> {
    let lab = lab("bad-conf", 1, StoreKind::Dir)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    let config = lab.directory().join("store/config");
    let good = fs::read_to_string(&config)?;
    let subnet = node.subnet()?;
    node.stop_agent(Signal::SIGTERM)?;
    fs::write(&config, "{")?;
    let mut log = log_length(&node);
    node.start_agent_unready(&[])?;
    for (text, words) in [
        ("{", &["not valid JSON"][..]),
        ("", &["not valid JSON"]),
        ("null", &["not valid JSON"]),
        (r#"{"Network": 5}"#, &["not valid JSON"]),
        (r#"{"Network": "10.244.0.0/99"}"#, &["not valid JSON"]),
        ("{}", &["has no Network", "for example"]),
        (r#"{"Network": "10.244.0.0/29"}"#, &["too small"]),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.5.0"}"#,
            &["SubnetMin 10.244.9.0 is above SubnetMax 10.244.5.0"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.9.0.0"}"#,
            &["not inside the network"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetLen": 31}"#,
            &["SubnetLen 31 is too long"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "SubnetLen": 300}"#,
            &["not valid JSON"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}"#,
            &["wireguard", "not supported", "vxlan"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 99999999}}"#,
            &["VNI 99999999 is out of range"],
        ),
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 99999}}"#,
            &["not valid JSON"],
        ),
    ] {
        fs::write(&config, text)?;
        wait_log(&node, log, words).with_context(|| text.to_owned())?;
        log = log_length(&node);
    }
    ensure!(
        node.http_get("/readyz")?.status == 503,
        "ready without a configuration"
    );
    ensure!(
        node.http_get("/livez")?.status == 200,
        "not alive without a configuration"
    );
    fs::remove_file(&config)?;
    wait_log(&node, log, &["network configuration", "config"])?;
    fs::write(&config, good)?;
    node.wait_ready(PATIENCE)?;
    ensure!(node.subnet()? == subnet, "the node lost its subnet");
    all_is_well(&lab, talks)
}

#[test]
fn a_bad_environment_is_explained_and_survived() -> Result<()> {
    let lab = lab("bad-env", 2, StoreKind::Etcd)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    flags_are_explained(&node)?;
    subnet_file(&node)?;
    pins(&node)?;
    permissions(&lab, &node)?;
    store_is_away(&lab, &node)?;
    all_is_well(&lab, talks)
}

/// Runs a second agent that must give up by itself, and returns what it says.
fn gives_up(node: &Node, flags: &[&str], words: &[&str]) -> Result<()> {
    let mut line = vec!["timeout", END, "overlayd"];
    line.extend(flags);
    let output = node.exec(line)?;
    let told = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    ensure!(
        !matches!(code, Some(0 | 101 | 124) | None),
        "{flags:?}: {code:?}: {told}"
    );
    ensure!(!told.contains("panicked"), "{flags:?}: {told}");
    for word in words {
        ensure!(told.contains(word), "{flags:?}: no {word:?} in: {told}");
    }
    Ok(())
}

fn flags_are_explained(node: &Node) -> Result<()> {
    let aside = "--run-dir=/run/aside";
    gives_up(node, &["--no-such-flag"], &["--no-such-flag", "--help"])?;
    gives_up(node, &["--fast-path=perhaps"], &["perhaps", "auto", "off"])?;
    gives_up(
        node,
        &["--store=nonsense"],
        &["nonsense", "etcd", "dir:PATH"],
    )?;
    gives_up(
        node,
        &["--kube-subnet-mgr"],
        &["kube-subnet-mgr", "not supported"],
    )?;
    gives_up(
        node,
        &["--store=dir:/run/nothing"],
        &["another overlayd", "/run/overlay"],
    )?;
    gives_up(
        node,
        &[
            aside,
            "--store=dir:/run/nothing",
            "--healthz-port=8081",
            "--healthz-ip=0.0.0.0",
        ],
        &["0.0.0.0:8081", "in use", "--healthz-port"],
    )?;
    // A wrong device is told with those that there are.
    let store = "/run/aside-store";
    node.run(["mkdir", "-p", store])?;
    let write = format!("echo '{{\"Network\":\"10.9.0.0/16\"}}' > {store}/config");
    node.run(["sh", "-c", &write])?;
    let store = format!("--store=dir:{store}");
    gives_up(
        node,
        &[aside, &store, "--healthz-port=0", "--iface=eth7"],
        &["eth7", "eth0"],
    )?;
    gives_up(
        node,
        &[aside, &store, "--healthz-port=0", "--iface-regex=("],
        &["--iface-regex", "("],
    )
}

/// A file that the node's network needs is nonsense.
fn subnet_file(node: &Node) -> Result<()> {
    const FILE: &str = "/run/flannel/subnet.env";
    let good = node.read_file(FILE)?;
    for text in [
        "",
        "nonsense",
        "FLANNEL_SUBNET=10.244.999.1/24\n",
        "\\0\\377\\0",
    ] {
        // Under a running agent it is mended in its next round.
        node.run(["sh", "-c", &format!("printf '{text}' > {FILE}")])?;
        wait_until("the file to be mended", 2 * PATIENCE, || {
            node.read_file(FILE).is_ok_and(|text| text == good)
        })
        .with_context(|| format!("{text:?}"))?;
        // Without one, the plugin says so and who can help.
        node.stop_agent(Signal::SIGTERM)?;
        node.run(["sh", "-c", &format!("printf '{text}' > {FILE}")])?;
        let status = node.cni("STATUS", None, &[("cniVersion", json!("1.1.0"))])?;
        let error = cni_error(&status).with_context(|| format!("{text:?}"))?;
        let told = format!("{} {}", error["msg"], error["details"]);
        ensure!(told.contains(FILE) && told.contains("overlayd"), "{told}");
        // An agent that starts finds its subnet by its lease.
        node.start_agent(&[])?;
        ensure!(
            node.read_file(FILE)? == good,
            "the node has another subnet now"
        );
    }
    Ok(())
}

/// What is pinned is not what the agent left.
fn pins(node: &Node) -> Result<()> {
    const MAPS: &str = "/sys/fs/bpf/overlay/v1/maps";
    let swap = |script: &str| -> Result<usize> {
        node.stop_agent(Signal::SIGTERM)?;
        node.run(["sh", "-ec", script])?;
        let log = log_length(node);
        node.start_agent(&[])?;
        Ok(log)
    };
    let log = swap(&format!(
        "rm {MAPS}/ov_peers; bpftool map create {MAPS}/ov_peers type hash key 8 value 8 entries 3 name ov_peers"
    ))?;
    wait_log(node, log, &["ov_peers", "key 8 B", "key 4 B"])?;
    let log = swap(&format!(
        "for map in ov_config ov_pods ov_counters; do rm {MAPS}/$map; \
         bpftool map create {MAPS}/$map type array key 4 value 4 entries 1 name $map; done"
    ))?;
    wait_log(node, log, &["ov_config", "ov_pods", "ov_counters"])?;
    // A pin that is no map: a program.
    let log = swap(&format!(
        "rm {MAPS}/ov_vteps; \
         id=$(bpftool -j prog show name ov_net_in | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/'); \
         bpftool prog pin id $id {MAPS}/ov_vteps"
    ))?;
    wait_log(node, log, &["ov_vteps", "no map"])?;
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    ensure!(
        status["fast_path"]["state"] == "active",
        "{}",
        status["fast_path"]
    );

    // No BPF file system where the flag says: the kernel path carries everything, and the node says why.
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--bpffs=/tmp"])?;
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("not on a BPF file system") && answer.contains("mount -t bpf"),
        "{answer}"
    );
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// An agent that may not do all it has to.
fn permissions(lab: &Lab, node: &Node) -> Result<()> {
    // Nodes have a `/run` of their own.
    let directory = tempfile::tempdir()?;
    let without = |capabilities: &[&str]| -> Result<PathBuf> {
        let drop: Vec<String> = capabilities.iter().map(|it| format!("-{it}")).collect();
        let drop = drop.join(",");
        let agent = lab.options().bin_dir.join("overlayd");
        let script = directory.path().join("agent");
        let text = format!(
            "#!/bin/sh\nexec setpriv --inh-caps={drop} --bounding-set={drop} {} \"$@\"\n",
            agent.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    };
    node.stop_agent(Signal::SIGTERM)?;
    let script = without(&["bpf", "perfmon", "sys_admin"])?;
    node.start_agent_from(&script, &[])?;
    node.wait_ready(PATIENCE)?;
    let answer = node.http_get("/readyz")?.body;
    ensure!(
        answer.contains("CAP_BPF") && answer.contains("fast path"),
        "{answer}"
    );
    node.stop_agent(Signal::SIGTERM)?;

    let script = without(&["net_admin"])?;
    let log = log_length(node);
    node.start_agent_from(&script, &[])?;
    wait_log(node, log, &["CAP_NET_ADMIN"])?;
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[])
}

/// The store does not answer when the agent starts.
fn store_is_away(lab: &Lab, node: &Node) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    lab.stop_store()?;
    let log = log_length(node);
    node.start_agent_unready(&[])?;
    wait_log(
        node,
        log,
        &[
            "cannot read the network configuration",
            &lab.store_endpoint(),
        ],
    )?;
    ensure!(
        node.http_get("/readyz")?.status == 503,
        "ready without a store"
    );
    lab.start_store()?;
    node.wait_ready(2 * PATIENCE)
}

#[test]
fn a_taken_vxlan_port_is_told_and_taken_over_when_it_is_free() -> Result<()> {
    let lab = Lab::up(Options {
        start_agents: false,
        store: StoreKind::Dir,
        nodes: 1,
        ..Options::for_test("bad-port")
    })?;
    let node = lab.node(1);
    let thief = node
        .namespace()
        .inside(|| UdpSocket::bind("0.0.0.0:8472"))??;
    node.start_agent_unready(&[])?;
    wait_until("the agent to say what is wrong", PATIENCE, || {
        node.http_get("/readyz").is_ok_and(|it| {
            it.status == 503 && it.body.contains("8472") && it.body.contains("in use")
        })
    })
    .with_context(|| format!("{:?} {}", node.http_get("/readyz"), node.agent_log_tail()))?;
    drop(thief);
    node.wait_ready(2 * PATIENCE)?;
    all_is_well(&lab, Vec::new())
}

/// The error that the plugin answers: in JSON with a code and a text, and a bad exit status.
fn cni_error(output: &Output) -> Result<Value> {
    let answer = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!complaint.contains("panicked"), "{complaint}");
    ensure!(
        output.status.code() == Some(1),
        "{:?}: {answer}",
        output.status
    );
    let error: Value = serde_json::from_str(&answer).with_context(|| answer.to_string())?;
    ensure!(
        error["code"].is_u64() && error["msg"].is_string(),
        "{error}"
    );
    Ok(error)
}

#[test]
fn bad_cni_calls_are_answered_and_leave_nothing_behind() -> Result<()> {
    let lab = lab("bad-cni", 1, StoreKind::Dir)?;
    let node = lab.node(1);
    let talks = talks(&lab)?;
    let addresses = || node.run(["ls", "/var/lib/cni/networks/cbr0"]);
    let before = addresses()?;
    let netns = lab.pod(1, 1).namespace().path();
    let good = r#"{"name":"cbr0","type":"flannel","cniVersion":"1.0.0"}"#;
    let call = |variables: &[(&str, &str)], input: &[u8]| -> Result<Output> {
        let namespace = node.namespace();
        let mut plugin = namespace.command("/opt/cni/bin/flannel");
        plugin.env("CNI_PATH", "/opt/cni/bin").current_dir("/");
        plugin.envs(variables.iter().copied());
        plugin
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = namespace.start(&mut plugin)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses early does not read it all.
            let _ = stdin.write_all(input);
        }
        Ok(child.wait_with_output()?)
    };
    let netns = netns.to_str().context("a path")?;
    let add = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "bad"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth9"),
    ];
    let deep = "[".repeat(100_000);
    let huge = format!(
        r#"{{"name":"cbr0","cniVersion":"1.0.0","x":"{}"}}"#,
        "x".repeat(20_000_000)
    );
    let deep = format!(r#"{{"name":"cbr0","cniVersion":"1.0.0","x":{deep}"#);
    for (what, input) in [
        ("nothing", &b""[..]),
        ("garbage", b"garbage"),
        ("binary", b"\xff\xfe\x00\x01"),
        ("an array", b"[]"),
        ("null", b"null"),
        ("no name", br#"{"cniVersion":"1.0.0"}"#),
        ("an empty name", br#"{"name":"","cniVersion":"1.0.0"}"#),
        (
            "a path for a name",
            br#"{"name":"../x","cniVersion":"1.0.0"}"#,
        ),
        ("a number for a name", br#"{"name":5,"cniVersion":"1.0.0"}"#),
        (
            "a future version",
            br#"{"name":"cbr0","cniVersion":"9.9.9"}"#,
        ),
        ("no version's text", br#"{"name":"cbr0","cniVersion":"x"}"#),
        (
            "a wrong delegate",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":5}"#,
        ),
        (
            "a wrong bridge",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":{"bridge":"a/b"}}"#,
        ),
        (
            "a wrong MTU",
            br#"{"name":"cbr0","cniVersion":"1.0.0","delegate":{"mtu":-5}}"#,
        ),
        (
            "wrong ranges",
            br#"{"name":"cbr0","cniVersion":"1.0.0","ipam":{"ranges":[[{"subnet":"x"}]]}}"#,
        ),
        (
            "no subnet file",
            br#"{"name":"cbr0","cniVersion":"1.0.0","subnetFile":"/run/none.env"}"#,
        ),
        (
            "a directory for a subnet file",
            br#"{"name":"cbr0","cniVersion":"1.0.0","subnetFile":"/run"}"#,
        ),
        ("depth", deep.as_bytes()),
    ] {
        let output = call(&add, input)?;
        cni_error(&output).with_context(|| format!("{what}: {output:?}"))?;
    }
    for (what, variable, value) in [
        ("an unknown command", "CNI_COMMAND", "EXPLODE"),
        ("an empty command", "CNI_COMMAND", ""),
        ("no container", "CNI_CONTAINERID", ""),
        ("a path for a container", "CNI_CONTAINERID", "../../etc"),
        ("no namespace", "CNI_NETNS", ""),
        ("a missing namespace", "CNI_NETNS", "/run/netns/none"),
        ("a file for a namespace", "CNI_NETNS", "/etc/passwd"),
        ("the host's namespace", "CNI_NETNS", "/proc/self/ns/net"),
        ("no interface", "CNI_IFNAME", ""),
        ("a long interface", "CNI_IFNAME", "sixteen-letters!"),
        ("a path for an interface", "CNI_IFNAME", "a/b"),
        ("an interface that is there", "CNI_IFNAME", "eth0"),
    ] {
        let mut variables = add;
        for pair in variables.iter_mut().filter(|(name, _)| *name == variable) {
            pair.1 = value;
        }
        let output = call(&variables, good.as_bytes())?;
        cni_error(&output).with_context(|| format!("{what}: {output:?}"))?;
    }
    ensure!(
        addresses()? == before,
        "addresses are left: {}",
        addresses()?
    );

    // Much is not wrong: the answer is what an ordinary configuration gets.
    let outside = lab.namespace("outside")?.path();
    let mut add = add;
    add[2].1 = outside.to_str().context("a path")?;
    let output = call(&add, huge.as_bytes())?;
    ensure!(output.status.success(), "{output:?}");
    let mut delete = add;
    delete[0].1 = "DEL";
    for _ in 0..2 {
        ensure!(
            call(&delete, good.as_bytes())?.status.success(),
            "DEL fails"
        );
    }
    ensure!(
        addresses()? == before,
        "addresses are left: {}",
        addresses()?
    );
    allocations(&lab, &node)?;
    all_is_well(&lab, talks)
}

/// Files of addresses that no living container has, or that make no sense.
fn allocations(lab: &Lab, node: &Node) -> Result<()> {
    const DIR: &str = "/var/lib/cni/networks/cbr0";
    let subnet = node.subnet()?.network().octets();
    let address = |last: u8| format!("{DIR}/{}.{}.{}.{last}", subnet[0], subnet[1], subnet[2]);
    let script = [
        format!("printf 'dead-container\\r\\neth0' > {}", address(20)),
        format!(": > {}", address(21)),
        format!("head -c 4096 /dev/urandom > {}", address(22)),
        format!("mkdir {}", address(23)),
        format!("printf nonsense > {DIR}/last_reserved_ip.0"),
        format!("printf x > {DIR}/not-an-address"),
        format!("printf x > {DIR}/999.1.1.1"),
    ];
    node.run(["sh", "-ec", &script.join("\n")])?;
    let pod = lab.add_pod(1)?;
    let answer = pod.exec(["ping", "-c1", "-W2", &lab.pod(1, 1).address().to_string()])?;
    ensure!(
        answer.status.success(),
        "a pod made among them has no network"
    );
    // Garbage collection frees what the runtime does not know, and nothing else.
    let attachments: Vec<Value> = node
        .pods()
        .iter()
        .map(|pod| json!({"containerID": pod.container(), "ifname": "eth0"}))
        .collect();
    let valid = [
        ("cniVersion", json!("1.1.0")),
        ("cni.dev/valid-attachments", json!(attachments)),
    ];
    let output = node.cni("GC", None, &valid)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!complaint.contains("panicked"), "{complaint}");
    let exists = |path: &str| -> Result<bool> {
        let path = Path::new(path).to_owned();
        node.namespace().inside(move || path.exists())
    };
    if exists(&address(20))? {
        bail!("the dead container's address is still taken: {output:?}");
    }
    for pod in node.pods() {
        ensure!(
            exists(&format!("{DIR}/{}", pod.address()))?,
            "{} lost its address",
            pod.name()
        );
    }
    pod.remove()
}
