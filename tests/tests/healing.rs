//! Whatever is changed behind the agent's back is put right again: devices, neighbours, routes, rules, files,
//! programs and map entries. Each case prints how long that took.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pace::Traffic;
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Node, Options, Pod, fast_path, wait_until};
use serde_json::{Value, json};

/// What netlink tells of is put right in two seconds; machines that run tests are slow.
const SOON: Duration = Duration::from_secs(4);
/// What nothing tells of is looked at every five seconds.
const RESYNC: Duration = Duration::from_secs(10);
/// How long a store may take to be reached over a new way.
const RECONNECT: Duration = Duration::from_secs(30);
/// Where the maps are pinned.
const MAPS: &str = "/sys/fs/bpf/overlay/v3/maps";

fn endpoint(pod: &Pod) -> Endpoint {
    pod.into()
}

/// A lab whose agents know all their pods.
fn lab(options: Options) -> Result<Lab> {
    let lab = Lab::up(options)?;
    for node in lab.nodes() {
        let pods = format!("pods: {}\n", node.pods().len());
        wait_until(&format!("{} to know its {pods}", node.name()), SOON, || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.body.contains(&pods))
        })?;
    }
    Ok(lab)
}

fn shell(node: &Node, script: &str) -> Result<String> {
    node.run(["sh", "-c", script])
}

/// All that a node's agent puts into the kernel's network and onto the disk, as text. Leaves out what a new
/// device has anew: its index and MAC address.
fn kernel_state(node: &Node) -> Result<String> {
    shell(
        node,
        "ip -br link show dev flannel.1 | awk '{print $1, $2, $4}'
         cat /sys/class/net/flannel.1/mtu
         ip -d link show dev flannel.1 | grep -o 'vxlan id.*' | sed 's/dev [^ ]* //'
         ip -br -4 address show dev flannel.1
         ip -4 neighbour show dev flannel.1 nud permanent
         bridge fdb show dev flannel.1 | grep -v -e 33:33 -e 01:00:5e
         ip route show proto 111
         cat /proc/sys/net/ipv4/ip_forward
         cat /run/flannel/subnet.env
         iptables-save | grep -e ^-A -e ^-P
         nft -s list table ip overlay_guard
         nft -s list table bridge overlay_guard
         true",
    )
}

/// Breaks something while the agent stands still, so that the damage shows, and waits for the repair.
fn heals(
    lab: &Lab,
    name: &str,
    limit: Duration,
    breaks: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let node = lab.node(1);
    let before = kernel_state(&node)?;
    let agent = node.agent().context("an agent")?;
    agent.signal(Signal::SIGSTOP)?;
    let damage = breaks().and_then(|()| kernel_state(&node));
    agent.signal(Signal::SIGCONT)?;
    let start = Instant::now();
    let damage = damage.with_context(|| name.to_owned())?;
    ensure!(damage != before, "{name}: nothing was damaged");
    let mut last = String::new();
    wait_until(&format!("{name}: the repair"), limit, || {
        last = kernel_state(&node).unwrap_or_default();
        last == before
    })
    .with_context(|| format!("before:\n{before}\nnow:\n{last}\n{}", node.agent_log_tail()))?;
    println!("{name}: repaired after {} ms", start.elapsed().as_millis());
    talk(lab).with_context(|| format!("after {name}"))
}

/// Pods of the two nodes, and of one, reach each other, and node 1 its own; on either path.
fn talk(lab: &Lab) -> Result<()> {
    let [a, b, c] = [(1, 1), (2, 1), (1, 2)].map(|(node, pod)| endpoint(&lab.pod(node, pod)));
    let host = Endpoint {
        name: "n1".to_owned(),
        namespace: lab.node(1).namespace(),
        address: lab.node(1).underlay_address(),
    };
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&host, &b), (&host, &a)] {
        traffic::tcp(from, to, 100_000)
            .with_context(|| format!("{} to {}", from.name, to.name))
            .with_context(|| lab.node(1).agent_log_tail())?;
    }
    Ok(())
}

