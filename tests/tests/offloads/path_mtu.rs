//! The path's MTU, and changes of it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{IpMtu, TcpMaxSeg};
use overlay_tests::fast_path::packets;
use overlay_tests::traffic::{Answers, udp};
use overlay_tests::{Node, reach, wait_until};

use crate::support::{Flow, STREAM, UNDERLAY_FRAME, carried, ethtool, lab, watch};

/// Longest time until the agent has followed a change in the kernel.
const FOLLOWED: Duration = Duration::from_secs(2);

/// Waits until all values that depend on the underlay's MTU show `mtu`.
fn followed(node: &Node, mtu: u32) -> Result<()> {
    let device = format!(" mtu {mtu} ");
    let line = format!("FLANNEL_MTU={mtu}");
    wait_until(
        &format!("{} to follow to MTU {mtu}", node.name()),
        FOLLOWED,
        || {
            let link = node.run(["ip", "link", "show", "flannel.1"]);
            let file = node.read_file("/run/flannel/subnet.env");
            let status = node.json(["overlayctl", "status", "--output", "json"]);
            link.is_ok_and(|link| link.contains(&device))
                && file.is_ok_and(|file| file.lines().any(|found| found == line))
                && status.is_ok_and(|status| status["peers"][0]["mtu"] == mtu)
        },
    )
    .with_context(|| node.agent_log_tail())
}

#[test]
fn a_lower_mtu_of_the_underlay_is_noticed_and_flows_survive_it() -> Result<()> {
    let lab = lab("mtu")?;
    let (node, sender, receiver) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    followed(&node, 1450)?;
    let mut flow = Flow::between(&sender, &receiver)?;
    flow.carry(STREAM)?;
    let mss = || getsockopt(&flow.client, TcpMaxSeg).context("ask for the segment size");
    let wide = mss()?;
    let udp_mtu = || -> Result<i32> {
        let address = SocketAddr::from((sender.address(), 0));
        let socket = sender.namespace().inside(|| UdpSocket::bind(address))??;
        socket.connect((receiver.address(), 9)).context("connect")?;
        getsockopt(&socket, IpMtu).context("ask for the path's MTU")
    };
    ensure!(udp_mtu()? == 1450, "the pod's own MTU");

    let set_mtu = |mtu: &str| -> Result<()> {
        for node in lab.nodes() {
            node.run(["ip", "link", "set", "eth0", "mtu", mtu])?;
        }
        Ok(())
    };
    set_mtu("1300")?;
    lab.nodes()
        .iter()
        .try_for_each(|node| followed(node, 1250))?;
    flow.carry(STREAM).context("after the MTU went down")?;
    let narrow = getsockopt(&flow.client, TcpMaxSeg)?;
    ensure!(
        narrow == wide - 200,
        "segments of {wide}, then {narrow} bytes"
    );
    ensure!(udp_mtu()? == 1250, "UDP did not learn the path's MTU");
    let target = receiver.address().to_string();
    let ping = |size: &str| sender.exec(["ping", "-c1", "-W2", "-Mdo", "-s", size, &target]);
    ensure!(
        !ping("1300")?.status.success(),
        "too long with DF and delivered"
    );
    ensure!(
        ping("1222")?.status.success(),
        "as long as the path allows, lost"
    );
    // Packets that may be fragmented are fragmented.
    let (from, to) = (reach::of_pod(&sender), reach::of_pod(&receiver));
    udp(&from, &to, 1240, Answers::Twice)?;

    let before = carried(&lab)?;
    flow.carry(STREAM)?;
    let after = carried(&lab)?;
    ensure!(
        after.0 > before.0 + 20,
        "shorter segments stay on the fast path"
    );

    set_mtu("1500")?;
    lab.nodes()
        .iter()
        .try_for_each(|node| followed(node, 1450))?;
    flow.carry(STREAM).context("after the MTU went up again")?;
    sender.run(["ip", "route", "flush", "cache"])?;
    ensure!(
        ping("1422")?.status.success(),
        "as long as the path allows again, lost"
    );
    Ok(())
}

#[test]
fn a_lower_mtu_of_the_route_to_a_peer_is_kept() -> Result<()> {
    let lab = lab("routemtu")?;
    let (node, sender, receiver) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    let peer = lab.node(2).underlay_address().to_string();
    let peer_mtu = |mtu: u32| {
        wait_until(&format!("the fast path to keep to {mtu}"), FOLLOWED, || {
            node.json(["overlayctl", "status", "--output", "json"])
                .is_ok_and(|status| status["peers"][0]["mtu"] == mtu)
        })
        .with_context(|| node.agent_log_tail())
    };
    peer_mtu(1450)?;
    let line = format!("ip route add {peer}/32 dev eth0 mtu 1300");
    node.run(line.split(' '))?;
    peer_mtu(1250)?;
    // Pods may send packets as long as the device allows; the kernel fragments them for the route.
    let before = packets(&node, "pod_in", "too_long")?;
    let mut flow = Flow::between(&sender, &receiver)?;
    ethtool(&sender.namespace(), "eth0", "tso off gso off")?;
    let ((), longest) = watch(&lab, || flow.carry(STREAM / 10))?;
    ensure!(
        longest.wire <= 1314 && longest.receiver > 1314,
        "not fragmented on the wire alone: {longest:?}"
    );
    ensure!(
        packets(&node, "pod_in", "too_long")? > before + 20,
        "what does not fit the route was not left to the kernel"
    );
    node.run(["ip", "route", "delete", &peer])?;
    peer_mtu(1450)?;
    let ((), longest) = watch(&lab, || flow.carry(STREAM / 10))?;
    ensure!(longest.wire == UNDERLAY_FRAME, "still cut: {longest:?}");
    Ok(())
}
