//! Judges the addresses and ports of Services.
//!
//! Every address is hostile input until judged, because a user who may write Services of one
//! namespace could redirect the connections of all pods. A refused part is left out and named; the
//! rest of the Service, and all others, stay. Rules that kube-proxy or the API server have are kept
//! (`ValidateNonSpecialIP` for endpoints and external addresses); stricter ones leave packets to
//! kube-proxy, which translates them as ever.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::name::ObjectName;
use super::{Frontend, ServiceTransport};
use crate::per_family::PerFamily;

/// Most refusals that are kept of one object.
const MOST: usize = 8;

/// Why a part of a Service is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The object cannot be parsed.
    #[error("its JSON cannot be understood: {0}")]
    Json(String),
    /// A text is no address.
    #[error("the {0} {1:?} is not an IP address")]
    NoAddress(Role, String),
    /// No other host can be reached at the address.
    #[error("the {0} {1} is {2}")]
    Special(Role, IpAddr, &'static str),
    /// The address belongs to pods.
    #[error("the {0} {1} lies in the pods' network {2}")]
    Pods(Role, IpAddr, IpNet),
    /// The address belongs to a node.
    #[error("the cluster IP {0} is a node's address")]
    Node(IpAddr),
    /// The number is no port.
    #[error("{0} is not a port")]
    Port(i64),
    /// The server's address is a Service's, and no program would translate a second time.
    #[error("the endpoint {0} is the cluster IP of {1}")]
    Service(IpAddr, ObjectName),
    /// Another Service has the frontend already.
    #[error("{0} is already that of {1}")]
    Taken(Frontend, ObjectName),
    /// A Service that is reached at too many addresses.
    #[error(
        "it has {0} addresses and ports, of which {1} are served; kube-proxy serves the others"
    )]
    Frontends(usize, usize),
    /// Number of further refusals.
    #[error("and {0} more")]
    More(usize),
}

impl Refusal {
    /// Its name in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::NoAddress(..) => "not_an_address",
            Self::Special(..) => "special_address",
            Self::Pods(..) => "pods_address",
            Self::Node(_) => "node_address",
            Self::Port(_) => "not_a_port",
            Self::Service(..) => "cluster_ip_as_endpoint",
            Self::Taken(..) => "taken",
            Self::Frontends(..) => "too_many_addresses",
            Self::More(_) => "more",
        }
    }
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of `clusterIPs`.
    Cluster,
    /// One of `externalIPs`.
    External,
    /// A load balancer's.
    Balancer,
    /// An endpoint's.
    Endpoint,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster IP",
            Self::External => "external IP",
            Self::Balancer => "load balancer's address",
            Self::Endpoint => "endpoint",
        })
    }
}

/// Adds a refusal; only counts those beyond the limit.
pub fn tell(refusals: &mut Vec<Refusal>, refusal: Refusal) {
    if refusals.len() < MOST {
        refusals.push(refusal);
        return;
    }
    match refusals.last_mut() {
        Some(Refusal::More(count)) => *count += 1,
        _ => refusals.push(Refusal::More(1)),
    }
}

/// An address that can be that of one host or of a Service.
pub fn address(role: Role, text: &str) -> Result<IpAddr, Refusal> {
    let address = text
        .parse()
        .map_err(|_| Refusal::NoAddress(role, crate::lease::excerpt(text)))?;
    match special(address) {
        Some(what) => Err(Refusal::Special(role, address, what)),
        None => Ok(address),
    }
}

/// An address at which a Service may be reached.
pub fn frontend(role: Role, text: &str, pods: &PerFamily<IpNet>) -> Result<IpAddr, Refusal> {
    let address = address(role, text)?;
    match pods.like(address).filter(|pods| pods.contains(&address)) {
        Some(pods) => Err(Refusal::Pods(role, address, *pods)),
        None => Ok(address),
    }
}

/// A number as a port.
pub fn port(number: i64) -> Result<u16, Refusal> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or(Refusal::Port(number))
}

/// A protocol's name as a transport; none for those that are left to kube-proxy.
pub fn transport(name: &str) -> Option<ServiceTransport> {
    match name {
        "" | "TCP" => Some(ServiceTransport::Tcp),
        "UDP" => Some(ServiceTransport::Udp),
        _ => None,
    }
}

/// The kind of a special address that no host or Service of a cluster can have; `None` for all
/// others.
fn special(address: IpAddr) -> Option<&'static str> {
    let kinds = match address {
        IpAddr::V4(v4) => [
            (v4.octets()[0] == 0, "unspecified"),
            (v4.is_loopback(), "a loopback address"),
            (v4.is_link_local(), "a link-local address"),
            (v4.is_multicast(), "a multicast address"),
            (v4.is_broadcast(), "the broadcast address"),
        ],
        IpAddr::V6(v6) => [
            (v6.is_unspecified(), "unspecified"),
            (v6.is_loopback(), "a loopback address"),
            (v6.is_unicast_link_local(), "a link-local address"),
            (v6.is_multicast(), "a multicast address"),
            (v6.to_ipv4().is_some(), "an IPv4 address in IPv6"),
        ],
    };
    kinds.iter().find(|(is, _)| *is).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_other_host_has_are_refused_by_name() {
        for (text, what) in [
            ("127.0.0.1", "a loopback address"),
            ("127.8.8.8", "a loopback address"),
            ("169.254.20.10", "a link-local address"),
            ("224.0.0.1", "a multicast address"),
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("255.255.255.255", "the broadcast address"),
            ("::", "unspecified"),
            ("::1", "a loopback address"),
            ("fe80::1", "a link-local address"),
            ("ff02::1", "a multicast address"),
            ("::ffff:10.0.0.1", "an IPv4 address in IPv6"),
        ] {
            let refusal = address(Role::Endpoint, text).expect_err(text).to_string();
            assert_eq!(refusal, format!("the endpoint {text} is {what}"));
        }
        for good in ["10.244.1.2", "192.168.0.1", "240.0.0.1", "fd00::1"] {
            assert!(address(Role::Endpoint, good).is_ok(), "{good}");
        }
        let refusal = address(Role::External, "a\nb").expect_err("no address");
        assert!(!refusal.to_string().contains('\n'), "{refusal}");
    }

    #[test]
    fn a_frontend_is_none_of_the_pods_addresses() {
        let pods = PerFamily::V4("10.244.0.0/16".parse().expect("a network"));
        assert!(frontend(Role::Cluster, "10.96.0.1", &pods).is_ok());
        assert!(frontend(Role::Cluster, "fd00::1", &pods).is_ok());
        let refusal = frontend(Role::External, "10.244.1.2", &pods).expect_err("a pod's");
        let text = "the external IP 10.244.1.2 lies in the pods' network 10.244.0.0/16";
        assert_eq!(refusal.to_string(), text);
    }

    #[test]
    fn zero_and_large_numbers_are_no_ports() {
        assert_eq!(port(1), Ok(1));
        assert_eq!(port(65535), Ok(65535));
        for number in [0, -1, 65536, i64::MAX] {
            assert_eq!(port(number), Err(Refusal::Port(number)));
        }
    }

    #[test]
    fn only_the_number_of_very_many_refusals_is_told() {
        let mut refusals = Vec::new();
        for _ in 0..MOST + 5 {
            tell(&mut refusals, Refusal::Port(0));
        }
        assert_eq!(refusals.len(), MOST + 1);
        assert_eq!(refusals[MOST], Refusal::More(5));
    }
}
