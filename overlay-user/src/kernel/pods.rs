//! Pods as the links of this node show them, and the bridge that they are ports of.

mod claims;
mod ends;
mod qdiscs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::tc::TcMessage;

pub use self::qdiscs::Filter;
use self::qdiscs::Qdiscs;
use super::attributes::{link_mac, link_mtu, link_name, on_device};
use super::{Error, Kernel};
use crate::mac::MacAddr;
use crate::marks::CLSACT_PRIORITY;
use crate::pod::PodNote;

/// A pod of this node: the host end of its veth pair, a port of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Interface index of the host end.
    pub ifindex: u32,
    /// Name of the host end.
    pub name: String,
    /// MAC address of the host end.
    pub mac: MacAddr,
    /// MAC address of the pod's end. Another plugin, such as `tuning`, may have changed it since
    /// the note was written; the note's address where the kernel does not show the pod's end.
    pub pod_mac: MacAddr,
    /// Interface index of the pod's end, in its own namespace.
    pub peer: Option<u32>,
    /// The CNI plugin's note, or one made from the kernel's data of a pod that another plugin made.
    pub note: PodNote,
    /// Interface index of the bridge.
    pub master: u32,
    /// Namespace of the pod's end, by its number in this namespace (`IFLA_LINK_NETNSID`).
    pub netns_id: Option<i32>,
    /// MTU of the host end.
    pub mtu: u32,
    /// Whether the host end is administratively up.
    pub up: bool,
    /// Whether others attached a queueing discipline or filters to the host end, which a short cut
    /// past the device would pass by: any root qdisc but `noqueue`, an `ingress` qdisc, a `clsact`
    /// qdisc with filters besides ours.
    pub has_foreign_qdisc: bool,
}

/// The bridge of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeLink {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// MAC address, that of the pods' gateway.
    pub mac: MacAddr,
    /// MTU.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Addresses of the pod with their prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// The bridge, if it is there, and the pods on it by interface index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLinks {
    /// The bridge; the CNI plugin makes it with the first pod.
    pub bridge: Option<BridgeLink>,
    /// Pods, ordered by interface index.
    pub pods: Vec<PodLink>,
}

impl PodLinks {
    /// Every host end with each IPv4 address that may come in there. A container with two
    /// attachments may answer by either from the address of the other, according to its routes;
    /// such a packet is not forged.
    #[must_use]
    pub fn sources(&self) -> BTreeSet<(String, Ipv4Addr)> {
        let mut addresses: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for pod in &self.pods {
            if let Some(IpAddr::V4(address)) = pod.note.addresses.v4() {
                let of_container = addresses.entry(&pod.note.container).or_default();
                of_container.push(*address);
            }
        }
        let of = |pod: &PodLink| {
            let all = addresses.get(pod.note.container.as_str());
            let all = all.into_iter().flatten().copied();
            let name = pod.name.clone();
            all.map(move |address| (name.clone(), address))
                .collect::<Vec<_>>()
        };
        self.pods.iter().flat_map(of).collect()
    }
}

impl Kernel {
    /// Lists the pods and their bridge: the one called `usual`, unless all pods are ports of
    /// another. The CNI plugin refuses to make a second one.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn pods(&self, usual: &str) -> Result<PodLinks, Error> {
        let links = self.links().await?;
        let Some(master) = bridge(&links, usual) else {
            return Ok(PodLinks::default());
        };
        let addresses = self.addresses().await?;
        let ifindex = master.header.index;
        let qdiscs = self.qdiscs().await?;
        let mut by_device: BTreeMap<u32, Vec<&TcMessage>> = BTreeMap::new();
        for qdisc in &qdiscs {
            by_device
                .entry(qdisc.header.index.cast_unsigned())
                .or_default()
                .push(qdisc);
        }

        let bridge = BridgeLink {
            name: link_name(master).unwrap_or_default().to_owned(),
            ifindex,
            mac: link_mac(master).unwrap_or_default(),
            mtu: link_mtu(master),
            up: master.header.flags.contains(LinkFlags::Up),
            addresses: on_device(&addresses, ifindex).collect(),
        };
        let ports = self.ports(&links, &bridge).await;
        let mut pods = Vec::new();
        for mut pod in ports {
            let qdiscs = by_device.get(&pod.ifindex).map_or(&[][..], Vec::as_slice);
            pod.has_foreign_qdisc = match qdiscs::judge(qdiscs) {
                Qdiscs::Plain => false,
                Qdiscs::Foreign => true,
                Qdiscs::Clsact => self
                    .filters(pod.ifindex)
                    .await?
                    .iter()
                    .any(|filter| filter.priority != CLSACT_PRIORITY),
            };
            pods.push(pod);
        }
        pods.sort_by_key(|pod| pod.ifindex);
        Ok(PodLinks {
            bridge: Some(bridge),
            pods,
        })
    }

    /// The pods on the ports of the bridge: those with a note, and those found by their own end of
    /// the pair.
    async fn ports(&self, links: &[LinkMessage], bridge: &BridgeLink) -> Vec<PodLink> {
        let (mut noted, mut unnoted) = (Vec::new(), Vec::new());
        for link in links {
            let Some(port) = BridgePort::of(link).filter(|port| port.master == bridge.ifindex)
            else {
                continue;
            };
            let end = match port.end {
                Some((netns, peer)) if port.note.is_some() || port.may_be_learnt => {
                    self.end_in(netns, peer).await.unwrap_or_else(|error| {
                        // A pod that goes, or a kernel that does not tell (before Linux 4.19).
                        tracing::debug!(port = link_name(link), "the pod's end: {error}");
                        None
                    })
                }
                _ => None,
            };
            if port.note.is_some() {
                let mac = end.map(|end| end.mac);
                noted.extend(port.pod(link, mac));
            } else if let Some(end) = end
                && let Some(address) = self.address_behind(&port, bridge).await
            {
                let (mac, note) = (end.mac, end.note(address, &port));
                let port = BridgePort {
                    note: Some(note),
                    ..port
                };
                unnoted.extend(port.pod(link, Some(mac)));
            }
        }
        claims::drop_disputed(&noted, &mut unnoted);
        noted.append(&mut unnoted);
        noted
    }
}

