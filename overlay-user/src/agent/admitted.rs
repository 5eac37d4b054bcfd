//! The peers as the guard knows them, kept in step with those that are believed at the cost of what
//! changed.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::backend::{Peer, PeerMap};
use crate::kernel::guard::Sources;

/// The guard's sources, with the peers that they were made from.
#[derive(Default)]
pub struct Admitted {
    believed: PeerMap,
    sources: Sources,
}

impl Admitted {
    /// The sources that each peer may send from, now that these peers are believed.
    pub fn follow(&mut self, believed: &PeerMap) -> &Sources {
        for it in believed.differences(&self.believed) {
            if let Some((vtep, subnet)) = it.before.and_then(source) {
                let mut subnets = self.sources.remove(&vtep).unwrap_or_default();
                subnets.remove(&subnet);
                if !subnets.is_empty() {
                    self.sources.insert(vtep, subnets);
                }
            }
            if let Some((vtep, subnet)) = it.now.and_then(source) {
                let mut subnets = self.sources.get(&vtep).cloned().unwrap_or_default();
                subnets.insert(subnet);
                self.sources.insert(vtep, subnets);
            }
        }
        self.believed = believed.clone();
        &self.sources
    }
}

fn source(peer: &Peer) -> Option<(Ipv4Addr, Ipv4Net)> {
    match (peer.vtep, peer.subnet) {
        (IpAddr::V4(vtep), IpNet::V4(subnet)) => Some((vtep, subnet)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Way;
    use crate::mac::MacAddr;

    fn believed(peers: &[(&str, u8)]) -> PeerMap {
        let peer = |(subnet, last): &(&str, u8)| {
            let subnet = subnet.parse().expect("a subnet");
            let peer = Peer {
                subnet,
                vtep: [192, 0, 2, *last].into(),
                way: Way::Vxlan {
                    mac: MacAddr([2, 0, 0, 0, 0, *last]),
                },
            };
            (subnet, peer)
        };
        peers.iter().map(peer).collect()
    }

    #[test]
    fn it_says_the_same_as_one_that_begins() {
        let mut admitted = Admitted::default();
        for peers in [
            &[("10.244.2.0/24", 2), ("10.244.3.0/24", 2)][..],
            &[("10.244.2.0/24", 3), ("10.244.3.0/24", 2)],
            &[("10.244.2.0/24", 2), ("10.244.3.0/24", 3)],
            &[("10.244.3.0/24", 2), ("10.244.4.0/24", 4)],
            &[],
        ] {
            let believed = believed(peers);
            let anew = Admitted::default().follow(&believed).clone();
            assert_eq!(*admitted.follow(&believed), anew, "{peers:?}");
            let count: usize = anew.values().map(|subnets| subnets.len()).sum();
            assert_eq!(count, peers.len());
        }
    }
}
