//! The ways to the other nodes: next hops and MTU.
//!
//! The kernel is asked for the route to a node once; afterwards its events name the routes and
//! neighbours that have changed ([`super::follower`]).
//!
//! Where a route has several next hops, all packets to a peer use one of them. The kernel's VXLAN
//! driver does the same: it caches the route of the first packet for each remote address and CPU
//! (`dst_cache` in `drivers/net/vxlan/vxlan_core.c`). Leaving such peers to `bpf_redirect_neigh`
//! would be worse, because for a given device that helper always uses the first next hop
//! (`fib_select_path` in `net/ipv4/fib_semantics.c`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use overlay_common::{Family as _, V4};

use crate::backend::{self, Peer};
use crate::datapath::tables::{TableInput, UnderlayPath};
use crate::kernel::next_hop::{Neighbour, NextHop};
use crate::mac::MacAddr;

/// The device and address by which encapsulated packets leave this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The underlay's device.
    pub ifindex: u32,
    /// This node's address on that device; `None` before the first round.
    pub source: Option<IpAddr>,
    /// MAC address of the device; `None` for a device without one.
    pub mac: Option<MacAddr>,
}

/// Next hops as the kernel reports them.
#[derive(Debug, Default)]
pub struct Ways {
    exit: Exit,
    /// The next hop to each VTEP; `None` where packets leave by another device, or cannot leave.
    next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    /// The VTEPs whose first request to the kernel is not answered yet, because a change may
    /// overtake the answer.
    asked: BTreeSet<IpAddr>,
    /// The usable neighbours of the underlay's device.
    neighbours: BTreeMap<IpAddr, Neighbour>,
    /// Whether `neighbours` has been read.
    knows_neighbours: bool,
    /// The addresses in `next_hops`.
    used: HashSet<IpAddr>,
    /// The number of changes that the kernel has reported. An answer from before a change is not
    /// used.
    news: u64,
}

impl Ways {
    /// The present exit.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The number of changes that the kernel has reported.
    pub fn news(&self) -> u64 {
        self.news
    }

    /// Sets another exit. True if the neighbours have to be read, because those of the new device
    /// are not known.
    pub fn leave_by(&mut self, exit: Exit) -> bool {
        let is_other = (exit.ifindex, exit.source) != (self.exit.ifindex, self.exit.source);
        if is_other {
            *self = Self {
                news: self.news + 1,
                ..Self::default()
            };
        }
        self.exit = exit;
        !self.knows_neighbours
    }

    /// Removes all VTEPs but these; returns those that have no way yet.
    pub fn keep(&mut self, vteps: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.next_hops.retain(|vtep, _| vteps.contains(vtep));
        let is_unknown = |vtep: &&IpAddr| !self.next_hops.contains_key(vtep);
        let unknown: Vec<_> = vteps.iter().filter(is_unknown).copied().collect();
        self.asked = unknown.iter().copied().collect();
        unknown
    }

    /// Takes in the kernel's answers, requested when the number of changes was `as_of`; `false` if
    /// the answers may be too old.
    pub fn learn(&mut self, answers: BTreeMap<IpAddr, Option<NextHop>>, as_of: u64) -> bool {
        if self.news != as_of {
            return false;
        }
        for vtep in answers.keys() {
            self.asked.remove(vtep);
        }
        self.next_hops.extend(answers);
        let next_hops = self.next_hops.values().flatten();
        self.used = next_hops.map(|next_hop| next_hop.address).collect();
        true
    }

    /// Takes in all neighbours of the device, read when the number of changes was `as_of`; `false`
    /// if they may be too old.
    pub fn learn_neighbours(&mut self, all: BTreeMap<IpAddr, Neighbour>, as_of: u64) -> bool {
        let is_fresh = self.news == as_of;
        if is_fresh {
            (self.neighbours, self.knows_neighbours) = (all, true);
        }
        is_fresh
    }