/// The bridge that pods are ports of.
fn bridge<'l>(links: &'l [LinkMessage], usual: &str) -> Option<&'l LinkMessage> {
    let usual = links.iter().find(|link| link_name(link) == Some(usual));
    let of_pods = |bridge: &&LinkMessage| {
        let mut links = links.iter();
        links.any(|link| pod(link, bridge.header.index).is_some())
    };
    let other = || links.iter().find(of_pods);
    usual.filter(of_pods).or_else(other).or(usual)
}

/// A port of a bridge.
struct BridgePort {
    /// Interface index of the bridge.
    master: u32,
    /// The other end of the pair: the number of its namespace, its interface index there.
    end: Option<(i32, u32)>,
    note: Option<PodNote>,
    /// Whether another plugin may have made the port for a pod: one end of a veth pair without an
    /// alias.
    may_be_learnt: bool,
}

impl BridgePort {
    fn of(link: &LinkMessage) -> Option<Self> {
        let (mut alias, mut master, mut netns, mut peer) = (None, None, None, None);
        let mut is_veth = false;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfAlias(text) => alias = Some(text),
                LinkAttribute::Controller(ifindex) => master = Some(*ifindex),
                LinkAttribute::LinkNetNsId(id) => netns = Some(*id),
                LinkAttribute::Link(ifindex) => peer = Some(*ifindex),
                LinkAttribute::LinkInfo(infos) => {
                    is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        Some(Self {
            master: master?,
            end: netns.zip(peer),
            note: alias.and_then(|alias| alias.parse().ok()),
            may_be_learnt: is_veth && alias.is_none(),
        })
    }

    /// The pod behind the port, which is `link`; `mac` is the present MAC address of the pod's end.
    fn pod(self, link: &LinkMessage, mac: Option<MacAddr>) -> Option<PodLink> {
        let note = self.note?;
        Some(PodLink {
            ifindex: link.header.index,
            name: link_name(link)?.to_owned(),
            mac: link_mac(link)?,
            pod_mac: mac.unwrap_or(note.mac),
            note,
            master: self.master,
            netns_id: self.end.map(|(netns, _)| netns),
            peer: self.end.map(|(_, peer)| peer),
            mtu: link_mtu(link),
            up: link.header.flags.contains(LinkFlags::Up),
            has_foreign_qdisc: false,
        })
    }
}

/// The pod behind a device, if the device is a port of `bridge` and carries a pod's note.
#[must_use]
pub fn pod(link: &LinkMessage, bridge: u32) -> Option<PodLink> {
    let port = BridgePort::of(link).filter(|port| port.master == bridge)?;
    port.pod(link, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_send_from_either_of_its_addresses() {
        let pod = |name: &str, address: &str, container: &str| PodLink {
            ifindex: 0,
            name: name.to_owned(),
            mac: MacAddr::default(),
            note: PodNote {
                addresses: address.parse::<IpAddr>().expect("an address").into(),
                mac: MacAddr::default(),
                container: container.to_owned(),
                interface: "eth0".to_owned(),
                masqueraded: false,
                by_kube_proxy: None,
            },
            pod_mac: MacAddr::default(),
            peer: None,
            master: 1,
            netns_id: None,
            mtu: 1450,
            up: true,
            has_foreign_qdisc: false,
        };
        let links = PodLinks {
            bridge: None,
            pods: vec![
                pod("a0", "10.244.1.2", "a"),
                pod("a1", "10.244.1.3", "a"),
                pod("b0", "10.244.1.4", "b"),
            ],
        };
        let expected = [
            ("a0", [10, 244, 1, 2]),
            ("a0", [10, 244, 1, 3]),
            ("a1", [10, 244, 1, 2]),
            ("a1", [10, 244, 1, 3]),
            ("b0", [10, 244, 1, 4]),
        ];
        let expected = expected.map(|(name, address)| (name.to_owned(), address.into()));
        assert_eq!(links.sources(), BTreeSet::from(expected));
    }
}