#[test]
fn kernel_state_heals() -> Result<()> {
    let lab = lab(Options::for_test("kernel"))?;
    let node = lab.node(1);
    let subnet = lab.node(2).subnet()?.to_string();
    for (name, script) in [
        (
            "neighbours flushed",
            "ip neighbour flush dev flannel.1 nud permanent",
        ),
        (
            "FDB entries deleted",
            "bridge fdb show dev flannel.1 | grep dst | while read mac dst ip rest; do
                 bridge fdb del $mac dev flannel.1 $dst $ip; done",
        ),
        ("routes flushed", "ip route flush proto 111"),
        (
            "route to a peer turned elsewhere",
            "ip route replace SUBNET via 192.168.66.253 proto 111",
        ),
        ("device set down", "ip link set flannel.1 down"),
        ("device deleted", "ip link delete flannel.1"),
        (
            "another device in its place",
            "ip link delete flannel.1; ip link add flannel.1 type bridge",
        ),
        (
            "device renamed",
            "ip link set flannel.1 down; ip link set flannel.1 name other; ip link set other up",
        ),
        ("address removed", "ip address flush dev flannel.1"),
        (
            "address added",
            "ip address add 10.244.255.255/32 dev flannel.1",
        ),
        ("MTU changed", "ip link set flannel.1 mtu 1300"),
        (
            "learning switched on",
            "ip link set flannel.1 type vxlan learning",
        ),
        (
            "forwarding switched off",
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
        ),
        ("subnet file deleted", "rm /run/flannel/subnet.env"),
        (
            "subnet file corrupted",
            "echo FLANNEL_SUBNET=x > /run/flannel/subnet.env",
        ),
    ] {
        heals(&lab, name, SOON, || {
            shell(&node, &script.replace("SUBNET", &subnet)).map(drop)
        })?;
    }
    for (name, script) in [
        (
            "packet-filter rules flushed",
            "iptables -F; iptables -t nat -F",
        ),
        (
            "guard deleted",
            "nft delete table ip overlay_guard; nft delete table bridge overlay_guard",
        ),
    ] {
        heals(&lab, name, RESYNC, || shell(&node, script).map(drop))?;
    }
    lab.down()
}

/// A pinned map as JSON, entries in order.
fn dump(node: &Node, map: &str) -> Result<Vec<String>> {
    let entries = node.json([
        "bpftool",
        "-j",
        "map",
        "dump",
        "pinned",
        &format!("{MAPS}/{map}"),
    ])?;
    let entries = entries.as_array().cloned().unwrap_or_default();
    let mut lines: Vec<String> = entries
        .iter()
        .map(|entry| entry["key"].to_string() + &entry["value"].to_string())
        .collect();
    lines.sort();
    Ok(lines)
}

/// Words of a key as `bpftool` takes them, from its JSON.
fn hex(bytes: &Value) -> Vec<String> {
    let bytes = bytes.as_array().cloned().unwrap_or_default();
    bytes
        .iter()
        .filter_map(|byte| byte.as_str().map(str::to_owned))
        .collect()
}

