//! Leases of nodes that do not exist, written by hand as flannel would.

use std::net::Ipv4Addr;

use anyhow::Result;
use ipnet::Ipv4Net;

use crate::Lab;

/// The prefix of leases in etcd.
const SUBNETS: &str = "/coreos.com/network/subnets/";

/// An invented node.
#[derive(Clone, Copy, Debug)]
pub struct Invented {
    number: u8,
    /// Number of the node's moves: each move gives another address and another MAC address.
    generation: u8,
}

impl Invented {
    /// Node `number`, 0 to 49, before any move.
    pub fn new(number: u8) -> Self {
        Self {
            number,
            generation: 0,
        }
    }

    /// The node after a move to another machine.
    pub fn moved(self) -> Self {
        Self {
            generation: self.generation + 1,
            ..self
        }
    }

    /// The subnet of the node; the lab's own leases are all below.
    pub fn subnet(self) -> Result<Ipv4Net> {
        Ok(Ipv4Net::new(
            Ipv4Addr::new(10, 244, 200 + self.number, 0),
            24,
        )?)
    }

    /// Address on the underlay, which no host has.
    pub fn vtep(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 66, 150 + self.number + 50 * (self.generation % 2))
    }

    pub fn write(self, lab: &Lab) -> Result<()> {
        let Self { number, generation } = self;
        let vtep = self.vtep();
        let value = format!(
            "{{\"PublicIP\":\"{vtep}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{{\"VNI\":1,\
            \"VtepMAC\":\"02:00:00:00:{generation:02x}:{number:02x}\"}}}}"
        );
        lab.etcdctl(&["put", &key(self.subnet()?), &value])
            .map(drop)
    }

    pub fn delete(self, lab: &Lab) -> Result<()> {
        lab.etcdctl(&["del", &key(self.subnet()?)]).map(drop)
    }
}

/// The key of a subnet's lease.
pub fn key(subnet: Ipv4Net) -> String {
    format!("{SUBNETS}{}-{}", subnet.network(), subnet.prefix_len())
}

/// Deletes the leases of all invented nodes.
pub fn delete_all(lab: &Lab) -> Result<()> {
    (0..50).try_for_each(|number| Invented::new(number).delete(lab))
}
