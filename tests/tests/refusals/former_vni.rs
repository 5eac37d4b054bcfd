//! A network that has changed its VNI: no device is left that would accept packets with the former
//! one.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::frame::{IPV4, Ip, VXLAN_PORT, ethernet, vxlan};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Options};

use crate::case::{mark, marked};
use crate::stage::mac;

/// Time of silence in the lab after which a packet that has not arrived counts as refused.
const QUIET: Duration = Duration::from_millis(500);
const FORMER: u32 = 1;

#[test]
fn forged_vxlan_with_the_former_vni_is_not_delivered() -> Result<()> {
    let lab = Lab::up(Options {
        fast_path: "off".into(),
        ..Options::for_test("old-vni")
    })?;
    let (node, peer, pod) = (lab.node(1), lab.node(2), lab.pod(1, 1));
    let (own, other) = (node.namespace(), peer.namespace());
    let (nic, device) = (mac(&own, "eth0")?, mac(&own, "flannel.1")?);
    let (sender, remote) = (mac(&other, "eth0")?, mac(&other, "flannel.1")?);
    let forge = |number: usize, inner: Ipv4Addr| -> Result<bool> {
        let listener = RawSocket::open(&pod.namespace(), "eth0")?;
        let packet = Ip::udp(inner, pod.address(), 9, &mark(number)).packet();
        let inside = ethernet(device, remote, IPV4, &packet);
        let (from, to) = (peer.underlay_address(), node.underlay_address());
        let outer = Ip::udp(from, to, VXLAN_PORT, &vxlan(FORMER, &inside));
        RawSocket::open(&other, "eth0")?.send(&ethernet(nic, sender, IPV4, &outer.packet()))?;
        let arrived = listener.incoming(QUIET, |_| true)?;
        Ok(arrived.iter().any(|frame| marked(frame) == Some(number)))
    };
    ensure!(
        forge(1, lab.pod(2, 1).address())?,
        "an honest packet is lost"
    );

    let config = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
    lab.etcdctl(&["put", "/coreos.com/network/config", config])?;
    node.stop_agent(Signal::SIGTERM)?;
    // A foreign device, on another port and without an address of the network.
    node.run([
        "ip",
        "link",
        "add",
        "flannel.9",
        "type",
        "vxlan",
        "id",
        "9",
        "dstport",
        "4789",
    ])?;
    node.start_agent(&[])?;
    let forged = Ipv4Addr::new(10, 244, 250, 9);
    ensure!(
        !forge(2, forged)?,
        "a packet with the former VNI is delivered"
    );
    let links = node.run(["ip", "-o", "link", "show", "type", "vxlan"])?;
    ensure!(
        !links.contains("flannel.1:"),
        "the former device stays: {links}"
    );
    ensure!(links.contains("flannel.2:"), "there is no device: {links}");
    ensure!(
        links.contains("flannel.9:"),
        "the other device is gone: {links}"
    );
    lab.down()
}