#[test]
fn map_entries_heal() -> Result<()> {
    let lab = lab(Options::for_test("maps"))?;
    let node = lab.node(1);
    for map in [
        "ov_pods4",
        "ov_endpoints4",
        "ov_peers4",
        "ov_vteps4",
        "ov_config4",
    ] {
        let before = dump(&node, map)?;
        let pin = format!("{MAPS}/{map}");
        let entries = node.json(["bpftool", "-j", "map", "dump", "pinned", &pin])?;
        let (key, value) = (hex(&entries[0]["key"]), hex(&entries[0]["value"]));
        ensure!(!key.is_empty() && !value.is_empty(), "{map} has no entry");
        let word = |text: &str| text.to_owned();
        let zeros = vec![word("0x00"); value.len()];
        let base = |verb: &str| {
            let mut line: Vec<String> = ["bpftool", "map", verb, "pinned", &pin, "key"]
                .map(word)
                .into();
            line.extend(key.clone());
            line
        };
        let mut changes = vec![[base("update"), vec![word("value")], zeros].concat()];
        if map != "ov_config4" {
            changes.push(base("delete"));
        }
        for change in changes {
            let agent = node.agent().context("an agent")?;
            agent.signal(Signal::SIGSTOP)?;
            let damage = node.run(&change).and_then(|_| dump(&node, map));
            agent.signal(Signal::SIGCONT)?;
            let start = Instant::now();
            ensure!(damage? != before, "{map}: nothing was damaged");
            wait_until(&format!("{map}: the repair"), RESYNC, || {
                dump(&node, map).is_ok_and(|now| now == before)
            })
            .with_context(|| {
                format!(
                    "before {before:?}, now {:?}; {}",
                    dump(&node, map),
                    node.agent_log_tail()
                )
            })?;
            println!(
                "{map} {}: repaired after {} ms",
                change[2],
                start.elapsed().as_millis()
            );
            talk(&lab)?;
        }
    }
    lab.down()
}

/// Whether the pinned map has an entry for an address.
fn in_map(node: &Node, address: Ipv4Addr) -> bool {
    let key: Vec<String> = address
        .octets()
        .iter()
        .map(|byte| format!("0x{byte:02x}"))
        .collect();
    let entries = node.json([
        "bpftool",
        "-j",
        "map",
        "dump",
        "pinned",
        &format!("{MAPS}/ov_pods4"),
    ]);
    let entries = entries.unwrap_or_default();
    let entries = entries.as_array().cloned().unwrap_or_default();
    entries.iter().any(|entry| entry["key"] == json!(key))
}

#[test]
fn pods_come_and_go_without_the_agent() -> Result<()> {
    let lab = lab(Options::for_test("pods"))?;
    let node = lab.node(1);
    let far = endpoint(&lab.pod(2, 1));

    node.stop_agent(Signal::SIGKILL)?;
    let pod = lab.add_pod(1)?;
    let near = endpoint(&pod);
    traffic::tcp(&near, &far, 100_000).context("a pod made while the agent is down")?;
    traffic::tcp(&far, &near, 100_000).context("to a pod made while the agent is down")?;
    ensure!(!in_map(&node, pod.address()), "who put it there?");
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || {
        in_map(&node, pod.address())
    })?;
    traffic::tcp(&near, &far, 100_000)?;

    node.stop_agent(Signal::SIGKILL)?;
    let gone = pod.address();
    pod.remove()?;
    ensure!(
        !in_map(&node, gone),
        "DEL leaves an entry that points at no device"
    );
    // Addresses are handed out in turn; this one comes again when all others were used.
    let again = reuse(&lab, gone)?;
    traffic::tcp(&far, &endpoint(&again), 100_000)
        .context("to a pod with the address of a deleted one")?;

    // A namespace that goes without DEL takes the device along; the entry stays, as nobody is there.
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || in_map(&node, gone))?;
    node.stop_agent(Signal::SIGKILL)?;
    let host_end = again.host_interface()?;
    node.run(["ip", "link", "delete", &host_end])?;
    ensure!(in_map(&node, gone), "the entry went by itself");
    again.remove()?;
    let again = reuse(&lab, gone)?;
    traffic::tcp(&far, &endpoint(&again), 100_000)
        .context("to a pod with the address of a lost one")?;
    node.start_agent(&[])?;
    wait_until("the pod to be accelerated", SOON, || in_map(&node, gone))?;
    traffic::tcp(&far, &endpoint(&again), 100_000)?;
    again.remove()?;

    // Churn beside running traffic.
    let running = Traffic::start(&endpoint(&lab.pod(1, 1)), &far)?;
    for _ in 0..10 {
        let pods = [lab.add_pod(1)?, lab.add_pod(1)?, lab.add_pod(2)?];
        traffic::tcp(&endpoint(&pods[0]), &endpoint(&pods[2]), 10_000)?;
        traffic::tcp(&endpoint(&pods[1]), &endpoint(&pods[0]), 10_000)?;
        for pod in pods {
            pod.remove()?;
        }
    }
    let outcome = running.finish()?;
    println!("churn of pods: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    let left = node.pods().len();
    for map in ["ov_pods4", "ov_endpoints4"] {
        wait_until(&format!("{left} entries in {map}"), SOON, || {
            dump(&node, map).is_ok_and(|entries| entries.len() == left)
        })?;
    }
    let links = node.run(["ls", "/sys/fs/bpf/overlay/v3/links"])?;
    // Filters have no links, and go with their devices.
    let pinned = if fast_path::has_tcx(&node)? {
        2 + 2 * left
    } else {
        0
    };
    ensure!(
        links.lines().count() == pinned,
        "links of gone pods are left:\n{links}"
    );
    lab.down()
}

