//! Leases that any writer of the store may have written.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, StoreKind, wait_until};
use serde_json::{Value, json};

use crate::witness::{all_is_well, log_length, log_since, talks};
use crate::{PATIENCE, lab};

/// The prefix of flannel's leases in etcd.
pub(super) const SUBNETS: &str = "/coreos.com/network/subnets";

/// The leases that a node does not believe, as listed in its status.
fn rejected(node: &Node) -> Result<BTreeMap<String, String>> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let list = status["rejected"].as_array().context("no list")?.clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .map(|it| (text(&it["subject"]), text(&it["reason"])))
        .collect())
}

pub(super) fn lease(public_ip: &str, mac: &str) -> String {
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
            "10.244.237.0-24",
            lease("192.168.66.255", mac),
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
        // The value goes by standard input, because it may be longer than a command line.
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

    // A corrected lease is believed.
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
    // An agent that starts among these leases finds its own lease again.
    first.stop_agent(Signal::SIGKILL)?;
    first.start_agent(&[])?;
    ensure!(first.subnet()? == own, "the node lost its subnet");
    ensure!(first.overlay_routes()? == 1, "a route to a hostile lease");
    all_is_well(&lab, talks)
}

/// Writes a key to etcd; the value goes by standard input.
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
        network: json!({
            "Network": "10.0.0.0/8", "SubnetMax": "10.1.0.0", "Backend": {"Type": "vxlan"}
        }),
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
        // Written to another file first, as every process that shares the directory has to do.
        let aside = leases.join(".aside");
        fs::write(&aside, lease(&format!("172.20.{high}.{low}"), &mac))?;
        fs::rename(&aside, name(i))?;
    }
    let routes =
        |wanted: usize| move |node: &Node| node.overlay_routes().is_ok_and(|it| it == wanted);
    wait_until("all routes", 6 * PATIENCE, || routes(MANY + 1)(&first))
        .with_context(|| format!("{:?}", first.overlay_routes()))?;
    // A peer with an MTU in its status is served by the fast path.
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
    let neighbours = |state: &str| {
        let shown = format!("ip -4 neighbour show dev flannel.1 {state}");
        first.run(["sh", "-c", &shown])
    };
    wait_until("the neighbours' end", PATIENCE, || {
        neighbours("nud permanent").is_ok_and(|it| it.lines().count() == 1)
    })?;
    // The kernel would keep a failed entry if the agent still sent to a removed node.
    let all = neighbours("nud all")?;
    ensure!(
        all.lines().filter(|it| !it.contains("NOARP")).count() == 1,
        "{all}"
    );
    all_is_well(&lab, talks)
}
