//! Network policies in netfilter: packets that policies apply to take the kernel path, which
//! applies the policies.

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::kube_proxy::{self, HostPort, Service};
use overlay_tests::status::status;
use overlay_tests::{Lab, Node, Options, Pod, fast_path, wait_until};

/// The agent looks for rules once a second, and reports the consequence in a round.
const SOON: Duration = Duration::from_secs(20);

/// One node's rule, and the object that keeps the rule in place.
struct Rule {
    add: String,
    remove: String,
    /// The name of the rule in `overlayctl status`.
    named: &'static str,
}

fn shell(node: &Node, line: &str) -> Result<String> {
    node.run(["sh", "-c", line])
}

fn reaches(from: &Pod, to: &Pod) -> Result<bool> {
    let address = to.address().to_string();
    let echo = from.exec(["ping", "-c", "1", "-W", "1", &address])?;
    Ok(echo.status.success())
}

/// The status of policies.
fn policies(node: &Node) -> Result<Option<String>> {
    let found = status(node)?;
    Ok(found["network_policies"].as_str().map(str::to_owned))
}

fn wait_for_policy(node: &Node, named: &str) -> Result<()> {
    wait_until(&format!("{named:?} in the status"), SOON, || {
        policies(node).is_ok_and(|found| found.is_some_and(|found| found.contains(named)))
    })
    .with_context(|| node.agent_log_tail())
}

/// Readiness, metrics and status report the same.
fn is_told(node: &Node, named: &str, state: &str) -> Result<()> {
    let ready = node.http_get("/readyz")?;
    ensure!(ready.status == 200, "not ready: {}", ready.body);
    ensure!(ready.body.contains(named), "no {named:?} in {}", ready.body);
    let metrics = node.http_get("/metrics")?.body;
    let metric = "overlay_policy_engines{engine=\"other\"} 1";
    ensure!(metrics.contains(metric), "no {metric} in {metrics}");
    let found = status(node)?;
    ensure!(
        found["fast_path"]["state"] == state,
        "the fast path is {}",
        found["fast_path"]["state"]
    );
    let table = node.run(["overlayctl", "status"])?;
    ensure!(table.contains(named), "no {named:?} in {table}");
    Ok(())
}