/// Makes a pod on node 1 that gets `address`, with the IPAM's own note of the last one turned back.
fn reuse(lab: &Lab, address: Ipv4Addr) -> Result<Pod> {
    let [a, b, c, d] = address.octets();
    let before = Ipv4Addr::new(a, b, c, d - 1);
    shell(
        &lab.node(1),
        &format!("printf %s {before} > /var/lib/cni/networks/cbr0/last_reserved_ip.0"),
    )?;
    let pod = lab.add_pod(1)?;
    ensure!(
        pod.address() == address,
        "got {} instead of {address}",
        pod.address()
    );
    Ok(pod)
}

#[test]
fn nodes_come_and_go() -> Result<()> {
    let lab = lab(Options {
        nodes: 3,
        pods: 1,
        ..Options::for_test("nodes")
    })?;
    let [one, two, three] = [1, 2, 3].map(|number| lab.node(number));
    let known = |node: &Node, peers: usize| -> bool {
        node.overlay_routes().is_ok_and(|routes| routes == peers)
            && ["ov_peers4", "ov_vteps4"]
                .iter()
                .all(|map| dump(node, map).is_ok_and(|entries| entries.len() == peers))
    };
    let subnet = two.subnet()?;
    two.stop_agent(Signal::SIGTERM)?;
    let running = Traffic::start(&endpoint(&lab.pod(1, 1)), &endpoint(&lab.pod(3, 1)))?;
    lab.etcdctl(&[
        "del",
        "--prefix",
        &format!(
            "/coreos.com/network/subnets/{}",
            subnet.to_string().replace('/', "-")
        ),
    ])?;
    for node in [&one, &three] {
        wait_until(&format!("{} to forget a node", node.name()), SOON, || {
            known(node, 1)
        })?;
    }
    let state = kernel_state(&one)?;
    ensure!(
        !state.contains(&subnet.addr().to_string()),
        "something of {subnet} is left:\n{state}"
    );

    // It comes back elsewhere, with the pods that it had.
    shell(
        &two,
        "ip address del 192.168.66.2/24 dev eth0; ip address add 192.168.66.102/24 dev eth0; ip route add default via 192.168.66.253",
    )?;
    two.start_agent(&[])?;
    ensure!(two.subnet()? == subnet, "{subnet} became {}", two.subnet()?);
    for node in [&one, &two, &three] {
        wait_until(&format!("{} to know two nodes", node.name()), SOON, || {
            known(node, 2)
        })?;
    }
    let fdb = shell(&one, "bridge fdb show dev flannel.1")?;
    ensure!(
        fdb.contains("dst 192.168.66.102") && !fdb.contains("dst 192.168.66.2 "),
        "{fdb}"
    );
    let outcome = running.finish()?;
    println!("a node left and came back, traffic of two others: {outcome}");
    ensure!(outcome.lost() == 0, "{outcome}");
    traffic::tcp(
        &endpoint(&lab.pod(1, 1)),
        &endpoint(&lab.pod(2, 1)),
        100_000,
    )?;
    traffic::tcp(
        &endpoint(&lab.pod(2, 1)),
        &endpoint(&lab.pod(3, 1)),
        100_000,
    )?;
    lab.down()
}

