//! The choice of the device that the overlay runs over, by flannel's rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::LinkLayerType;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::attributes::{default_devices, link_mtu, link_name, own_address};
use super::route::family;
use super::{Error as KernelError, Kernel};

/// The operator's criteria. Of the first three fields, the first that is given decides; without
/// any, the device is that with `public_address`, or else that of the default route.
#[derive(Clone, Debug, Default)]
pub struct Criteria {
    /// `--iface`: names or addresses, the first that fits.
    pub interfaces: Vec<String>,
    /// `--iface-regex`: matched against addresses, then names; the first that fits.
    pub regexes: Vec<String>,
    /// `--iface-can-reach`: an address that the device has to have a route to.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`: the address that peers send to.
    pub public_address: Option<IpAddr>,
}

/// The device that the overlay runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// MTU, never zero.
    pub mtu: u32,
    /// Whether it carries Ethernet frames; tunnels such as WireGuard carry bare IP packets.
    pub is_ethernet: bool,
    /// Address of the interface.
    pub address: IpAddr,
    /// The address that peers send to: the same unless the operator says otherwise.
    pub public_address: IpAddr,
}

/// Why no device could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the kernel failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A pattern is malformed.
    #[error("--iface-regex {pattern:?}: {source}")]
    Regex {
        /// The pattern.
        pattern: String,
        /// The error in the pattern.
        source: regex::Error,
    },
    /// No device fits.
    #[error("no device fits {wanted}; there are: {candidates}")]
    NoMatch {
        /// The criteria.
        wanted: String,
        /// The devices with their addresses.
        candidates: String,
    },
    /// The device has no MTU.
    #[error("device {0} has mtu 0; set one with `ip link set {0} mtu`")]
    NoMtu(String),
}

/// A device with addresses that could be used, the best first.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    ifindex: u32,
    mtu: u32,
    is_ethernet: bool,
    addresses: Vec<IpAddr>,
}

/// The devices to choose from.
struct Candidates {
    candidates: Vec<Candidate>,
    /// Devices of default routes, the best first.
    defaults: Vec<u32>,
    /// Device and source address towards the address that has to be reached.
    reach: Option<(u32, Option<IpAddr>)>,
}

impl Kernel {
    /// Chooses the device to run over, in the address family of `network`.
    ///
    /// # Errors
    /// [`Error::NoMatch`] with the devices that there are, or what went wrong.
    pub async fn select_underlay(
        &self,
        criteria: &Criteria,
        network: IpNet,
    ) -> Result<Underlay, Error> {
        let mut by_device: BTreeMap<u32, Vec<(u8, IpAddr)>> = BTreeMap::new();
        for message in self.addresses().await?.iter() {
            if let Some((rank, address)) = usable(message)
                && address.is_ipv4() == network.addr().is_ipv4()
            {
                by_device
                    .entry(message.header.index)
                    .or_default()
                    .push((rank, address));
            }
        }
        let links = self.links().await?;
        let candidates = links.iter().filter_map(|link| {
            let mut addresses = by_device.remove(&link.header.index)?;
            addresses.sort_by_key(|(rank, _)| *rank);
            Some(Candidate {
                name: link_name(link)?.to_owned(),
                ifindex: link.header.index,
                mtu: link_mtu(link),
                is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
                addresses: addresses.into_iter().map(|(_, address)| address).collect(),
            })
        });
        let candidates = candidates.collect();
        let defaults = default_devices(&self.routes(family(network)).await?);
        let reach = match criteria.can_reach {
            Some(address) => self.route_to(address).await?,
            None => None,
        };
        Candidates {
            candidates,
            defaults,
            reach,
        }
        .choose(criteria)
    }

    /// Device and source address of packets to `address`; `None` when there is no route.
    async fn route_to(
        &self,
        address: IpAddr,
    ) -> Result<Option<(u32, Option<IpAddr>)>, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = match address {
            IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let call = self.handle.route().get(message).execute();
        let routes = match self.dump("RTM_GETROUTE", &address.to_string(), call).await {
            Err(error) if error.errno() == Some(nix::libc::ENETUNREACH) => return Ok(None),
            other => other?,
        };
        let attributes = routes.into_iter().flat_map(|route| route.attributes);
        let (mut device, mut source) = (None, None);
        for attribute in attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => device = Some(ifindex),
                RouteAttribute::PrefSource(RouteAddress::Inet(a)) => source = Some(a.into()),
                RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => source = Some(a.into()),
                _ => {}
            }
        }
        Ok(device.map(|device| (device, source)))
    }
}

