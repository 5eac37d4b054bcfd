//! Pods as the links of this node show them, and the bridge that they hang on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::attributes::{link_mac, link_mtu, link_name, on_device};
use super::{Error, Kernel};
use crate::mac::MacAddr;
use crate::marks::CLSACT_PRIORITY;
use crate::pod::PodNote;

/// The attribute of a request about a device of another namespace (`linux/if_link.h`; Linux 4.19).
const IFLA_TARGET_NETNSID: u16 = 46;

/// A pod of this node: the host end of its veth pair, enslaved to the bridge and carrying a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Interface index of the host end.
    pub ifindex: u32,
    /// Name of the host end.
    pub name: String,
    /// MAC address of the host end.
    pub mac: MacAddr,
    /// MAC address of the pod's end. Others may have changed it since the note was written, as the
    /// plugin `tuning` does; the note's where the kernel does not tell.
    pub pod_mac: MacAddr,
    /// Interface index of the pod's end, in its own namespace.
    pub peer: Option<u32>,
    /// What the CNI plugin wrote.
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

/// A filter of a `clsact` qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whether it is on the egress side.
    pub egress: bool,
    /// Its place among the filters.
    pub priority: u16,
    /// The kernel's id of its program, if it is one of eBPF (`TCA_BPF_ID`).
    pub program: Option<u32>,
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
    /// Its addresses with their prefix lengths.
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
    /// attachments answers by either from the address of the other, as its routes have it: that
    /// forges nothing.
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
    /// Lists the pods and the bridge that they hang on: the one called `usual`, unless all pods
    /// hang on another. The CNI plugin refuses to make a second one.
    ///
    /// # Errors
    /// What netlink says.
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

        let mut pods = Vec::new();
        for mut pod in links.iter().filter_map(|link| pod(link, ifindex)) {
            let qdiscs = by_device.get(&pod.ifindex).map_or(&[][..], Vec::as_slice);
            pod.has_foreign_qdisc = match judge(qdiscs) {
                Qdiscs::Plain => false,
                Qdiscs::Foreign => true,
                Qdiscs::Clsact => self
                    .filters(pod.ifindex)
                    .await?
                    .iter()
                    .any(|filter| filter.priority != CLSACT_PRIORITY),
            };
            if let (Some(netns), Some(peer)) = (pod.netns_id, pod.peer) {
                match self.mac_in(netns, peer).await {
                    Ok(mac) => pod.pod_mac = mac.unwrap_or(pod.pod_mac),
                    // A pod that goes, or a kernel that does not tell (before Linux 4.19).
                    Err(error) => tracing::debug!(pod = pod.name, "the pod's end: {error}"),
                }
            }
            pods.push(pod);
        }
        pods.sort_by_key(|pod| pod.ifindex);
        let bridge = BridgeLink {
            name: link_name(master).unwrap_or_default().to_owned(),
            ifindex,
            mac: link_mac(master).unwrap_or_default(),
            mtu: link_mtu(master),
            up: master.header.flags.contains(LinkFlags::Up),
            addresses: on_device(&addresses, ifindex).collect(),
        };
        Ok(PodLinks {
            bridge: Some(bridge),
            pods,
        })
    }

    /// MAC address of a device in another namespace, which has the number `netns` in this one.
    async fn mac_in(&self, netns: i32, ifindex: u32) -> Result<Option<MacAddr>, Error> {
        let mut get = self.handle.link().get().match_index(ifindex);
        let target = DefaultNla::new(IFLA_TARGET_NETNSID, netns.to_ne_bytes().to_vec());
        let attributes = &mut get.message_mut().attributes;
        attributes.push(LinkAttribute::Other(target));
        let object = format!("ifindex {ifindex} of namespace {netns}");
        let found = self.dump("RTM_GETLINK", &object, get.execute()).await?;
        Ok(found.first().and_then(link_mac))
    }

    /// The filters of a device's `clsact` qdisc; a device that is gone has none.
    ///
    /// # Errors
    /// What netlink says.
    pub async fn filters(&self, ifindex: u32) -> Result<Vec<Filter>, Error> {
        let object = format!("filters of ifindex {ifindex}");
        let get = || self.handle.traffic_filter(ifindex.cast_signed()).get();
        // One after the other: `execute` sends at once, and a socket has one dump at a time
        // (EBUSY).
        let ingress = self
            .dump("RTM_GETTFILTER", &object, get().ingress().execute())
            .await?;
        let egress = self
            .dump("RTM_GETTFILTER", &object, get().egress().execute())
            .await?;
        let of = |egress| {
            move |message: TcMessage| Filter {
                egress,
                // The upper half of tcm_info; the lower is the protocol.
                priority: (message.header.info >> 16) as u16,
                program: program(&message),
            }
        };
        let ingress = ingress.into_iter().map(of(false));
        Ok(ingress.chain(egress.into_iter().map(of(true))).collect())
    }

    /// Name and index of every device that has a `clsact` qdisc.
    ///
    /// # Errors
    /// What netlink says.
    pub async fn clsact_devices(&self) -> Result<BTreeMap<u32, String>, Error> {
        let qdiscs = self.qdiscs().await?;
        let clsact: BTreeSet<u32> = qdiscs
            .iter()
            .filter(|qdisc| kind(qdisc) == Some("clsact"))
            .map(|qdisc| qdisc.header.index.cast_unsigned())
            .collect();
        let links = self.links().await?;
        let devices = links
            .iter()
            .filter(|link| clsact.contains(&link.header.index));
        Ok(devices
            .filter_map(|link| Some((link.header.index, link_name(link)?.to_owned())))
            .collect())
    }

    async fn qdiscs(&self) -> Result<Vec<TcMessage>, Error> {
        let all = self.handle.qdisc().get().execute();
        self.dump("RTM_GETQDISC", "all devices", all).await
    }
}

