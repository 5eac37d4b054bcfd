//! The objects of the kernel path: device, neighbours, routes, rules, files.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Lab, Node, Options, wait_until};

use crate::{RESYNC, SOON, lab, shell, talk};

/// The state that a node's agent writes to the kernel's network and to the disk, as text. The index
/// and MAC address of the device are left out, because a new device has other ones.
pub fn kernel_state(node: &Node) -> Result<String> {
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

/// Damages the state while the agent is paused, so that the damage shows, and waits for the repair.
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