#[test]
fn health_tells_the_truth() -> Result<()> {
    let lab = lab(Options {
        pods: 1,
        ..Options::for_test("health")
    })?;
    let node = lab.node(1);
    let status = |path: &str| node.http_get(path).map(|answer| answer.status);
    ensure!(status("/livez")? == 200 && status("/readyz")? == 200 && status("/nothing")? == 404);

    let metrics = node.http_get("/metrics")?;
    ensure!(metrics.status == 200);
    ensure!(
        metrics.body.ends_with("# EOF\n"),
        "not OpenMetrics:\n{}",
        metrics.body
    );
    let samples = samples(&metrics.body)?;
    for (name, value) in [
        ("overlay_ready", 1.0),
        ("overlay_peers", 1.0),
        ("overlay_pods", 1.0),
    ] {
        let found = samples.iter().find(|(sample, _)| sample == name);
        ensure!(
            found.is_some_and(|(_, found)| *found == value),
            "{name}: {found:?}\n{}",
            metrics.body
        );
    }
    let encapsulated = |node: &Node| -> Result<f64> {
        let text = node.http_get("/metrics")?.body;
        Ok(self::samples(&text)?
            .iter()
            .filter(|(name, _)| {
                name.starts_with("overlay_")
                    && name.contains("packets_total")
                    && name.contains("encapsulated")
            })
            .map(|(_, value)| value)
            .sum())
    };
    let before = encapsulated(&node)?;
    traffic::udp(
        &endpoint(&lab.pod(1, 1)),
        &endpoint(&lab.pod(2, 1)),
        100,
        traffic::Answers::Once,
    )?;
    ensure!(
        encapsulated(&node)? > before,
        "an encapsulated packet is not counted:\n{}",
        node.http_get("/metrics")?.body
    );

    // Somebody else's route in the place of a peer's: the kernel path is not complete.
    let subnet = lab.node(2).subnet()?;
    let agent = node.agent().context("an agent")?;
    agent.signal(Signal::SIGSTOP)?;
    let taken = shell(
        &node,
        &format!(
            "ip route del {subnet} proto 111; ip route add {subnet} via 192.168.66.253 proto static"
        ),
    );
    agent.signal(Signal::SIGCONT)?;
    taken?;
    wait_until("the agent not to be ready", SOON, || {
        status("/readyz").is_ok_and(|status| status == 503)
    })
    .with_context(|| node.agent_log_tail())?;
    ensure!(status("/livez")? == 200);
    wait_until("the peer to leave the fast path", SOON, || {
        dump(&node, "ov_peers4").is_ok_and(|peers| peers.is_empty())
    })?;
    let theirs = shell(&node, &format!("ip route show {subnet}"))?;
    ensure!(
        theirs.contains("proto static"),
        "somebody else's route was taken away: {theirs}"
    );
    shell(&node, &format!("ip route del {subnet} proto static"))?;
    node.wait_ready(SOON)?;
    ensure!(
        dump(&node, "ov_peers4")?.len() == 1,
        "ready without the fast path's entry"
    );

    // No store, no lease: alive, not ready.
    node.stop_agent(Signal::SIGTERM)?;
    lab.stop_store()?;
    node.start_agent_unready(&[])?;
    wait_until("the agent to be alive", SOON, || {
        status("/livez").is_ok_and(|status| status == 200)
    })?;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        ensure!(status("/readyz")? == 503, "ready without a lease");
        sleep(Duration::from_millis(100));
    }
    lab.start_store()?;
    node.wait_ready(RECONNECT)?;
    lab.down()
}

/// The samples of a text in the OpenMetrics format, every line of which must be one, or a comment.
fn samples(text: &str) -> Result<Vec<(String, f64)>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line
                .rsplit_once(' ')
                .with_context(|| format!("not a sample: {line:?}"))?;
            let value = value
                .parse()
                .with_context(|| format!("not a number: {line:?}"))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}