/// The bridge that pods hang on.
fn bridge<'l>(links: &'l [LinkMessage], usual: &str) -> Option<&'l LinkMessage> {
    let usual = links.iter().find(|link| link_name(link) == Some(usual));
    let of_pods = |bridge: &&LinkMessage| {
        let mut links = links.iter();
        links.any(|link| pod(link, bridge.header.index).is_some())
    };
    let other = || links.iter().find(of_pods);
    usual.filter(of_pods).or_else(other).or(usual)
}

/// The program of a filter; one that is not of eBPF has none.
fn program(filter: &TcMessage) -> Option<u32> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

/// The pod behind a device, if the device is a port of `bridge` and carries a pod's note.
#[must_use]
pub fn pod(link: &LinkMessage, bridge: u32) -> Option<PodLink> {
    let (mut note, mut master, mut netns_id, mut peer) = (None, None, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => note = alias.parse::<PodNote>().ok(),
            LinkAttribute::Controller(ifindex) => master = Some(*ifindex),
            LinkAttribute::LinkNetNsId(id) => netns_id = Some(*id),
            LinkAttribute::Link(ifindex) => peer = Some(*ifindex),
            _ => {}
        }
    }
    let note = note?;
    Some(PodLink {
        ifindex: link.header.index,
        name: link_name(link)?.to_owned(),
        mac: link_mac(link)?,
        pod_mac: note.mac,
        peer,
        note,
        master: master.filter(|master| *master == bridge)?,
        netns_id,
        mtu: link_mtu(link),
        up: link.header.flags.contains(LinkFlags::Up),
        has_foreign_qdisc: false,
    })
}

/// What the queueing disciplines of a device amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qdiscs {
    Plain,
    /// Only its filters matter.
    Clsact,
    Foreign,
}

fn judge(qdiscs: &[&TcMessage]) -> Qdiscs {
    let mut verdict = Qdiscs::Plain;
    for qdisc in qdiscs {
        match kind(qdisc) {
            Some("noqueue") if qdisc.header.parent == TcHandle::ROOT => {}
            Some("clsact") => verdict = Qdiscs::Clsact,
            _ => return Qdiscs::Foreign,
        }
    }
    verdict
}

/// The kind of a queueing discipline.
fn kind(qdisc: &TcMessage) -> Option<&str> {
    let mut attributes = qdisc.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdisc(kind: &str, parent: TcHandle) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.parent = parent;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message
    }

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

    #[test]
    fn only_the_defaults_are_plain() {
        let noqueue = qdisc("noqueue", TcHandle::ROOT);
        let clsact = qdisc("clsact", TcHandle::CLSACT);
        assert_eq!(judge(&[]), Qdiscs::Plain);
        assert_eq!(judge(&[&noqueue]), Qdiscs::Plain);
        assert_eq!(judge(&[&noqueue, &clsact]), Qdiscs::Clsact);
        assert_eq!(judge(&[&qdisc("tbf", TcHandle::ROOT)]), Qdiscs::Foreign);
        assert_eq!(
            judge(&[&noqueue, &qdisc("ingress", TcHandle::INGRESS)]),
            Qdiscs::Foreign
        );
        assert_eq!(
            judge(&[&clsact, &qdisc("fq_codel", TcHandle::ROOT)]),
            Qdiscs::Foreign
        );
    }
}