impl Candidates {
    fn choose(&self, criteria: &Criteria) -> Result<Underlay, Error> {
        let Criteria {
            interfaces,
            regexes,
            can_reach,
            public_address,
        } = criteria;
        if interfaces.is_empty() && regexes.is_empty() && can_reach.is_none() {
            let (found, wanted) = match public_address {
                Some(public) => (self.by_address(*public), format!("--public-ip {public}")),
                None => (self.by_default_route(), "the default route".to_owned()),
            };
            return self.underlay(found.ok_or_else(|| self.no_match(wanted))?, criteria);
        }
        for wanted in interfaces {
            let found = match wanted.parse() {
                Ok(address) => self.by_address(address),
                Err(_) => self.first(|candidate| candidate.name == *wanted),
            };
            if let Some(found) = found {
                return self.underlay(found, criteria);
            }
        }
        for pattern in regexes {
            let regex = Regex::new(pattern).map_err(|source| Error::Regex {
                pattern: pattern.clone(),
                source,
            })?;
            if let Some(found) = self.by_regex(&regex) {
                return self.underlay(found, criteria);
            }
        }
        if let Some((ifindex, source)) = self.reach
            && let Some(candidate) = self.candidates.iter().find(|c| c.ifindex == ifindex)
            && let Some(address) = source.or(candidate.addresses.first().copied())
        {
            return self.underlay((candidate, address), criteria);
        }
        let wanted = [
            (!interfaces.is_empty()).then(|| format!("--iface {}", interfaces.join(","))),
            (!regexes.is_empty()).then(|| format!("--iface-regex {}", regexes.join(","))),
            can_reach.map(|address| format!("--iface-can-reach {address}")),
        ];
        Err(self.no_match(wanted.into_iter().flatten().collect::<Vec<_>>().join(" ")))
    }

    fn first(&self, fits: impl Fn(&Candidate) -> bool) -> Option<(&Candidate, IpAddr)> {
        let candidate = self.candidates.iter().find(|candidate| fits(candidate))?;
        Some((candidate, *candidate.addresses.first()?))
    }

    fn by_address(&self, address: IpAddr) -> Option<(&Candidate, IpAddr)> {
        let candidate = self
            .candidates
            .iter()
            .find(|c| c.addresses.contains(&address))?;
        Some((candidate, address))
    }

    fn by_default_route(&self) -> Option<(&Candidate, IpAddr)> {
        self.defaults
            .iter()
            .find_map(|ifindex| self.first(|c| c.ifindex == *ifindex))
    }

    fn by_regex(&self, regex: &Regex) -> Option<(&Candidate, IpAddr)> {
        let pairs = self
            .candidates
            .iter()
            .flat_map(|c| c.addresses.iter().map(move |a| (c, *a)));
        let mut matching = pairs.filter(|(_, address)| regex.is_match(&address.to_string()));
        matching
            .next()
            .or_else(|| self.first(|candidate| regex.is_match(&candidate.name)))
    }

    fn underlay(
        &self,
        (candidate, address): (&Candidate, IpAddr),
        criteria: &Criteria,
    ) -> Result<Underlay, Error> {
        if candidate.mtu == 0 {
            return Err(Error::NoMtu(candidate.name.clone()));
        }
        Ok(Underlay {
            name: candidate.name.clone(),
            ifindex: candidate.ifindex,
            mtu: candidate.mtu,
            is_ethernet: candidate.is_ethernet,
            address,
            public_address: criteria.public_address.unwrap_or(address),
        })
    }

    fn no_match(&self, wanted: String) -> Error {
        let candidates: Vec<String> = self
            .candidates
            .iter()
            .map(
                |Candidate {
                     name, addresses, ..
                 }| {
                    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                    format!("{name} ({})", addresses.join(" "))
                },
            )
            .collect();
        Error::NoMatch {
            wanted,
            candidates: candidates.join(", "),
        }
    }
}

/// An address that could be used, with its rank: global before link-local, then permanent before
/// dynamic, then lasting before temporary. A deprecated address is not usable.
fn usable(message: &AddressMessage) -> Option<(u8, IpAddr)> {
    let mut attributes = message.attributes.iter();
    // The attribute has room for more flags than the header.
    let flags = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags =
        flags.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    if flags.contains(AddressFlags::Deprecated) {
        return None;
    }
    let address = own_address(message)?;
    let (link_local, temporary) = match address {
        // For IPv4 the bit of "temporary" says "secondary".
        IpAddr::V4(address) => (address.is_link_local(), false),
        IpAddr::V6(address) => (
            address.is_unicast_link_local(),
            flags.contains(AddressFlags::Secondary),
        ),
    };
    let dynamic = !flags.contains(AddressFlags::Permanent);
    Some((
        u8::from(link_local) << 2 | u8::from(dynamic) << 1 | u8::from(temporary),
        address,
    ))
}
