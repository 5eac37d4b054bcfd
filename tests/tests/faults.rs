//! Faults under running traffic: whatever happens to the agent, its programs or the store, packets of known
//! peers go on and no connection breaks. Each case prints how many packets it cost.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::pace::Traffic;
use overlay_tests::status::Counts;
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Node, Options, Pod, wait_until};

/// Traffic before and after a fault.
const CALM: Duration = Duration::from_millis(500);
/// How long the agent may take to put something right.
const REPAIR: Duration = Duration::from_secs(4);
/// Where the programs' links and the maps are pinned.
const PINS: &str = "/sys/fs/bpf/overlay/v1";
/// Both directions of a pair send 1000 datagrams a second: a fault that leaves the wire alone may not cost
/// what half a second of one of them is.
const LOST_AT_MOST: u64 = 500;

fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        name: pod.name().to_owned(),
        namespace: pod.namespace(),
        address: pod.address(),
    }
}

/// Runs `fault` under traffic between pods of two nodes and of one node; demands that TCP goes on and that
/// next to nothing is lost.
fn case(lab: &Lab, name: &str, fault: impl FnOnce() -> Result<()>) -> Result<()> {
    let pairs = [
        (lab.pod(1, 1), lab.pod(2, 1)),
        (lab.pod(1, 1), lab.pod(1, 2)),
    ];
    let running: Vec<_> = pairs
        .iter()
        .map(|(a, b)| Traffic::start(&endpoint(a), &endpoint(b)))
        .collect::<Result<_>>()
        .with_context(|| format!("before {name}"))?;
    sleep(CALM);
    let result = fault();
    sleep(CALM);
    for (traffic, (a, b)) in running.into_iter().zip(&pairs) {
        let pair = format!("{name}: {} and {}", a.name(), b.name());
        let outcome = traffic.finish().with_context(|| pair.clone())?;
        println!("{pair}: {outcome}");
        ensure!(
            outcome.lost() <= LOST_AT_MOST,
            "{pair}: {outcome}; {}",
            a.node().agent_log_tail()
        );
    }
    result.with_context(|| name.to_owned())
}

