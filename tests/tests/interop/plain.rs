//! A node like flannel's, set up by hand.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Lab, Namespace, Node, command};
use serde_json::Value;

const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";
const SUBNETS: &str = "/coreos.com/network/subnets/";

/// A lease in etcd.
#[derive(Clone, Debug)]
pub struct Lease {
    pub subnet: Ipv4Net,
    pub public: Ipv4Addr,
    pub mac: String,
}

impl Lease {
    pub fn key(&self) -> String {
        format!(
            "{SUBNETS}{}-{}",
            self.subnet.network(),
            self.subnet.prefix_len()
        )
    }

    /// Writes the lease with flannel's bytes.
    pub fn write(&self, lab: &Lab) -> Result<()> {
        let Self { public, mac, .. } = self;
        let value = format!(
            "{{\"PublicIP\":\"{public}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}"
        );
        lab.etcdctl(&["put", &self.key(), &value]).map(drop)
    }

    /// The lease of one of our nodes.
    pub fn of(lab: &Lab, node: &Node) -> Result<Self> {
        let subnet = node.subnet()?;
        let key = format!("{SUBNETS}{}-{}", subnet.network(), subnet.prefix_len());
        let text = lab.etcdctl(&["get", "--print-value-only", &key])?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("lease {text:?}"))?;
        let mac = value["BackendData"]["VtepMAC"].as_str();
        Ok(Self {
            subnet,
            public: node.underlay_address(),
            mac: mac.context("a lease without VtepMAC")?.to_owned(),
        })
    }
}

/// A node without any software of ours, with one pod.
pub struct Plain {
    pub node: Node,
    pub pod: Namespace,
    pub lease: Lease,
}

impl Plain {
    /// The state that flanneld and its CNI plugin leave, set up by hand.
    pub fn set_up(lab: &Lab, node: Node, subnet: Ipv4Net, mac: &str) -> Result<Self> {
        let lease = Lease {
            subnet,
            public: node.underlay_address(),
            mac: mac.to_owned(),
        };
        let pod = lab.add_namespace(&format!("{}plain", node.name()))?;
        let plain = Self { node, pod, lease };
        plain.make_device()?;
        let (gateway, address) = (plain.gateway(), plain.address());
        let length = subnet.prefix_len();
        plain.node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        // The `bridge` plugin sets the bridge's address, so that no port changes it.
        command::ip_batch(
            plain.node.namespace().name(),
            &format!(
                "link add cni0 address 0e:00:00:00:01:01 mtu 1450 type bridge\n\
                 address add {gateway}/{length} dev cni0\n\
                 link set cni0 up\n\
                 link add vethplain mtu 1450 type veth peer name eth0 mtu 1450 netns {}\n\
                 link set vethplain master cni0 up\n",
                plain.pod.name()
            ),
        )?;
        command::ip_batch(
            plain.pod.name(),
            &format!(
                "address add {address}/{length} dev eth0\n\
                 link set eth0 up\n\
                 route add default via {gateway}\n"
            ),
        )?;
        // The file by which `host-local` remembers the holder of the address.
        let remember =
            format!("mkdir -p {ADDRESSES}; printf 'plain\\r\\neth0' >{ADDRESSES}/{address}");
        plain.node.run(["sh", "-c", &remember])?;
        Ok(plain)
    }

    /// The VXLAN device.
    pub fn make_device(&self) -> Result<()> {
        let Lease {
            subnet,
            public,
            mac,
        } = &self.lease;
        command::ip_batch(
            self.node.namespace().name(),
            &format!(
                "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local {public} dev eth0 \
                dstport 8472 nolearning\n\
                 address add {}/32 dev flannel.1\n\
                 link set flannel.1 up\n",
                subnet.network()
            ),
        )
    }

    /// flannel's three entries for a peer.
    pub fn add_peer(&self, peer: &Lease) -> Result<()> {
        let Lease {
            subnet,
            public,
            mac,
        } = peer;
        let base = subnet.network();
        command::ip_batch(
            self.node.namespace().name(),
            &format!(
                "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent\n\
                 route replace {subnet} via {base} dev flannel.1 onlink\n"
            ),
        )?;
        let line = format!("bridge fdb replace {mac} dev flannel.1 dst {public} self permanent");
        self.node.run(line.split(' ')).map(drop)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.lease.subnet.network()) + 1)
    }

    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.lease.subnet.network()) + 2)
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            name: "the plain pod".to_owned(),
            namespace: self.pod.clone(),
            address: self.address(),
        }
    }
}
