//! No host on the link can pretend to be a pod of this very node.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_tests::fast_path::packets;
use overlay_tests::frame::Mac;
use overlay_tests::packet::RawSocket;
use overlay_tests::{BackendKind, Lab, Namespace, wait_until};

use super::{lab, wait_fast};

/// Longest time of a packet through the lab.
const PATIENCE: Duration = Duration::from_secs(5);
/// Payload of the packet that must not arrive, and of the one that must.
const FORGED: &[u8] = b"forged, to be refused";
const HONEST: &[u8] = b"honest, to be carried";

#[test]
fn a_pod_of_this_node_is_not_on_the_link_say_programs() -> Result<()> {
    let lab = lab("forged-fast", BackendKind::HostGw, "auto", "auto")?;
    wait_fast(&lab)?;
    let node = lab.node(2);
    forge(&lab)?;
    ensure!(packets(&node, "net_in", "foreign_inner_source")? == 1);
    // From another MAC address than the peer's a packet takes no short cut, but does no harm.
    ensure!(packets(&node, "net_in", "unproven_source")? == 1);
    Ok(())
}

#[test]
fn a_pod_of_this_node_is_not_on_the_link_says_the_guard() -> Result<()> {
    let lab = lab("forged-slow", BackendKind::HostGw, "off", "nftables")?;
    forge(&lab)?;
    let counters = lab.node(2).run(["nft", "list", "counters"])?;
    let dropped = counters.split("own_subnet").nth(1).unwrap_or_default();
    ensure!(dropped.contains("packets 1 "), "{counters}");
    Ok(())
}

/// Sends to a pod of the second node, from a host that is no node: first with the address of a pod
/// of that node as source, then with that of a pod of the first node. Only the latter packet
/// arrives.
fn forge(lab: &Lab) -> Result<()> {
    let outside = lab.namespace("outside")?;
    let (from, to) = (mac(&outside)?, mac(&lab.node(2).namespace())?);
    let (target, neighbour, remote) = (lab.pod(2, 1), lab.pod(2, 2), lab.pod(1, 1));
    let ear = RawSocket::open(&target.namespace(), "eth0")?;
    let mouth = RawSocket::open_for_sending(&outside, "eth0")?;
    for (source, payload) in [(neighbour.address(), FORGED), (remote.address(), HONEST)] {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2(from, to)
            .ipv4(source.octets(), target.address().octets(), 64)
            .udp(40000, 40001)
            .write(&mut frame, payload)?;
        mouth.send(&frame)?;
    }
    let mut seen = Vec::new();
    wait_until("the honest packet", PATIENCE, || {
        let frames = ear.drain(Duration::from_millis(20)).unwrap_or_default();
        seen.extend(frames.into_iter().map(|frame| frame.bytes));
        seen.iter().any(|frame| frame.ends_with(HONEST))
    })?;
    ensure!(
        !seen.iter().any(|frame| frame.ends_with(FORGED)),
        "the forged packet arrived"
    );
    Ok(())
}

fn mac(namespace: &Namespace) -> Result<Mac> {
    let text = namespace.run(["cat", "/sys/class/net/eth0/address"])?;
    let mac: overlay_user::mac::MacAddr = text.trim().parse()?;
    Ok(mac.0)
}