/// Names of the pinned links.
fn links(node: &Node) -> Result<Vec<String>> {
    let list = node.run(["ls", &format!("{PINS}/links")])?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// The fast path's state, as `overlayctl status` has it.
fn state(node: &Node) -> Result<String> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    Ok(status["fast_path"]["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Programs of ours that are attached on a node, as the kernel tells.
fn attached(node: &Node) -> Result<usize> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let hooks = status["attachments"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let programs = hooks
        .iter()
        .filter_map(|hook| hook["programs"].as_array())
        .map(Vec::len);
    Ok(programs.sum())
}

/// Waits until every program of a node is on its hook: two for the node and two for each pod.
fn wait_attached(node: &Node) -> Result<()> {
    let want = 2 + 2 * node.pods().len();
    let start = Instant::now();
    let what = format!("{want} programs on {}", node.name());
    wait_until(&what, REPAIR, || {
        attached(node).is_ok_and(|found| found == want)
            && state(node).is_ok_and(|state| state == "active")
    })
    .with_context(|| node.agent_log_tail())?;
    println!("{what} after {} ms", start.elapsed().as_millis());
    Ok(())
}

#[test]
fn the_data_path_outlives_its_agent() -> Result<()> {
    let lab = Lab::up(Options::for_test("agent"))?;
    let node = lab.node(1);
    wait_attached(&node)?;

    case(&lab, "agent killed", || {
        node.stop_agent(Signal::SIGKILL)?;
        sleep(CALM);
        ensure!(attached(&node)? == 6, "programs went with the agent");
        Ok(())
    })?;
    case(&lab, "agent started after a kill", || {
        node.start_agent(&[])?;
        wait_attached(&node)
    })?;
    case(&lab, "agent ended and started", || {
        node.stop_agent(Signal::SIGTERM)?;
        ensure!(attached(&node)? == 6, "programs went with the agent");
        node.start_agent(&[])?;
        wait_attached(&node)
    })?;
    case(&lab, "both agents killed and started", || {
        for node in lab.nodes() {
            node.stop_agent(Signal::SIGKILL)?;
        }
        for node in lab.nodes() {
            node.start_agent(&[])?;
            wait_attached(&node)?;
        }
        Ok(())
    })?;
    case(&lab, "agent upgraded", || {
        let before = program_ids(&node)?;
        // The kernel gives programs new numbers with every load, so the same code is another build to it.
        let directory = tempfile::tempdir()?;
        let other = directory.path().join("overlayd");
        fs::copy(lab.options().bin_dir.join("overlayd"), &other)?;
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent_from(&other, &[])?;
        wait_until("other programs on every hook", REPAIR, || {
            program_ids(&node).is_ok_and(|after| {
                after.len() == before.len() && after.iter().all(|id| !before.contains(id))
            })
        })?;
        wait_attached(&node)
    })?;
    case(&lab, "agent upgraded over maps of another layout", || {
        node.stop_agent(Signal::SIGTERM)?;
        for (map, value) in [("ov_pods", "8"), ("ov_peers", "40")] {
            let pin = format!("{PINS}/maps/{map}");
            node.run(["rm", &pin])?;
            node.run([
                "bpftool", "map", "create", &pin, "type", "hash", "key", "4", "value", value,
                "entries", "16", "name", map,
            ])?;
        }
        node.start_agent(&[])?;
        wait_attached(&node)?;
        let log = fs::read_to_string(node.agent_log())?;
        ensure!(
            log.contains("pinned map ov_pods is a hash, key 4 B, value 8 B"),
            "the misfit is not told"
        );
        Ok(())
    })?;
    case(&lab, "fast path switched off", || {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--fast-path=off"])?;
        let left = node.exec(["ls", "/sys/fs/bpf/overlay"])?;
        ensure!(!left.status.success(), "pins are left");
        ensure!(attached(&node)? == 0, "programs are left");
        Ok(())
    })?;
    case(&lab, "fast path switched on", || {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--fast-path=auto"])?;
        wait_attached(&node)
    })?;
    case(&lab, "every program detached by hand", || {
        for link in links(&node)? {
            let pin = format!("{PINS}/links/{link}");
            node.run(["bpftool", "link", "detach", "pinned", &pin])?;
        }
        wait_attached(&node)
    })?;
    case(&lab, "pins of the links removed", || {
        node.run(["sh", "-c", &format!("rm {PINS}/links/*")])?;
        wait_attached(&node)
    })?;
    case(&lab, "pins of the maps removed", || {
        node.run(["sh", "-c", &format!("rm {PINS}/maps/*")])?;
        wait_attached(&node)?;
        // The plugin goes by the pins: what it forgets must be what the programs see.
        let pod = lab.add_pod(1)?;
        wait_until("a new pod in the pinned map", REPAIR, || in_map(&pod))?;
        pod.remove()
    })?;
    case(&lab, "all pins removed", || {
        node.run(["rm", "-r", "/sys/fs/bpf/overlay"])?;
        wait_attached(&node)
    })?;
    case(
        &lab,
        "agent killed, programs detached, agent started",
        || {
            node.stop_agent(Signal::SIGKILL)?;
            for link in links(&node)? {
                let pin = format!("{PINS}/links/{link}");
                node.run(["bpftool", "link", "detach", "pinned", &pin])?;
            }
            sleep(CALM);
            node.start_agent(&[])?;
            wait_attached(&node)
        },
    )?;
    lab.down()
}

/// Filters of ours that are attached on a node by clsact, with the kernel's ids of their programs.
fn filters(node: &Node) -> Result<Vec<String>> {
    let script = "for device in $(ls /sys/class/net); do
                      tc filter show dev $device ingress; tc filter show dev $device egress
                  done | grep -o 'ov_.* id [0-9]*'";
    let text = node.exec(["sh", "-c", script])?.stdout;
    let lines = String::from_utf8(text)?;
    Ok(lines.lines().map(str::to_owned).collect())
}

#[test]
fn clsact_serves_where_there_is_no_tcx() -> Result<()> {
    let lab = Lab::up(Options {
        agent_args: vec!["--attach=clsact".to_owned()],
        ..Options::for_test("clsact")
    })?;
    let node = lab.node(1);
    let all_there = |node: &Node| -> Result<()> {
        let want = 2 + 2 * node.pods().len();
        wait_until(&format!("{want} filters"), REPAIR, || {
            filters(node).is_ok_and(|filters| filters.len() == want)
                && state(node).is_ok_and(|state| state == "active")
        })
        .with_context(|| format!("{:?}; {}", filters(node), node.agent_log_tail()))
    };
    all_there(&node)?;
    ensure!(links(&node)?.is_empty(), "attached by tcx as well");
    wait_attached(&node).context("overlayctl shows other programs")?;

    // Filters of our own do not keep pods from the fast path.
    let pods = node.json(["overlayctl", "status", "--output", "json"])?["pods"].clone();
    let paths: Vec<_> = pods
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| &pod["path"])
        .collect();
    ensure!(paths == ["fast", "fast"], "{paths:?}");
    case(&lab, "nothing, by clsact", || Ok(()))?;
    let counts = Counts::of(&node)?;
    // Flows that begin while a pod's filters are still being noticed stay the stack's for a minute.
    let ratio = counts.hit_ratio_without(&["stack_owned", "pod_kernel_path"]);
    ensure!(counts.fast() > 0, "nothing takes the fast path: {counts:?}");
    ensure!(
        ratio > 0.9,
        "only {ratio} of packets take the fast path: {counts:?}"
    );

    let before = filters(&node)?;
    case(&lab, "agent restarted, by clsact", || {
        node.stop_agent(Signal::SIGKILL)?;
        ensure!(
            filters(&node)? == before,
            "filters changed without an agent"
        );
        node.start_agent(&[])?;
        all_there(&node)?;
        let after = filters(&node)?;
        ensure!(
            after.iter().all(|filter| !before.contains(filter)),
            "{before:?} became {after:?}"
        );
        Ok(())
    })?;
    case(&lab, "every filter detached by hand", || {
        let script = "for device in $(ls /sys/class/net); do
                          tc filter del dev $device ingress; tc filter del dev $device egress
                      done; true";
        node.run(["sh", "-c", script])?;
        all_there(&node)
    })?;
    case(&lab, "from clsact to tcx", || {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--attach=auto"])?;
        wait_attached(&node)?;
        ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
        Ok(())
    })?;
    case(&lab, "from tcx to clsact", || {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&[])?;
        all_there(&node)?;
        ensure!(links(&node)?.is_empty(), "links are left");
        Ok(())
    })?;
    case(&lab, "fast path switched off, by clsact", || {
        node.stop_agent(Signal::SIGTERM)?;
        node.start_agent(&["--fast-path=off"])?;
        ensure!(filters(&node)?.is_empty(), "{:?} are left", filters(&node)?);
        Ok(())
    })?;
    let other = lab.node(2);
    all_there(&other)?;
    other.stop_agent(Signal::SIGTERM)?;
    other.run([
        "overlayd",
        "cleanup",
        &format!("--etcd-endpoints={}", lab.store_endpoint()),
    ])?;
    ensure!(
        filters(&other)?.is_empty(),
        "{:?} are left",
        filters(&other)?
    );
    lab.down()
}

/// Whether a pod is in its node's pinned map.
fn in_map(pod: &Pod) -> bool {
    let dump = pod
        .node()
        .run([
            "bpftool",
            "map",
            "dump",
            "pinned",
            &format!("{PINS}/maps/ov_pods"),
        ])
        .unwrap_or_default();
    let entries: serde_json::Value = serde_json::from_str(&dump).unwrap_or_default();
    let key = serde_json::json!(pod.address().octets());
    let entries = entries.as_array().cloned().unwrap_or_default();
    entries.iter().any(|entry| entry["key"] == key)
}

/// The kernel's ids of the programs on a node's hooks.
fn program_ids(node: &Node) -> Result<Vec<u64>> {
    let status = node.json(["overlayctl", "status", "--output", "json"])?;
    let hooks = status["attachments"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let programs = hooks.iter().filter_map(|hook| hook["programs"].as_array());
    Ok(programs
        .flatten()
        .filter_map(|program| program["id"].as_u64())
        .collect())
}

#[test]
fn known_peers_are_served_while_etcd_is_away() -> Result<()> {
    let options = Options {
        agent_args: vec!["--lease-ttl=10s".to_owned()],
        ..Options::for_test("etcd")
    };
    let lab = Lab::up(options)?;
    let subnets: Vec<_> = lab
        .nodes()
        .iter()
        .map(Node::subnet)
        .collect::<Result<_>>()?;
    let as_before = |lab: &Lab| -> Result<()> {
        for (node, before) in lab.nodes().iter().zip(&subnets) {
            let subnet = node.subnet()?;
            ensure!(
                subnet == *before,
                "{}: {before} became {subnet}",
                node.name()
            );
            ensure!(
                node.overlay_routes()? == 1,
                "{} dropped its peer",
                node.name()
            );
        }
        Ok(())
    };
    let leases = |lab: &Lab| {
        let list = lab.etcdctl(&[
            "get",
            "--prefix",
            "--keys-only",
            "/coreos.com/network/subnets/",
        ]);
        list.map_or(0, |list| list.split_whitespace().count())
    };

    case(
        &lab,
        "etcd killed, gone longer than the lease, and back",
        || {
            let etcd = lab.store_process().context("etcd")?;
            etcd.signal(Signal::SIGKILL)?;
            let end = Instant::now() + Duration::from_secs(14);
            while Instant::now() < end {
                as_before(&lab)?;
                sleep(CALM);
            }
            lab.start_store()?;
            wait_until("both leases", Duration::from_secs(20), || leases(&lab) == 2)?;
            let end = Instant::now() + Duration::from_secs(6);
            while Instant::now() < end {
                as_before(&lab)?;
                ensure!(leases(&lab) == 2, "a lease went away");
                sleep(CALM);
            }
            lab.wait_converged()
        },
    )?;
    case(&lab, "etcd frozen longer than the lease", || {
        let etcd = lab.store_process().context("etcd")?;
        etcd.signal(Signal::SIGSTOP)?;
        let end = Instant::now() + Duration::from_secs(14);
        let frozen = || -> Result<()> {
            while Instant::now() < end {
                as_before(&lab)?;
                sleep(CALM);
            }
            Ok(())
        };
        let result = frozen();
        etcd.signal(Signal::SIGCONT)?;
        result?;
        wait_until("both leases", Duration::from_secs(20), || leases(&lab) == 2)?;
        as_before(&lab)?;
        lab.wait_converged()
    })?;
    case(&lab, "etcd compacted", || {
        for i in 0..20 {
            lab.etcdctl(&["put", "/elsewhere", &i.to_string()])?;
        }
        let status: serde_json::Value =
            serde_json::from_str(&lab.etcdctl(&["endpoint", "status", "--write-out=json"])?)?;
        let revision = status[0]["Status"]["header"]["revision"]
            .as_u64()
            .context("etcd tells no revision")?;
        // The agents' watches break, and cannot resume where they were.
        lab.etcdctl(&["compact", &revision.to_string()])?;
        lab.stop_store()?;
        lab.start_store()?;
        wait_until("both leases", Duration::from_secs(20), || leases(&lab) == 2)?;
        as_before(&lab)
    })?;

    // And the watch is alive: a node that leaves is dropped, and comes back.
    lab.node(2).stop_agent(Signal::SIGKILL)?;
    wait_until(
        "the lost node's routes to go",
        Duration::from_secs(30),
        || lab.node(1).overlay_routes().is_ok_and(|routes| routes == 0),
    )?;
    lab.node(2).start_agent(&[])?;
    lab.wait_converged()?;
    traffic::tcp(
        &endpoint(&lab.pod(1, 1)),
        &endpoint(&lab.pod(2, 1)),
        100_000,
    )?;
    lab.down()
}

/// What `overlayd cleanup` could touch, by the tools that show it.
fn surroundings(node: &Node) -> Result<String> {
    let mut all = String::new();
    for line in [
        "ip -o link show",
        "ip -o address show",
        "ip route show table all",
        "ip neighbour show nud permanent",
        "bridge fdb show | grep permanent",
        "iptables-save",
        "nft list ruleset",
        "find /sys/fs/bpf /run/flannel /run/overlay",
        "tc qdisc show",
    ] {
        let text = node.run(["sh", "-c", &format!("{line} 2>/dev/null || true")])?;
        for line in text.lines().filter(|line| !is_incidental(line)) {
            all.push_str(&without_counts(line));
            all.push('\n');
        }
    }
    Ok(all)
}

/// What changes by itself, or that starting and ending leave by design.
fn is_incidental(line: &str) -> bool {
    line.starts_with('#')
        || line.starts_with("-P")
        // The directories and the lock file; a table whose chains have no rules.
        || line.starts_with("/run/")
        || line.contains("fe80::")
        || line.contains("ff00::")
        || line.contains("33:33:")
}

/// A line without its packet counters.
fn without_counts(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        if !skip && !word.starts_with('[') {
            words.push(word);
        }
        skip = matches!(word, "packets" | "bytes");
    }
    words.join(" ")
}

#[test]
fn cleanup_takes_ours_and_nothing_else() -> Result<()> {
    let lab = Lab::up(Options {
        pods: 1,
        // Cleanup gives the lease up; with one subnet for each node it is the same one afterwards.
        network: serde_json::json!({
            "Network": "10.244.0.0/16",
            "SubnetMin": "10.244.1.0",
            "SubnetMax": "10.244.2.0",
            "Backend": {"Type": "vxlan"}
        }),
        ..Options::for_test("cleanup")
    })?;
    let node = lab.node(1);
    // What others have on a node.
    for line in [
        "ip link add vxlan7 type vxlan id 7 dstport 4790 dev eth0 nolearning",
        "ip link set vxlan7 up",
        "ip route add 172.31.0.0/16 dev vxlan7 proto 112",
        "iptables -N THEIRS",
        "iptables -A THEIRS -s 10.244.0.0/16 -j ACCEPT",
        "iptables -t nat -A POSTROUTING -s 172.31.0.0/16 -j MASQUERADE",
        "nft add table inet theirs",
        "bpftool map create /sys/fs/bpf/theirs type hash key 4 value 4 entries 1 name theirs",
    ] {
        node.run(line.split(' '))?;
    }
    node.stop_agent(Signal::SIGTERM)?;
    let cleanup = |node: &Node| {
        node.run([
            "overlayd",
            "cleanup",
            "--iface=eth0",
            &format!("--etcd-endpoints={}", lab.store_endpoint()),
        ])
    };
    cleanup(&node)?;
    let clean = surroundings(&node)?;
    for ours in [
        "flannel",
        "proto 111",
        "/sys/fs/bpf/overlay",
        "clsact",
        "FLANNEL",
        "table inet overlay",
        "table bridge overlay",
    ] {
        ensure!(!clean.contains(ours), "{ours} is left:\n{clean}");
    }
    for theirs in [
        "vxlan7",
        "172.31.0.0/16",
        "THEIRS",
        "table inet theirs",
        "/sys/fs/bpf/theirs",
        "cni0",
    ] {
        ensure!(clean.contains(theirs), "{theirs} was taken away:\n{clean}");
    }
    cleanup(&node).context("a second time")?;
    ensure!(
        surroundings(&node)? == clean,
        "a second time changed something"
    );

    // The same once more, and in between with the agent's files missing.
    for lost in [
        &[][..],
        &["/run/flannel/subnet.env", "/run/overlay/agent.json"],
        &[
            "/run/flannel/subnet.env",
            "/run/overlay/agent.json",
            "/sys/fs/bpf/overlay",
        ],
    ] {
        node.start_agent(&[])?;
        lab.wait_converged()?;
        let (a, b) = (endpoint(&lab.pod(1, 1)), endpoint(&lab.pod(2, 1)));
        traffic::tcp(&a, &b, 100_000).with_context(|| node.agent_log_tail())?;
        ensure!(surroundings(&node)? != clean, "the agent changes nothing");
        node.stop_agent(Signal::SIGTERM)?;
        for path in lost {
            node.run(["rm", "-r", path])?;
        }
        cleanup(&node).with_context(|| format!("without {lost:?}"))?;
        let after = surroundings(&node)?;
        ensure!(
            after == clean,
            "without {lost:?}: {}",
            difference(&clean, &after)
        );
    }
    lab.down()
}

/// The lines that one text has and the other has not.
fn difference(before: &str, after: &str) -> String {
    let only = |text: &str, other: &str, mark: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !other.lines().any(|there| there == *line))
            .map(|line| format!("{mark} {line}"))
            .collect()
    };
    [only(before, after, "-"), only(after, before, "+")]
        .concat()
        .join("\n")
}
