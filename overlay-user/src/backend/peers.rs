//! Which of the other nodes' leases are believed, updated at the cost of the changed leases alone.
//!
//! Each lease is judged on its own, once. Among the leases that are good on their own, a peer that
//! is believed stays. Of the others, in the order of keys, each is believed unless it contradicts a
//! peer that is believed already. So a newcomer cannot displace a peer, and the result depends only
//! on the peers that were believed before and on the present leases.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::judge::judge;
use super::model::{Backend, Here, Peer};
use crate::lease::{Lease, Leases, RejectReason, Rejected, Rejections, SubnetKey, subject};
use crate::mac::MacAddr;
use crate::shared_map::SharedMap;

/// Peers by subnet.
pub type PeerMap = SharedMap<IpNet, Peer>;

/// The peers that are believed, and the leases that are not.
#[derive(Debug, Default)]
pub struct Peers {
    /// The node that the leases were judged against.
    here: Option<Here>,
    /// The leases that all other fields were made from.
    leases: Leases,
    believed: Believed,
    /// Leases that are good on their own, but contradict a peer that is believed.
    contradicted: BTreeMap<SubnetKey, Peer>,
    rejected: Rejections,
}

impl Peers {
    /// Takes in the present leases. Where `here` has changed, every lease is judged anew; a peer
    /// that was believed stays if its lease is still good.
    pub fn update(&mut self, backend: &dyn Backend, here: &Here, leases: &Leases) {
        let same_here = self.here.as_ref() == Some(here);
        let before = std::mem::replace(&mut self.leases, leases.clone());
        // Of the leases that changed or were removed: the peers believed until now, and the leases
        // that are good on their own.
        let mut accepted = HashSet::new();
        let mut candidates = BTreeMap::new();
        let mut look_at = |peers: &mut Self, key: &SubnetKey, lease: Option<&Arc<Lease>>| {
            accepted.extend(peers.believed.remove(key));
            peers.contradicted.remove(key);
            match lease.map(|lease| judge(backend, here, lease)) {
                Some(Ok(peer)) => {
                    candidates.insert(*key, peer);
                }
                Some(Err(reason)) => {
                    peers.reject(key, lease.and_then(|it| it.node.as_deref()), reason)
                }
                None => peers.pardon(key),
            }
        };
        let nothing = Leases::default();
        let compared = if same_here { &before } else { &nothing };
        for it in leases.differences(compared) {
            look_at(self, it.key, it.now);
        }
        if !same_here {
            for (key, _) in before.iter().filter(|(key, _)| !leases.contains_key(*key)) {
                look_at(self, key, None);
            }
        }
        candidates.append(&mut self.contradicted);
        self.choose(candidates, accepted);
        if !same_here {
            self.here = Some(here.clone());
        }
    }

    /// The peers that are believed.
    #[must_use]
    pub fn believed(&self) -> &PeerMap {
        &self.believed.peers
    }

    /// The leases that are not believed.
    #[must_use]
    pub fn rejected(&self) -> &Rejections {
        &self.rejected
    }

    /// Believes the candidates in `accepted` first, then the others, as long as none contradicts
    /// another.
    fn choose(&mut self, mut candidates: BTreeMap<SubnetKey, Peer>, mut accepted: HashSet<Peer>) {
        // Two keys name one IPv4 subnet if one key is a dual-stack lease's. If both name one peer,
        // the order of keys decides which lease the peer belongs to.
        let twins: Vec<_> = candidates
            .iter()
            .filter(|(_, peer)| self.believed.peers.get(&peer.subnet) == Some(peer))
            .filter_map(|(_, peer)| self.believed.keys.get(&peer.subnet).copied())
            .collect();
        for key in twins {
            if let Some(peer) = self.believed.remove(&key) {
                candidates.insert(key, peer.clone());
                accepted.insert(peer);
            }
        }
        let (known, new): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|(_, peer)| accepted.contains(peer));
        for (key, peer) in known.into_iter().chain(new) {
            match self.believed.add(key, &peer) {
                Ok(()) => self.pardon(&key),
                Err(reason) => {
                    self.contradicted.insert(key, peer);
                    let node = self.leases.get(&key).and_then(|it| it.node.clone());
                    self.reject(&key, node.as_deref(), reason);
                }
            }
        }
    }

    fn reject(&mut self, key: &SubnetKey, node: Option<&str>, reason: RejectReason) {
        let key = key.to_string();
        let subject = subject(&key, node);
        let rejected = Rejected { subject, reason };
        self.rejected.insert(key, Arc::new(rejected));
    }

    fn pardon(&mut self, key: &SubnetKey) {
        // Most often no lease was rejected before, and then no subject has to be formatted.
        if !self.rejected.is_empty() {
            self.rejected.remove(key.to_string().as_str());
        }
    }
}

/// Peers that do not contradict each other: no two share addresses, and no two nodes share a MAC
/// address, because the forwarding database has one entry for each. One node may hold two subnets.
#[derive(Debug, Default)]
struct Believed {
    peers: PeerMap,
    /// The keys of their leases, in the order of addresses.
    keys: BTreeMap<IpNet, SubnetKey>,
    /// The node that has a MAC address, and how many peers are that node.
    nodes: HashMap<MacAddr, (IpAddr, usize)>,
}

impl Believed {
    /// Adds a peer, unless the peer contradicts one that is believed.
    fn add(&mut self, key: SubnetKey, peer: &Peer) -> Result<(), RejectReason> {
        // Subnets in the table do not overlap: only the next one on either side can contain it, or
        // lie in it.
        let before = self.keys.range(..=peer.subnet).next_back();
        let after = self.keys.range(peer.subnet..).next();
        for (other, _) in before.into_iter().chain(after) {
            if other.contains(&peer.subnet) || peer.subnet.contains(other) {
                return Err(RejectReason::Overlaps(*other));
            }
        }
        if let Some(mac) = peer.mac() {
            let (holder, count) = self.nodes.entry(mac).or_insert((peer.vtep, 0));
            if *holder != peer.vtep {
                let holder = *holder;
                return Err(RejectReason::MacTaken { mac, holder });
            }
            *count += 1;
        }
        self.keys.insert(peer.subnet, key);
        self.peers.insert(peer.subnet, peer.clone());
        Ok(())
    }

    /// Removes the peer of a lease, if there is one.
    fn remove(&mut self, key: &SubnetKey) -> Option<Peer> {
        let is_of_key = |subnet: &&IpNet| self.keys.get(subnet) == Some(key);
        let subnet = *key.0.iter().find(is_of_key)?;
        self.keys.remove(&subnet);
        let peer = self.peers.remove(&subnet)?;
        if let Some(mac) = peer.mac()
            && let Some((_, count)) = self.nodes.get_mut(&mac)
        {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&mac);
            }
        }
        Some(peer)
    }
}

#[cfg(test)]
mod tests;