/// The rule drops packets between the pods of one node and another, whichever path the packets
/// take.
#[test]
fn rules_are_kept_on_the_kernel_path_and_the_fast_path_comes_back() -> Result<()> {
    let lab = Lab::up(Options::for_test("policy"))?;
    let node = lab.node(1);
    let (pod, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    fast_path::wait_serving(&node)?;
    fast_path::wait_serving(&lab.node(2))?;
    let between = |to: &Pod| format!("-s {} -d {}", pod.address(), to.address());
    // Not priority 0 in the family bridge: where br_netfilter takes a packet through the hooks of
    // IPv4, the kernel passes by all hooks of the bridge up to that priority (6.1,
    // `br_nf_hook_thresh()`).
    let nft = |family: &str, to: &Pod| Rule {
        add: format!(
            "nft 'add table {family} mine; \
             add chain {family} mine forward {{ type filter hook forward priority filter; }}; \
             add rule {family} mine forward ip saddr {} ip daddr {} drop'",
            pod.address(),
            to.address()
        ),
        remove: format!("nft delete table {family} mine"),
        named: "drop in",
    };
    let iptables = |program: &str, target: &str, named| {
        let rule = format!("FORWARD {} -j {target}", between(&remote));
        Rule {
            add: format!("{program} -w -I {rule}"),
            remove: format!("{program} -w -D {rule}"),
            named,
        }
    };
    let mut cases = vec![
        (nft("inet", &remote), &remote),
        (nft("bridge", &neighbour), &neighbour),
        (
            iptables("iptables-nft", "DROP", "other: drop in ip filter FORWARD"),
            &remote,
        ),
        // No program reads the queue, so the kernel drops the packets.
        (
            iptables("iptables-nft", "NFQUEUE --queue-num 9", "other: NFQUEUE in"),
            &remote,
        ),
    ];
    if fs::exists("/proc/net/ip_tables_names")? {
        let legacy = iptables(
            "iptables-legacy",
            "DROP",
            "drop in iptables-legacy filter FORWARD",
        );
        cases.push((legacy, &remote));
    }
    for (rule, to) in cases {
        let add = &rule.add;
        let verdict = match to.node().number() {
            1 => "redirected",
            _ => "encapsulated",
        };
        let before = fast_path::packets(&node, "pod_in", verdict)?;
        ensure!(reaches(&pod, to)?, "before {add}");
        ensure!(
            fast_path::packets(&node, "pod_in", verdict)? > before,
            "slow before {add}"
        );

        shell(&node, add)?;
        wait_for_policy(&node, rule.named)?;
        ensure!(!reaches(&pod, to)?, "past {add}");
        ensure!(
            reaches(&pod, &lab.pod(2, 2))?,
            "others than {add} says are cut off"
        );
        is_told(&node, rule.named, "inactive").with_context(|| add.clone())?;

        shell(&node, &rule.remove)?;
        fast_path::wait_serving(&node).with_context(|| add.clone())?;
        wait_until(&format!("{add} to be forgotten"), SOON, || {
            policies(&node).is_ok_and(|found| found.is_none())
        })?;
        let before = fast_path::packets(&node, "pod_in", verdict)?;
        ensure!(reaches(&pod, to)?, "after {add}");
        ensure!(
            fast_path::packets(&node, "pod_in", verdict)? > before,
            "slow after {add}"
        );
    }
    lab.down()
}

/// An operator who forces the fast path gets a note on the bypassed rule; an agent that starts
/// without force finds the rule at once.
#[test]
fn force_goes_past_rules_and_says_so() -> Result<()> {
    const NAMED: &str = "filter FORWARD";
    let lab = Lab::up(Options {
        fast_path: "force".to_owned(),
        ..Options::for_test("force")
    })?;
    let (node, pod, remote) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    fast_path::wait_serving(&node)?;
    fast_path::wait_serving(&lab.node(2))?;
    shell(
        &node,
        &format!("iptables -w -I FORWARD -s {} -j DROP", pod.address()),
    )?;
    wait_for_policy(&node, NAMED)?;
    ensure!(reaches(&pod, &remote)?, "the fast path is not forced");
    is_told(&node, NAMED, "active")?;
    is_told(&node, "passes them by", "active")?;

    node.stop_agent(Signal::SIGTERM)?;
    ensure!(reaches(&pod, &remote)?, "the programs outlive the agent");
    node.start_agent(&["--fast-path=auto"])?;
    ensure!(
        !reaches(&pod, &remote)?,
        "ready, and past the rule all the same"
    );
    is_told(&node, NAMED, "inactive")?;
    lab.down()
}

/// Rules on the nodes of every cluster do not affect the fast path: kube-proxy's, those of the
/// portmap plugin, and Docker's, whose policy drops packets that flannel's rules have not accepted
/// before.
#[test]
fn the_clusters_own_rules_are_no_policies() -> Result<()> {
    const DOCKER: &str = "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n\
        :DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n\
        -A DOCKER-USER -j RETURN\n\
        -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
        -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n\
        -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n\
        -I FORWARD -i docker0 -o docker0 -j ACCEPT\n\
        -I FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
        -I FORWARD -o docker0 -j DOCKER\n\
        -I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -I FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
        -I FORWARD -j DOCKER-USER\nCOMMIT\n";
    const NAMED: &str = "raw PREROUTING";
    let lab = Lab::up(Options::for_test("engines"))?;
    let (node, pod, remote) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    fast_path::wait_serving(&node)?;
    fast_path::wait_serving(&lab.node(2))?;
    let backend = SocketAddrV4::new(remote.address(), 8080);
    let service = Service {
        name: "WEB",
        address: "10.96.0.7:80".parse()?,
        backends: vec![backend],
        node_port: Some(30007),
        local_only: false,
        masquerade_all: false,
    };
    kube_proxy::serve(&node, "10.244.0.0/16".parse()?, &[service])?;
    let port = HostPort {
        port: 8088,
        pod: SocketAddrV4::new(pod.address(), 8080),
        subnet: node.subnet()?,
    };
    kube_proxy::map_ports(&node, &[port])?;
    shell(
        &node,
        &format!("iptables-restore --noflush --wait <<'EOF'\n{DOCKER}EOF"),
    )?;

    // When this policy is reported, the agent has read all of the rules.
    shell(&node, "iptables -w -t raw -I PREROUTING -p sctp -j DROP")?;
    wait_for_policy(&node, NAMED)?;
    let found = policies(&node)?.unwrap_or_default();
    ensure!(
        found.matches(" in ").count() == 1,
        "more than that one counts: {found}"
    );
    shell(&node, "iptables -w -t raw -D PREROUTING -p sctp -j DROP")?;
    fast_path::wait_serving(&node)?;
    let before = fast_path::packets(&node, "pod_in", "encapsulated")?;
    ensure!(reaches(&pod, &remote)?);
    ensure!(
        fast_path::packets(&node, "pod_in", "encapsulated")? > before,
        "slow"
    );

    // Without flannel's rules, Docker's policy drops packets.
    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&["--iptables-forward-rules=false"])?;
    wait_for_policy(&node, "policy drop in")?;
    ensure!(!reaches(&pod, &remote)?, "past the policy");
    lab.down()
}
