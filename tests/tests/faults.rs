//! The quick part of the fault campaign (`cargo xtask faults` runs all of it), and `overlayd
//! cleanup`.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::faults::{self, Settings, Stage};
use overlay_tests::pace::Traffic;
use overlay_tests::pins::LINKS;
use overlay_tests::status::{self, Counts};
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Node, Options, fast_path};

/// Number of repetitions in cases that repeat a fault.
const ROUNDS: usize = 10;

/// Runs the quick cases of a stage and prints the cost of each.
fn campaign(stage: Stage) -> Result<()> {
    let cases: Vec<_> = faults::all()
        .into_iter()
        .filter(|case| case.quick && case.stage == stage)
        .collect();
    ensure!(!cases.is_empty(), "{stage:?} has no quick case");
    let settings = Settings {
        rounds: ROUNDS,
        other_build: None,
    };
    let mut failures = Vec::new();
    faults::run(&cases, &settings, |outcome| {
        println!("{outcome}");
        let of = |failure: &String| format!("{}: {failure}", outcome.case);
        failures.extend(outcome.failures.iter().map(of));
    })?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn agent_programs_devices_and_nodes() -> Result<()> {
    campaign(Stage::Plain)
}

#[test]
fn programs_by_clsact() -> Result<()> {
    campaign(Stage::Clsact)
}

#[test]
fn etcd() -> Result<()> {
    campaign(Stage::ShortLease)
}

#[test]
fn leases_in_a_directory() -> Result<()> {
    campaign(Stage::Directory)
}

#[test]
fn full_maps() -> Result<()> {
    campaign(Stage::Wide)
}

#[test]
fn clsact_serves_where_there_is_no_tcx() -> Result<()> {
    let lab = Lab::up(Options {
        agent_args: vec!["--attach=clsact".to_owned()],
        ..Options::for_test("clsact")
    })?;
    let node = lab.node(1);
    // Our own filters do not keep pods from the fast path.
    status::wait_accelerated(&lab)?;
    let links = node.run(["ls", &LINKS.to_string()])?;
    ensure!(links.is_empty(), "attached by tcx as well: {links}");

    let (a, b) = (lab.pod(1, 1), lab.pod(2, 1));
    let running = Traffic::start(&(&a).into(), &(&b).into())?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let outcome = running.finish()?;
    println!("by clsact: {outcome}");
    ensure!(outcome.lost() == 0, "by clsact: {outcome}");
    let counts = Counts::of(&node)?;
    let ratio = counts.hit_ratio_without(&[]);
    ensure!(
        ratio > 0.9,
        "only {ratio} of packets take the fast path: {counts:?}"
    );

    let other = lab.node(2);
    other.stop_agent(Signal::SIGTERM)?;
    other.run([
        "overlayd",
        "cleanup",
        &format!("--etcd-endpoints={}", lab.store_endpoint()),
    ])?;
    no_filters(&other)?;
    lab.down()
}

/// Whether no device of a node has a filter of ours.
fn no_filters(node: &Node) -> Result<()> {
    let filters = "for device in $(ls /sys/class/net); do
                       tc filter show dev $device ingress; tc filter show dev $device egress
                   done";
    let left = node.run(["sh", "-c", filters])?;
    ensure!(!left.contains("ov_"), "filters are left:\n{left}");
    Ok(())
}

/// The state that `overlayd cleanup` could change, as shown by tools.
fn surroundings(node: &Node) -> Result<String> {
    let mut all = String::new();
    for line in [
        "ip -o link show",
        "ip -o address show",
        "ip route show table all",
        "ip neighbour show nud permanent",
        "bridge fdb show",
        "iptables-save",
        "nft list ruleset",
        "find /sys/fs/bpf",
        "find /run -xdev",
        "find /var/lib/cni/networks",
        "tc qdisc show",
    ] {
        let text = node.run(line.split(' '))?;
        for line in text.lines().filter(|line| !is_incidental(line)) {
            all.push_str(&without_counts(line));
            all.push('\n');
        }
    }
    Ok(all)
}

/// The files that start and end leave by design.
const LEFT: [&str; 3] = ["/run/flannel", "/run/overlay", "/run/overlay/agent.lock"];

/// Lines that change without any action of ours.
fn is_incidental(line: &str) -> bool {
    // Comments of iptables-save contain the time of day.
    line.starts_with('#')
        // Entries that the bridge has learned.
        || line.contains(" dev veth") && !line.contains("permanent")
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
        // Cleanup releases the lease; with only one subnet for each node the next lease is the
        // same.
        network: serde_json::json!({
            "Network": "10.244.0.0/16",
            "SubnetMin": "10.244.1.0",
            "SubnetMax": "10.244.2.0",
            "Backend": {"Type": "vxlan"}
        }),
        ..Options::for_test("cleanup")
    })?;
    let node = lab.node(1);
    // These objects of other programs must stay.
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

    let without_left = clean.lines().filter(|line| !LEFT.contains(line));
    let without_left = without_left.collect::<Vec<_>>().join("\n");
    no_filters(&node)?;
    // Where programs are filters, their qdisc stays, because another program may use it.
    ensure!(
        !fast_path::has_tcx(&node)? || !without_left.contains("clsact"),
        "clsact is left:\n{clean}"
    );
    for ours in [
        "flannel",
        "/overlay",
        "proto 111",
        "FLANNEL",
        "table inet overlay",
        "table bridge overlay",
    ] {
        ensure!(!without_left.contains(ours), "{ours} is left:\n{clean}");
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

    // The same again, with one of the agent's files missing in between.
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
        let (a, b) = (
            Endpoint::from(&lab.pod(1, 1)),
            Endpoint::from(&lab.pod(2, 1)),
        );
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

/// The lease has an address that the node does not have any more.
#[test]
fn cleanup_gives_up_the_lease_of_a_node_that_has_moved() -> Result<()> {
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        ..Options::for_test("moved")
    })?;
    let node = lab.node(1);
    let leases = || {
        lab.etcdctl(&[
            "get",
            "--prefix",
            "--keys-only",
            "/coreos.com/network/subnets/",
        ])
    };
    ensure!(!leases()?.trim().is_empty(), "no lease to begin with");
    node.stop_agent(Signal::SIGTERM)?;
    let old = node.underlay_address();
    for line in [
        // The order matters, because the kernel removes the other addresses with the first one of a
        // subnet.
        format!("ip address del {old}/24 dev eth0"),
        "ip address add 192.168.66.77/24 dev eth0".to_owned(),
    ] {
        node.run(line.split(' '))?;
    }
    let endpoints = format!("--etcd-endpoints={}", lab.store_endpoint());
    node.run(["overlayd", "cleanup", "--iface=eth0", &endpoints])?;
    let left = leases()?;
    ensure!(left.trim().is_empty(), "left in etcd: {left}");
    lab.down()
}

/// The lines that only one of the texts has.
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
