//! The agent's knowledge of the kernel is out of date.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::packet::RawSocket;
use overlay_tests::status::wait_accelerated;
use overlay_tests::{Lab, Options, command, wait_until};

use crate::{SOON, shell};

/// Number of the kernel's events while the agent does not read: far more than its socket's buffer
/// holds.
const BURST: u32 = 100_000;

/// Events that the agent's netlink sockets have lost, from the last but one column of
/// `/proc/net/netlink`.
fn lost_events(lab: &Lab) -> Result<u64> {
    let node = lab.node(1);
    let pid = node.agent().context("an agent")?.pid;
    // The agent's sockets are recognised by their inodes, the last column.
    let script = format!(
        "for fd in /proc/{pid}/fd/*; do readlink $fd; done | sed -n \
        's/^socket:.\\([0-9]*\\).$/\\1/p' > /run/inodes
         awk 'NR == FNR {{ own[$1] = 1; next }} $NF in own {{ lost += $(NF - 1) }} END {{ print \
         lost + 0 }}' /run/inodes /proc/net/netlink"
    );
    let lost = shell(&node, &script)?;
    lost.trim()
        .parse()
        .with_context(|| format!("a count: {lost}"))
}

#[test]
fn the_state_is_right_after_an_overrun_of_netlink() -> Result<()> {
    let lab = Lab::up(Options::for_test("overrun"))?;
    let (node, peer) = (lab.node(1), lab.node(2));
    let state = || {
        shell(
            &node,
            "ip route show proto 111; ip neigh show dev flannel.1 nud permanent
             bridge fdb show dev flannel.1 | grep dst; ip -br link show flannel.1",
        )
    };
    let before = state()?;
    ensure!(before.contains(&peer.subnet()?.to_string()), "{before}");
    let agent = node.agent().context("an agent")?;
    agent.signal(Signal::SIGSTOP)?;
    // The event of the last damage finds no room in the buffer any more.
    let damage = shell(
        &node,
        &format!(
            "set -e
             ip link add burst type bridge; ip link set burst up
             seq 0 {} | awk '{{ print \"route add 172.\" 16 + int($1 / 65536) \".\" int($1 / 256) \
             % 256 \".\" $1 % 256 \" dev burst\" }}' | ip -batch -
             ip link delete burst
             ip route flush proto 111
             ip neigh flush dev flannel.1 nud permanent
             ip link set flannel.1 down",
            BURST - 1
        ),
    );
    let lost = lost_events(&lab);
    agent.signal(Signal::SIGCONT)?;
    damage?;
    ensure!(lost? > 0, "the agent's socket has lost nothing");
    wait_until("the state to be right", SOON, || {
        state().is_ok_and(|now| now == before)
    })
    .with_context(|| format!("{before}\n{:?}\n{}", state(), node.agent_log_tail()))?;
    node.wait_ready(SOON)?;
    wait_accelerated(&lab)?;
    lab.down()
}

/// The agent is dead, a pod's veth was deleted, and another pod's veth has its index: packets to
/// the deleted pod must not reach the other.
#[test]
fn a_recycled_index_shows_nobody_anothers_packets() -> Result<()> {
    let lab = Lab::up(Options::for_test("recycled"))?;
    wait_accelerated(&lab)?;
    let (node, gone) = (lab.node(1), lab.pod(1, 2));
    let device = gone.host_interface()?;
    let index = node.read_file(format!("/sys/class/net/{device}/ifindex"))?;
    node.stop_agent(Signal::SIGKILL)?;
    // The runtime calls no DEL.
    node.run(["ip", "link", "delete", &device])?;
    let other = lab.add_pod(1)?;
    let (theirs, namespace) = (other.host_interface()?, other.namespace());
    // A device that moves to another namespace keeps its index where that is free; so do these two.
    node.run(["ip", "link", "delete", &theirs])?;
    command::ip(&format!(
        "-n {} link add {theirs} index {} type veth peer name eth0 netns {}",
        node.namespace().name(),
        index.trim(),
        namespace.name()
    ))?;
    shell(&node, &format!("ip link set {theirs} master cni0 up"))?;
    let gateway = node.subnet()?.hosts().next().context("a gateway")?;
    for line in [
        format!("ip address add {}/24 dev eth0", other.address()),
        "ip link set eth0 up".to_owned(),
        format!("ip route add default via {gateway}"),
    ] {
        namespace.run(line.split(' '))?;
    }
    let listener = RawSocket::open(&namespace, "eth0")?;
    // Packets come from the same node and from another, in forms that need no answer.
    let target = gone.address().to_string();
    for from in [lab.pod(1, 1), lab.pod(2, 1)] {
        from.exec(["ping", "-c20", "-i0.01", "-W1", &target])?;
    }
    let wanted = gone.address().octets();
    let is_anothers = |frame: &[u8]| {
        // Only IPv4 with this destination counts, because ARP for the deleted pod reaches all.
        frame.get(12..14) == Some(&[8, 0]) && frame.get(30..34) == Some(&wanted)
    };
    let seen = listener.incoming(std::time::Duration::from_millis(200), is_anothers)?;
    ensure!(
        seen.is_empty(),
        "{} packets for {target} reach {}: {:02x?}",
        seen.len(),
        other.name(),
        seen[0]
    );
    lab.down()
}