    /// Notes the present state of a neighbour. Returns whether this changes the MAC address of a
    /// next hop.
    pub fn neighbour(&mut self, address: IpAddr, now: Option<Neighbour>) -> bool {
        self.news += 1;
        let before = match now {
            Some(now) => self.neighbours.insert(address, now),
            None => self.neighbours.remove(&address),
        };
        let mac = |neighbour: Option<Neighbour>| neighbour.map(|neighbour| neighbour.mac);
        mac(before) != mac(now) && self.used.contains(&address)
    }

    /// The VTEPs whose way uses a next hop. When a next hop is lost, the kernel chooses another one
    /// of the route (`fib_multipath_use_neigh`), and sends no event.
    pub fn by(&self, next_hop: IpAddr) -> Vec<IpAddr> {
        let goes_by = |way: &Option<NextHop>| way.is_some_and(|way| way.address == next_hop);
        let vteps = self.next_hops.iter().filter(|(_, way)| goes_by(way));
        vteps.map(|(vtep, _)| *vtep).collect()
    }

    /// The VTEPs whose way may have changed, because a route to `destination` has changed.
    pub fn within(&mut self, destination: IpNet) -> Vec<IpAddr> {
        let vteps = self.next_hops.keys().chain(&self.asked);
        let vteps: Vec<_> = vteps
            .filter(|vtep| destination.contains(*vtep))
            .copied()
            .collect();
        self.news += u64::from(!vteps.is_empty());
        vteps
    }

    /// All VTEPs, because any way may have changed.
    pub fn all(&mut self) -> Vec<IpAddr> {
        self.news += 1;
        let vteps = self.next_hops.keys().chain(&self.asked);
        vteps.copied().collect()
    }

    /// The next hop to a VTEP.
    pub fn next_hop(&self, vtep: IpAddr) -> Option<NextHop> {
        self.next_hops.get(&vtep).copied().flatten()
    }

    /// MAC address of the next hop to a VTEP, where it can be prepared.
    pub fn mac(&self, vtep: IpAddr) -> Option<MacAddr> {
        self.neighbour_mac(self.next_hop(vtep)?.address)
    }

    /// MAC address of a neighbour, where it can be prepared: of a peer that is reached without
    /// encapsulation.
    pub fn neighbour_mac(&self, address: IpAddr) -> Option<MacAddr> {
        self.exit.mac?;
        self.neighbours.get(&address).map(|neighbour| neighbour.mac)
    }

    /// Whether packets to a peer leave by the exit, in the way that its lease names.
    fn leads_to(&self, peer: &Peer) -> bool {
        let next_hop = self.next_hop(peer.vtep);
        next_hop.is_some_and(|it| peer.way != backend::Way::Direct || it.address == peer.vtep)
    }

    /// Adds the paths to the input of the tables. Peers to which the routes lead by another device
    /// are left to the kernel path, because packets to these peers would be lost on the underlay's
    /// device. Returns these peers.
    pub fn apply(&self, input: &mut TableInput) -> BTreeSet<IpAddr> {
        let (here, elsewhere): (Vec<_>, _) = std::mem::take(&mut input.peers)
            .into_iter()
            .partition(|(peer, _)| self.leads_to(peer));
        input.peers = here;
        for (peer, path) in &mut input.peers {
            if peer.way == backend::Way::Direct {
                // The peer's subnet has a separate route, which has no MTU.
                path.next_hop = self.neighbour_mac(peer.vtep);
                continue;
            }
            let mtu = self.next_hop(peer.vtep).and_then(|next_hop| next_hop.mtu);
            *path = UnderlayPath {
                mtu: mtu.map_or(path.mtu, |mtu| {
                    path.mtu.min(mtu.saturating_sub(V4::VXLAN_OVERHEAD))
                }),
                next_hop: self.mac(peer.vtep),
            };
        }
        input.underlay_mac = self.exit.mac.unwrap_or_default();
        let vteps = elsewhere.iter().map(|(peer, _)| peer.vtep).collect();
        input
            .unserved
            .extend(elsewhere.into_iter().map(|(peer, _)| peer));
        vteps
    }

