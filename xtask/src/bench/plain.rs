//! flannel's kernel state without flannel: the state of a node after flanneld v0.28, the flannel
//! plugin, `bridge` and `host-local`, set up by `ip`, `bridge` and `iptables` alone. The rules'
//! text is that of flanneld's end-to-end tests.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Namespace, Node, command};

use super::iptables;

/// Network of the overlay; node `i` of a pair has the subnet `10.244.i.0/24`.
const NETWORK: &str = "10.244.0.0/16";
/// Length of VXLAN's headers, in bytes.
const OVERHEAD: u32 = 50;

/// One of a pair of nodes.
#[derive(Clone, Copy)]
struct Plain {
    /// 1 or 2.
    place: u8,
    /// Address of the node on the cable.
    vtep: Ipv4Addr,
}

impl Plain {
    /// First address of the node's subnet, which is also the VXLAN device's.
    fn base(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.place, 0)
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.place, 1)
    }

    /// The addresses of pods, in the order in which `host-local` assigns them.
    fn pod(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.place, 1 + number)
    }

    /// MAC address of the node's VXLAN device.
    fn mac(self) -> String {
        format!("02:00:00:00:00:{:02x}", self.place)
    }

    /// Input for `ip -batch`: the bridge, the VXLAN device over `cable`, and the route to the other
    /// node's pods.
    fn links(self, other: Self, cable: &str, mtu: u32) -> String {
        let (mac, vtep, base) = (self.mac(), self.vtep, self.base());
        let (peer, peer_mac) = (other.base(), other.mac());
        let (gateway, bridge_mac) = (self.gateway(), format!("02:00:00:00:01:{:02x}", self.place));
        format!(
            "link add flannel.1 mtu {mtu} txqueuelen 0 address {mac} type vxlan id 1 dev {cable} \
            local {vtep} dstport 8472 nolearning\n\
             address add {base}/32 dev flannel.1\n\
             link set flannel.1 up\n\
             neighbour add {peer} lladdr {peer_mac} dev flannel.1 nud permanent\n\
             route add {peer}/24 via {peer} dev flannel.1 onlink\n\
             link add cni0 mtu {mtu} address {bridge_mac} type bridge\n\
             address add {gateway}/24 dev cni0\n\
             link set cni0 up\n"
        )
    }

    /// Input for `iptables-restore`: the rules that flanneld writes with `--ip-masq`.
    fn rules(self) -> String {
        let own = format!("{}/24", self.base());
        let masquerade = "-m comment --comment \"flanneld masq\"";
        let forward = "-m comment --comment \"flanneld forward\"";
        format!(
            "*nat\n\
             :FLANNEL-POSTRTG - [0:0]\n\
             -A POSTROUTING {masquerade} -j FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masquerade} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {own} -d {NETWORK} {masquerade} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {NETWORK} -d {own} {masquerade} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {NETWORK} -d {own} {masquerade} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {NETWORK} ! -d 224.0.0.0/4 {masquerade} -j MASQUERADE \
             --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {NETWORK} -d {NETWORK} {masquerade} -j MASQUERADE \
             --random-fully\n\
             COMMIT\n\
             *filter\n\
             :FLANNEL-FWD - [0:0]\n\
             -A FORWARD {forward} -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {NETWORK} {forward} -j ACCEPT\n\
             -A FLANNEL-FWD -d {NETWORK} {forward} -j ACCEPT\n\
             COMMIT\n"
        )
    }
}

/// Sets both nodes of a pair up, with two pods on the first and one on the second; `vteps` are
/// their addresses on `cable`, whose MTU is `mtu` bytes. Returns the pods of each node.
pub fn install(
    lab: &Lab,
    nodes: &[Node; 2],
    (cable, mtu): (&str, u32),
    vteps: [Ipv4Addr; 2],
) -> Result<[Vec<Endpoint>; 2]> {
    let mtu = mtu - OVERHEAD;
    let [first, second] = [(1, vteps[0]), (2, vteps[1])].map(|(place, vtep)| Plain { place, vtep });
    let furnish = |node: &Node, own: Plain, other: Plain, pods: u8| -> Result<Vec<Endpoint>> {
        let namespace = node.namespace();
        command::ip_batch(namespace.name(), &own.links(other, cable, mtu))?;
        let (mac, vtep) = (other.mac(), other.vtep.to_string());
        let entry = [
            "bridge",
            "fdb",
            "append",
            &mac,
            "dev",
            "flannel.1",
            "dst",
            &vtep,
        ];
        node.run(entry.into_iter().chain(["self", "permanent"]))?;
        let settings = [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.flannel/1.accept_ra=0",
            "net.ipv6.conf.cni0.accept_ra=0",
        ];
        node.run(["sysctl", "-qw"].into_iter().chain(settings))?;
        iptables::restore(node, &own.rules()).context("write rules as of flanneld")?;
        let pods = 1..=pods;
        pods.map(|number| add_pod(lab, node, own, number, mtu))
            .collect()
    };
    Ok([
        furnish(&nodes[0], first, second, 2)?,
        furnish(&nodes[1], second, first, 1)?,
    ])
}

/// A pod like those that the `bridge` plugin makes with `isDefaultGateway` and `hairpinMode`.
fn add_pod(lab: &Lab, node: &Node, own: Plain, number: u8, mtu: u32) -> Result<Endpoint> {
    let name = format!("{}p{number}", node.name());
    let pod = lab.add_namespace(&name)?;
    let (host, inside) = (node.namespace(), pod.name());
    command::ip_batch(
        host.name(),
        &format!(
            "link add veth{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}\n\
             link set veth{number} master cni0 up\n\
             link set veth{number} type bridge_slave hairpin on\n"
        ),
    )?;
    let (address, gateway) = (own.pod(number), own.gateway());
    let mut setup = format!("link set eth0 up\naddress add {address}/24 dev eth0\n");
    for target in ["default", NETWORK] {
        // Writing to a String cannot fail.
        let _ = writeln!(setup, "route add {target} via {gateway}");
    }
    command::ip_batch(inside, &setup)?;
    Ok(Endpoint {
        name,
        namespace: Namespace::new(inside),
        address,
    })
}
