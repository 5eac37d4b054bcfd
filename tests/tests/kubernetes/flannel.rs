//! Nodes like flannel's, set up by hand: the annotations of their Nodes, the kernel's state, and
//! the plugins that flannel's plugin calls (`bridge` and `host-local`) with its configuration for
//! them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use overlay_tests::kubernetes::{Cluster, Node, POD_NETWORK, reference_list};

/// flannel's plugin is missing, but the plugins that it calls exist.
const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
const PREFIX: &str = "flannel.alpha.coreos.com";

/// A node's data in flannel's form.
struct Lease {
    /// First address of the node's podCIDR, a /24.
    base: Ipv4Addr,
    public: Ipv4Addr,
    mac: String,
}

impl Lease {
    /// Has the MAC address in the annotations, or `mac` where there is none.
    fn of(cluster: &Cluster, node: &Node, mac: &str) -> Result<Self> {
        let object = cluster.json(["get", "node", &node.name()])?;
        let range = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
        let (base, _) = range.split_once('/').context("a range")?;
        let annotations = &object["metadata"]["annotations"];
        let data = annotations[format!("{PREFIX}/backend-data")].as_str();
        let data: Option<serde_json::Value> = data.and_then(|data| serde_json::from_str(data).ok());
        let known = data.as_ref().and_then(|data| data["VtepMAC"].as_str());
        Ok(Self {
            base: base.parse().context("an address")?,
            public: node.below().underlay_address(),
            mac: known.unwrap_or(mac).to_owned(),
        })
    }

    fn publish(&self, cluster: &Cluster, node: &Node) -> Result<()> {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, self.mac);
        cluster
            .kubectl([
                "annotate",
                "--overwrite",
                "node",
                &node.name(),
                &format!("{PREFIX}/backend-data={data}"),
                &format!("{PREFIX}/backend-type=vxlan"),
                &format!("{PREFIX}/kube-subnet-manager=true"),
                &format!("{PREFIX}/public-ip={}", self.public),
            ])
            .map(drop)
    }
}

/// Turns every node of a cluster of two into one of flannel's; existing state stays, as with
/// flannel.
pub fn install(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes();
    let leases = [
        Lease::of(cluster, &nodes[0], "0e:00:00:00:00:01")?,
        Lease::of(cluster, &nodes[1], "0e:00:00:00:00:02")?,
    ];
    for ((node, own), peer) in nodes.iter().zip(&leases).zip(leases.iter().rev()) {
        own.publish(cluster, node)?;
        node.run(["sh", "-ec", &script(own, peer)])?;
    }
    Ok(())
}

/// flanneld's actions on a node with one peer, and its plugin's calls of other plugins.
fn script(own: &Lease, peer: &Lease) -> String {
    let Lease { base, public, mac } = own;
    let Lease {
        base: peer_base,
        public: peer_public,
        mac: peer_mac,
    } = peer;
    let [a, b, c, _] = base.octets();
    let masq = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    let list = reference_list(&format!("{base}/24"));
    format!(
        "sysctl -qw net.ipv4.ip_forward=1
         ip link show flannel.1 >/dev/null 2>&1 || ip link add flannel.1 mtu 1450 address {mac} \
             type vxlan id 1 dev eth0 local {public} dstport 8472 nolearning
         ip address replace {base}/32 dev flannel.1
         ip link set flannel.1 up
         ip neighbour replace {peer_base} lladdr {peer_mac} dev flannel.1 nud permanent
         bridge fdb replace {peer_mac} dev flannel.1 dst {peer_public} self permanent
         ip route replace {peer_base}/24 via {peer_base} dev flannel.1 onlink
         iptables-save -t filter | grep -q '^:FLANNEL-FWD' || iptables-restore --noflush --wait \
         <<'RULES'
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {masq} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN
-A FLANNEL-POSTRTG -s {base}/24 -d {POD_NETWORK} {masq} -j RETURN
-A FLANNEL-POSTRTG -s {POD_NETWORK} -d {base}/24 {masq} -j RETURN
-A FLANNEL-POSTRTG ! -s {POD_NETWORK} -d {base}/24 {masq} -j RETURN
-A FLANNEL-POSTRTG -s {POD_NETWORK} ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {POD_NETWORK} -d {POD_NETWORK} {masq} -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s {POD_NETWORK} {forward} -j ACCEPT
-A FLANNEL-FWD -d {POD_NETWORK} {forward} -j ACCEPT
COMMIT
RULES
         mkdir -p /run/flannel /etc/cni/net.d
         printf '%s\\n' FLANNEL_NETWORK={POD_NETWORK} FLANNEL_SUBNET={a}.{b}.{c}.1/24 \
         FLANNEL_MTU=1450 FLANNEL_IPMASQ=true >/run/flannel/subnet.env
         echo '{list}' >/etc/cni/net.d/.new && mv /etc/cni/net.d/.new {CONFLIST}"
    )
}
