//! The addresses in hostile packets.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::frame::Mac;
use crate::{Lab, Namespace, Node, Pod, command};

/// A node that exists as a lease only: its subnet, in the form of etcd's key, and its underlay
/// address.
pub const THIRD: (&str, &str) = ("10.244.250.0-24", "192.168.66.77");

/// A node as the underlay sees it.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Underlay address.
    pub vtep: Ipv4Addr,
    /// MAC address of its NIC.
    pub nic: Mac,
    /// MAC address of its VXLAN device.
    pub device: Mac,
    /// The pods' gateway: its bridge.
    pub gateway: Ipv4Addr,
}

/// A pod as others see it.
#[derive(Clone, Copy, Debug)]
pub struct PodAddress {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC address.
    pub mac: Mac,
}

/// The attacked node and the attackers, in a lab of two nodes with two pods each.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Node 1, which is attacked.
    pub victim: Host,
    /// Node 2, from whose underlay address forged packets are sent.
    pub peer: Host,
    /// A host of the underlay that is no node.
    pub stranger: (Ipv4Addr, Mac),
    /// Pod 1 of node 1: the attacker from inside, and the destination of forged VXLAN.
    pub attacker: PodAddress,
    /// Pod 2 of node 1.
    pub neighbour: PodAddress,
    /// Pod 1 of node 2.
    pub remote: PodAddress,
    /// MAC address of node 1's bridge.
    pub bridge: Mac,
    /// A pod of the node that exists as a lease only, once [`Scene::add_third`] has made it.
    pub third: Ipv4Addr,
}

impl Scene {
    /// The scene of a lab of two nodes with two pods each.
    ///
    /// # Errors
    /// When the lab lacks one of the devices.
    pub fn of(lab: &Lab) -> Result<Self> {
        let host = |node: &Node| -> Result<Host> {
            let namespace = node.namespace();
            Ok(Host {
                vtep: node.underlay_address(),
                nic: mac(&namespace, "eth0")?,
                device: mac(&namespace, "flannel.1")?,
                gateway: node
                    .subnet()?
                    .hosts()
                    .next()
                    .context("a subnet without hosts")?,
            })
        };
        let pod = |pod: &Pod| -> Result<PodAddress> {
            Ok(PodAddress {
                ip: pod.address(),
                mac: mac(&pod.namespace(), "eth0")?,
            })
        };
        let outside = lab.namespace("outside")?;
        Ok(Self {
            victim: host(&lab.node(1))?,
            peer: host(&lab.node(2))?,
            stranger: (crate::lab::OUTSIDE_GATEWAY, mac(&outside, "eth0")?),
            attacker: pod(&lab.pod(1, 1))?,
            neighbour: pod(&lab.pod(1, 2))?,
            remote: pod(&lab.pod(2, 1))?,
            bridge: mac(&lab.node(1).namespace(), "cni0")?,
            third: Ipv4Addr::new(10, 244, 250, 9),
        })
    }

    /// Writes the lease of a third node, whose addresses others can then forge.
    ///
    /// # Errors
    /// When the lab's store is not etcd, or does not answer.
    pub fn add_third(lab: &Lab) -> Result<()> {
        let (subnet, address) = THIRD;
        let lease = format!(
            "{{\"PublicIP\":\"{address}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\
            \"VtepMAC\":\"02:00:00:00:00:77\"}}}}"
        );
        let key = format!("/coreos.com/network/subnets/{subnet}");
        lab.etcdctl(&["put", &key, &lease]).map(drop)
    }
}

fn mac(namespace: &Namespace, device: &str) -> Result<Mac> {
    let line = format!("-j -n {} link show dev {device}", namespace.name());
    let shown: serde_json::Value = serde_json::from_str(&command::ip(&line)?)?;
    let text = shown[0]["address"]
        .as_str()
        .context("a link without an address")?;
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<Vec<u8>, _>>()
        .with_context(|| format!("MAC address {text}"))?;
    Mac::try_from(bytes)
        .ok()
        .with_context(|| format!("MAC address {text}"))
}