    /// The next hops that the kernel would confirm at its next packet. Packets of the fast path do
    /// not make the kernel confirm them.
    pub fn stale(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let stale = self.neighbours.iter();
        stale
            .filter(|(address, neighbour)| neighbour.is_stale && self.used.contains(*address))
            .map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn neighbour(last: u8) -> Neighbour {
        Neighbour {
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            is_stale: false,
        }
    }

    fn ways() -> Ways {
        let mut ways = Ways::default();
        let exit = Exit {
            ifindex: 2,
            source: Some(at(1)),
            mac: Some(MacAddr([2; 6])),
        };
        assert!(ways.leave_by(exit));
        let vteps = [at(2), at(3)].into();
        assert_eq!(ways.keep(&vteps), [at(2), at(3)]);
        let by = |last| {
            Some(NextHop {
                address: at(last),
                mtu: None,
            })
        };
        assert!(ways.learn([(at(2), by(254)), (at(3), None)].into(), ways.news()));
        ways
    }

    #[test]
    fn a_next_hop_is_prepared_when_its_neighbour_is_known() {
        let mut ways = ways();
        assert_eq!(ways.mac(at(2)), None);
        assert!(ways.neighbour(at(254), Some(neighbour(1))));
        assert_eq!(ways.mac(at(2)), Some(neighbour(1).mac));
        assert!(!ways.neighbour(at(254), Some(neighbour(1))), "no news");
        assert!(!ways.neighbour(at(77), Some(neighbour(7))), "no next hop");
        assert!(ways.neighbour(at(254), None));
        assert_eq!(ways.mac(at(2)), None);
        assert_eq!(ways.mac(at(3)), None, "elsewhere");
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_believed() {
        let mut ways = ways();
        let asked = ways.news();
        assert_eq!(
            ways.within("192.0.2.2/32".parse().expect("a prefix")),
            [at(2)]
        );
        assert!(!ways.learn([(at(2), None)].into(), asked));
        assert!(ways.next_hop(at(2)).is_some());
    }

    #[test]
    fn a_change_that_overtakes_the_first_answer_is_noticed() {
        let mut ways = ways();
        assert_eq!(ways.keep(&[at(2), at(3), at(4)].into()), [at(4)]);
        let asked = ways.news();
        let host = "192.0.2.4/32".parse().expect("a prefix");
        assert_eq!(ways.within(host), [at(4)]);
        assert!(!ways.learn([(at(4), None)].into(), asked), "too old");
        assert!(ways.learn([(at(4), None)].into(), ways.news()));
    }

    #[test]
    fn routes_to_nobody_are_no_news() {
        let mut ways = ways();
        let before = ways.news();
        let elsewhere = "203.0.113.0/24".parse().expect("a prefix");
        assert_eq!(ways.within(elsewhere), [] as [IpAddr; 0]);
        assert_eq!(ways.news(), before);
        assert_eq!(ways.by(at(254)), [at(2)]);
    }

    #[test]
    fn a_peer_on_the_link_is_its_own_next_hop() {
        let peer = |last: u8, way| Peer {
            subnet: format!("10.244.{last}.0/24").parse().expect("a subnet"),
            vtep: at(last),
            way,
        };
        let mut ways = ways();
        assert!(
            !ways.leads_to(&peer(2, backend::Way::Direct)),
            "by a router"
        );
        let mac = MacAddr([2; 6]);
        assert!(ways.leads_to(&peer(2, backend::Way::Vxlan { mac })));
        ways.keep(&[at(2), at(5)].into());
        let next_door = NextHop {
            address: at(5),
            mtu: None,
        };
        assert!(ways.learn([(at(5), Some(next_door))].into(), ways.news()));
        assert!(ways.leads_to(&peer(5, backend::Way::Direct)));
    }

    #[test]
    fn another_exit_forgets_everything() {
        let mut ways = ways();
        ways.neighbour(at(254), Some(neighbour(1)));
        let exit = ways.exit();
        assert!(ways.leave_by(exit), "nobody has looked at the neighbours");
        assert!(ways.learn_neighbours(BTreeMap::new(), ways.news()));
        assert!(!ways.leave_by(exit));
        assert!(ways.leave_by(Exit { ifindex: 3, ..exit }));
        assert_eq!(ways.keep(&[at(2)].into()), [at(2)]);
    }
}
