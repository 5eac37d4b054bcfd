//! Devices are set down, changed and deleted.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::scene::{REPAIR, Scene, shell};
use super::{Case, tools};
use crate::{Node, Pod, command, traffic, wait_until};

/// The time for which a cable is disconnected.
const CUT: Duration = Duration::from_secs(1);
/// The nodes' default route, which the kernel removes with the device's address or its state.
const DEFAULT_ROUTE: &str = "ip route replace default via 192.168.66.253";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "nic-down-and-up",
        fault: "the NIC is set down for a second, and up",
        invariant: "pods of the node go on among themselves",
        budget: 6_000,
        cuts_wire: true,
        run: |scene| {
            let node = scene.node();
            shell(&node, "ip link set eth0 down")?;
            sleep(CUT);
            let talked = scene.talk_locally();
            shell(&node, &format!("ip link set eth0 up; {DEFAULT_ROUTE}"))?;
            talked
        },
        ..Case::USUAL
    },
    Case {
        name: "nic-renamed",
        fault: "the NIC gets another name, for which it has to be down, and its name back",
        invariant: "the agent follows the device, not its name",
        budget: 2_500,
        cuts_wire: true,
        run: renamed,
        ..Case::USUAL
    },
    Case {
        name: "nic-replaced",
        fault: "the NIC is deleted and another with the same name and address put in its place",
        invariant: "programs and VXLAN device move to the new one",
        budget: 10_000,
        cuts_wire: true,
        run: replaced,
        ..Case::USUAL
    },
    Case {
        name: "nic-mtu-changed",
        fault: "the NIC's MTU is lowered, and raised again",
        invariant: "the VXLAN device's and subnet.env's MTU follow",
        run: mtu_changed,
        ..Case::USUAL
    },
    Case {
        name: "vxlan-device-deleted",
        fault: "flannel.1 is deleted",
        invariant: "it is made anew with its MAC address, so that peers need not learn another",
        run: vxlan_deleted,
        ..Case::USUAL
    },
    Case {
        name: "vxlan-device-set-down",
        fault: "flannel.1 is set down, and its routes with it",
        invariant: "it is set up, and the routes are back",
        run: |scene| shell(&scene.node(), "ip link set flannel.1 down").map(drop),
        ..Case::USUAL
    },
    Case {
        name: "vxlan-mac-changed",
        fault: "flannel.1 gets another MAC address",
        invariant: "peers learn it",
        budget: 700,
        cuts_wire: true,
        run: mac_changed,
        ..Case::USUAL
    },
    Case {
        name: "bridge-set-down",
        fault: "cni0 is set down",
        invariant: "it is set up",
        run: |scene| shell(&scene.node(), "ip link set cni0 down").map(drop),
        ..Case::USUAL
    },
    Case {
        name: "bridge-deleted",
        fault: "cni0 is deleted; a new pod makes it again, and the old ones are put back on it \
            by hand",
        invariant: "the agent says that its pods are cut off, and takes them up again; the plugin \
            works meanwhile",
        budget: 20_000,
        cuts_wire: true,
        run: bridge_deleted,
        ..Case::USUAL
    },
];

fn renamed(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    for (old, new) in [("eth0", "nic0"), ("nic0", "eth0")] {
        shell(
            &node,
            &format!(
                "ip link set {old} down; ip link set {old} name {new}; ip link set {new} up; \
                {DEFAULT_ROUTE}"
            ),
        )?;
        scene
            .wait_recovered()
            .with_context(|| format!("as {new}"))?;
    }
    Ok(())
}

fn replaced(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let (wire, namespace) = (scene.lab.namespace("underlay")?, node.namespace());
    command::ip(&format!("-n {} link delete n1", wire.name()))?;
    sleep(CUT);
    command::ip(&format!(
        "-n {} link add n1 type veth peer name eth0 netns {}",
        wire.name(),
        namespace.name()
    ))?;
    command::ip(&format!("-n {} link set n1 master br0 up", wire.name()))?;
    let address = node.underlay_address();
    shell(
        &node,
        &format!("ip address add {address}/24 dev eth0; ip link set eth0 up; {DEFAULT_ROUTE}"),
    )
    .map(drop)
}

fn mtu_changed(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    for mtu in [1400, 1500] {
        shell(&node, &format!("ip link set eth0 mtu {mtu}"))?;
        wait_mtu(&node, mtu - 50)?;
    }
    Ok(())
}

fn wait_mtu(node: &Node, mtu: u32) -> Result<()> {
    wait_until(&format!("an MTU of {mtu} bytes"), REPAIR, || {
        let device = node.read_file("/sys/class/net/flannel.1/mtu");
        let file = node.read_file("/run/flannel/subnet.env");
        device.is_ok_and(|text| text.trim() == mtu.to_string())
            && file.is_ok_and(|text| text.contains(&format!("FLANNEL_MTU={mtu}\n")))
    })
}

fn vxlan_deleted(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let device = |of: &str| {
        let text = node.read_file(format!("/sys/class/net/flannel.1/{of}"))?;
        anyhow::Ok(text.trim().to_owned())
    };
    let (index, mac) = (device("ifindex")?, device("address")?);
    shell(&node, "ip link delete flannel.1")?;
    wait_until("another device", REPAIR, || {
        device("ifindex").is_ok_and(|another| another != index)
    })?;
    let another = device("address")?;
    ensure!(another == mac, "the MAC address {mac} became {another}");
    Ok(())
}

fn mac_changed(scene: &Scene<'_>) -> Result<()> {
    let mac = "02:00:00:00:00:99";
    shell(
        &scene.node(),
        &format!("ip link set flannel.1 address {mac}"),
    )?;
    wait_until("the other node to know it", REPAIR, || {
        shell(&scene.lab.node(2), "ip neighbour show dev flannel.1")
            .is_ok_and(|table| table.contains(mac))
    })
}

/// Pods lose their ports with the bridge, and the settings of those ports are lost.
fn bridge_deleted(scene: &Scene<'_>) -> Result<()> {
    let node = scene.node();
    let ports = node
        .pods()
        .iter()
        .map(Pod::host_interface)
        .collect::<Result<Vec<_>>>()?;
    shell(&node, "ip link delete cni0")?;
    wait_until(
        "the agent to know that its pods are cut off",
        REPAIR,
        || {
            node.http_get("/readyz")
                .is_ok_and(|answer| answer.body.contains("pods: 0"))
        },
    )?;
    tools::answer(&node)?;
    let pod = scene.lab.add_pod(1)?;
    traffic::tcp(&(&pod).into(), &(&scene.lab.pod(2, 1)).into(), 50_000)?;
    for port in ports {
        shell(
            &node,
            &format!("ip link set {port} master cni0; bridge link set dev {port} hairpin on"),
        )?;
    }
    pod.remove()?;
    // The pods resolve the new gateway's MAC address only after a timeout for the old one.
    scene.wait_recovered()
}
