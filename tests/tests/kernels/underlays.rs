//! Underlays that the development machine's kernel cannot make: bad wires, tunnels, an address that
//! is on no network card.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::reach;
use overlay_tests::status::Counts;
use overlay_tests::{Lab, Node, Options, command, wait_until};

use crate::kernel::expected_mechanism;
use crate::lab::{options, under_traffic, wait_for_best_path};

/// Longest time until an agent reports its findings.
pub const SAID: Duration = Duration::from_secs(10);

/// A lab of bare nodes, an underlay device that `plug` makes on each, and agents that use it.
pub fn lab_over(name: &str, plug: impl Fn(&Node, &Node) -> Result<()>, iface: &str) -> Result<Lab> {
    let lab = Lab::up(Options {
        start_agents: false,
        ..options(name)
    })?;
    let nodes = lab.nodes();
    plug(&nodes[0], &nodes[1])?;
    plug(&nodes[1], &nodes[0])?;
    let flag = format!("--iface={iface}");
    for node in &nodes {
        node.start_agent_unready(&[&flag])?;
    }
    lab.wait_converged()?;
    for node in &nodes {
        lab.add_pod(node.number())?;
    }
    lab.wait_converged()?;
    Ok(lab)
}

/// The address of a node on an underlay that a test has made.
pub fn inner_address(node: &Node) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, u8::try_from(node.number()).unwrap_or(u8::MAX))
}

/// Waits until every node is ready with this note.
pub fn require_said(lab: &Lab, what: impl Fn(&Node) -> String) -> Result<()> {
    for node in lab.nodes() {
        let what = what(&node);
        let said = || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.status == 200 && answer.body.contains(&what))
        };
        wait_until(&format!("{} to say {what:?}", node.name()), SAID, said)
            .with_context(|| format!("{:?}", node.http_get("/readyz")))?;
    }
    Ok(())
}

/// A node's note on a device whose frames the programs cannot parse.
fn no_ethernet(device: &str) -> String {
    format!("fast path: down: {device} carries no Ethernet frames")
}

pub fn ip(node: &Node, lines: &str) -> Result<()> {
    command::ip_batch(node.namespace().name(), lines)
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn a_bad_wire_costs_what_it_takes_and_no_more() -> Result<()> {
    let lab = Lab::up(options("netem"))?;
    let fast = wait_for_best_path(&lab)?;
    let wire = lab.namespace("underlay")?;
    let netem = |what: &str| -> Result<()> {
        for port in ["n1", "n2"] {
            let line = format!("tc qdisc replace dev {port} root netem {what}");
            wire.run(line.split(' '))?;
        }
        Ok(())
    };
    // Each direction crosses one of the two ports.
    netem("delay 5ms 3ms reorder 25% 50%")?;
    let outcome = under_traffic(&lab, || Ok(()))?;
    ensure!(outcome.lost() == 0, "reordered: {outcome}");

    netem("duplicate 20%")?;
    let outcome = under_traffic(&lab, || Ok(()))?;
    ensure!(outcome.lost() == 0, "duplicated: {outcome}");
    let [there, back] = outcome.datagrams;
    ensure!(
        there.repeated > 0 && back.repeated > 0,
        "duplicated: {outcome:?}"
    );

    netem("loss 10% delay 2ms")?;
    // An open TCP connection is a part of the traffic.
    let outcome = under_traffic(&lab, || Ok(()))?;
    for loss in outcome.datagrams {
        ensure!(
            loss.lost > 0 && loss.lost < loss.sent / 4,
            "a tenth is lost on the wire: {outcome}"
        );
    }
    if fast {
        for node in lab.nodes() {
            let counts = Counts::of(&node)?;
            ensure!(
                counts.encapsulated > 0 && counts.decapsulated > 0,
                "{counts:?}"
            );
        }
    }
    lab.down()
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn a_node_address_may_be_on_no_card() -> Result<()> {
    let plug = |node: &Node, other: &Node| {
        let (own, theirs) = (inner_address(node), inner_address(other));
        let via = other.underlay_address();
        ip(
            node,
            &format!(
                "link add node0 type dummy\naddress add {own}/32 dev node0\nlink set node0 up\n\
                 route add {theirs}/32 via {via} dev eth0 src {own}\n"
            ),
        )
    };
    let lab = lab_over("dummy", plug, "node0")?;
    if expected_mechanism().is_some() {
        require_said(&lab, |node| {
            let other = lab.node(3 - node.number());
            format!(
                "peers left to the kernel path: the routes to {} do not leave by node0",
                inner_address(&other)
            )
        })?;
    }
    reach::require_all(&lab)?;
    lab.down()
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn an_ipip_tunnel_may_be_the_underlay() -> Result<()> {
    let plug = |node: &Node, other: &Node| {
        let (local, remote) = (node.underlay_address(), other.underlay_address());
        let own = inner_address(node);
        ip(
            node,
            &format!(
                "link add ipip0 type ipip local {local} remote {remote} ttl 64\n\
                 address add {own}/24 dev ipip0\nlink set ipip0 up\n"
            ),
        )
    };
    let lab = lab_over("ipip", plug, "ipip0")?;
    require_said(&lab, |_| no_ethernet("ipip0"))?;
    reach::require_all(&lab)?;
    lab.down()
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn wireguard_may_be_the_underlay() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let key = |node: &Node| directory.path().join(node.name());
    let public = |node: &Node| -> Result<String> {
        let path = key(node);
        if !path.exists() {
            std::fs::write(&path, command::run("wg", ["genkey"])?)?;
        }
        let pubkey = format!("wg pubkey < {}", path.display());
        command::run("sh", ["-c", &pubkey]).map(|key| key.trim().to_owned())
    };
    let plug = |node: &Node, other: &Node| {
        let own = inner_address(node);
        public(node)?;
        ip(
            node,
            &format!("link add wg0 type wireguard\naddress add {own}/24 dev wg0\n"),
        )?;
        let peer = public(other)?;
        let private = key(node).display().to_string();
        let endpoint = format!("{}:51820", other.underlay_address());
        let allowed = format!("{}/32", inner_address(other));
        node.run([
            "wg",
            "set",
            "wg0",
            "listen-port",
            "51820",
            "private-key",
            &private,
            "peer",
            &peer,
            "endpoint",
            &endpoint,
            "allowed-ips",
            &allowed,
        ])
        .context("set WireGuard up")?;
        ip(node, "link set wg0 up\n")
    };
    let lab = lab_over("wireguard", plug, "wg0")?;
    require_said(&lab, |_| no_ethernet("wg0"))?;
    reach::require_all(&lab)?;
    lab.down()
}
