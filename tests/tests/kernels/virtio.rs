//! Network cards whose driver has native XDP: early refusal is enabled by default where it costs
//! nothing.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::fast_path::packets;
use overlay_tests::reach;
use overlay_tests::status::Counts;
use overlay_tests::{Lab, Node, Options, command, wait_until};

use crate::kernel::expected_mechanism;
use crate::lab::{options, wait_for_best_path};
use crate::underlays::{SAID, inner_address, ip, lab_over, require_said};

/// The name of a card on its node.
const CARD: &str = "nic0";
/// A host of the underlay that is no node.
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 77);
/// Number of datagrams that the stranger sends.
const FORGED: u64 = 20;
const VXLAN_PORT: u16 = 8472;

/// The machine's virtio cards: those that lose no offload by XDP, then those that would.
fn cards() -> Result<(Vec<String>, Vec<String>)> {
    let (mut plain, mut offloading) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
        if !driver.ends_with("virtio_net") {
            continue;
        }
        let name = path.file_name().context("a device without a name")?;
        let features = fs::read(path.join("device/features"))?;
        // The digit of VIRTIO_NET_F_GUEST_CSUM, because the lowest bit comes first.
        let list = if features.get(1) == Some(&b'1') {
            &mut offloading
        } else {
            &mut plain
        };
        list.push(name.to_string_lossy().into_owned());
    }
    plain.sort_unstable();
    Ok((plain, offloading))
}

/// Gives a card of the machine to a node, as its way to the underlay.
fn hand_over(card: &str, node: &Node) -> Result<()> {
    let namespace = node.namespace();
    command::ip(&format!(
        "link set {card} netns {} name {CARD}",
        namespace.name()
    ))?;
    let own = inner_address(node);
    ip(
        node,
        &format!("address add {own}/24 dev {CARD}\nlink set {CARD} up\n"),
    )
}

/// Whether a program is attached to the driver of the node's card.
fn has_native_program(node: &Node) -> Result<bool> {
    let links = node.json(["ip", "-j", "link", "show", "dev", CARD])?;
    // 1 is native (`XDP_ATTACHED_DRV` of linux/if_link.h).
    Ok(links[0]["xdp"]["mode"] == 1)
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn early_refusal_comes_by_itself_where_it_costs_nothing() -> Result<()> {
    let (cards, _) = cards()?;
    ensure!(cards.len() == 2, "cards without offloads: {cards:?}");
    let plug = |node: &Node, _: &Node| hand_over(&cards[node.number() - 1], node);
    let lab = lab_over("virtio", plug, CARD)?;
    if !wait_for_best_path(&lab)? {
        reach::require_all(&lab)?;
        return lab.down();
    }
    require_said(&lab, |_| format!("early refusal: by native XDP on {CARD}"))?;
    reach::require_all(&lab)?;
    for node in lab.nodes() {
        ensure!(has_native_program(&node)?, "no program in the driver");
        let counts = Counts::of(&node)?;
        ensure!(
            counts.encapsulated > 0 && counts.decapsulated > 0,
            "{counts:?}"
        );
    }

    let (victim, other) = (lab.node(1), lab.node(2));
    ip(&other, &format!("address add {STRANGER}/24 dev {CARD}\n"))?;
    let socket = other
        .namespace()
        .inside(|| UdpSocket::bind((STRANGER, 0)))??;
    // VNI 1, with any content.
    let mut forged = [0; 100];
    forged[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 1, 0]);
    for _ in 0..FORGED {
        socket.send_to(&forged, (inner_address(&victim), VXLAN_PORT))?;
    }
    wait_until("XDP to refuse forged VXLAN", SAID, || {
        packets(&victim, "net_xdp", "unknown_vtep").is_ok_and(|refused| refused >= FORGED)
    })?;
    lab.down()
}

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn early_refusal_keeps_off_where_it_would_cost_offloads() -> Result<()> {
    let (_, cards) = cards()?;
    let [card] = &cards[..] else {
        anyhow::bail!("cards with offloads: {cards:?}");
    };
    let lab = Lab::up(Options {
        nodes: 1,
        start_agents: false,
        ..options("offloads")
    })?;
    let node = lab.node(1);
    hand_over(card, &node)?;
    let iface = format!("--iface={CARD}");
    node.start_agent(&[&iface])?;
    if expected_mechanism().is_none() {
        let answer = node.http_get("/readyz")?.body;
        ensure!(!answer.contains("early refusal"), "{answer}");
        return lab.down();
    }
    let why = "virtio_net would switch its receive offloads off";
    require_said(&lab, |_| {
        format!("early refusal: behind the NIC: {CARD}: {why}")
    })?;
    ensure!(!has_native_program(&node)?, "a program in the driver");

    node.stop_agent(Signal::SIGTERM)?;
    node.start_agent(&[&iface, "--xdp=on"])?;
    require_said(&lab, |_| format!("early refusal: by native XDP on {CARD}"))?;
    ensure!(has_native_program(&node)?, "no program in the driver");
    lab.down()
}
