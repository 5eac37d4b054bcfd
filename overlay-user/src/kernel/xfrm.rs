//! IPsec policies that packets between nodes are subject to.
//!
//! The IP stack applies the policies to packets that it sends, forwards and receives (`xfrm_lookup`
//! and `xfrm_policy_check` in `include/net/xfrm.h`). A program that redirects packets bypasses the
//! policies.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_xfrm::policy::{DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{Address, Selector, XfrmAttrs, XfrmMessage};
use netlink_sys::protocols::NETLINK_XFRM;
use nix::libc;

use super::Error;
use super::dump::{Request, dump};

/// Directions of a policy (`linux/xfrm.h`); higher values are policies of single sockets.
const IN: u8 = 0;
const OUT: u8 = 1;
const FWD: u8 = 2;
/// `XFRM_POLICY_ALLOW`.
const ALLOW: u8 = 0;

/// The packets between this node and the others, in the terms of policies.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// This node's underlay address.
    pub own: IpAddr,
    /// The other nodes' underlay addresses.
    pub peers: Vec<IpAddr>,
    /// VXLAN's UDP port, host byte order.
    pub port: u16,
    /// The whole overlay, because pods' packets pass through the stack before they are VXLAN.
    pub network: IpNet,
}

/// The policies by which packets of `traffic` may have to be encrypted or may not pass, each as a
/// short text. The function does not check whether a more important policy exempts the packets.
///
/// # Errors
/// The error from netlink. A kernel without IPsec has no policies.
pub async fn policies(traffic: &Traffic) -> Result<Vec<String>, Error> {
    let request = Request {
        protocol: NETLINK_XFRM,
        message: XfrmMessage::GetPolicy(DelGetMessage::default()),
        call: "XFRM_MSG_GETPOLICY",
        object: "all policies",
    };
    let found = dump(request, |answer| match answer {
        XfrmMessage::AddPolicy(policy) => concern(&policy, traffic),
        _ => None,
    });
    match found.await {
        Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => Ok(Vec::new()),
        found => found,
    }
}

/// A policy as text, if packets of `traffic` may be subject to it.
#[must_use]
pub fn concern(policy: &ModifyMessage, traffic: &Traffic) -> Option<String> {
    let info = &policy.user_policy_info;
    let demands = info.action != ALLOW
        || policy
            .nlas
            .iter()
            .any(|attribute| matches!(attribute, XfrmAttrs::Template(_)));
    // Policies of tunnel devices (xfrm, vti) apply only to packets that are routed to those.
    let of_device = policy.nlas.iter().any(|attribute| match attribute {
        XfrmAttrs::IfId(id) => *id != 0,
        XfrmAttrs::Mark(mark) => mark.value & mark.mask != 0,
        _ => false,
    });
    if !demands || of_device {
        return None;
    }
    let direction = match info.direction {
        IN => "in",
        OUT => "out",
        FWD => "fwd",
        _ => return None,
    };
    let selector = &info.selector;
    let (source, destination) = nets(selector)?;
    let meet = |from: IpAddr, to: IpAddr| source.contains(&from) && destination.contains(&to);
    let is_vxlan = matches!(i32::from(selector.proto), 0 | libc::IPPROTO_UDP)
        && (selector.dport ^ traffic.port) & selector.dport_mask == 0;
    let between_nodes = |peer: &IpAddr| match info.direction {
        IN => meet(*peer, traffic.own),
        OUT => meet(traffic.own, *peer),
        _ => false,
    };
    let overlap = |net: &IpNet| net.contains(&traffic.network) || traffic.network.contains(net);
    let concerned = (is_vxlan && traffic.peers.iter().any(between_nodes))
        || (overlap(&source) && overlap(&destination));
    concerned.then(|| format!("{direction} {source} to {destination}"))
}

/// Sources and destinations of a selector; `None` if the selector is malformed.
fn nets(selector: &Selector) -> Option<(IpNet, IpNet)> {
    let net = |address: Address, length: u8| {
        let address: IpAddr = match i32::from(selector.family) {
            libc::AF_INET => {
                let [a, b, c, d, ..] = address.addr;
                Ipv4Addr::new(a, b, c, d).into()
            }
            libc::AF_INET6 => address.addr.into(),
            _ => return None,
        };
        Some(IpNet::new(address, length).ok()?.trunc())
    };
    let source = net(selector.saddr, selector.prefixlen_s)?;
    Some((source, net(selector.daddr, selector.prefixlen_d)?))
}

#[cfg(test)]
mod tests {
    use netlink_packet_xfrm::{Mark, UserTemplate};

    use super::*;

    fn traffic() -> Traffic {
        Traffic {
            own: [192, 0, 2, 1].into(),
            peers: vec![[192, 0, 2, 2].into(), [192, 0, 2, 3].into()],
            port: 8472,
            network: "10.244.0.0/16".parse().expect("a network"),
        }
    }

    fn policy(direction: u8, source: &str, destination: &str) -> ModifyMessage {
        let mut policy = ModifyMessage::default();
        let selector = &mut policy.user_policy_info.selector;
        let part = |text: &str| {
            let net: ipnet::Ipv4Net = text.parse().expect("a network");
            let mut address = Address::default();
            address.addr[..4].copy_from_slice(&net.addr().octets());
            (address, net.prefix_len())
        };
        (selector.saddr, selector.prefixlen_s) = part(source);
        (selector.daddr, selector.prefixlen_d) = part(destination);
        selector.family = u16::try_from(libc::AF_INET).expect("small");
        policy.user_policy_info.direction = direction;
        policy.nlas = vec![XfrmAttrs::Template(vec![UserTemplate::default()])];
        policy
    }

    fn concerns(policy: &ModifyMessage) -> bool {
        concern(policy, &traffic()).is_some()
    }

    #[test]
    fn policies_for_vxlan_between_nodes_are_found() {
        let out = policy(OUT, "192.0.2.1/32", "192.0.2.2/32");
        assert_eq!(
            concern(&out, &traffic()).as_deref(),
            Some("out 192.0.2.1/32 to 192.0.2.2/32")
        );
        assert!(concerns(&policy(IN, "192.0.2.0/24", "0.0.0.0/0")));
        assert!(!concerns(&policy(IN, "192.0.2.1/32", "192.0.2.2/32")));
        assert!(!concerns(&policy(FWD, "192.0.2.1/32", "192.0.2.2/32")));
        assert!(!concerns(&policy(OUT, "192.0.2.1/32", "192.0.2.77/32")));
        assert!(!concerns(&policy(3, "192.0.2.1/32", "192.0.2.2/32")));
    }

    #[test]
    fn policies_for_pods_are_found_and_a_way_out_of_the_overlay_is_none() {
        assert!(concerns(&policy(FWD, "10.244.1.0/24", "10.244.0.0/16")));
        assert!(concerns(&policy(OUT, "0.0.0.0/0", "10.0.0.0/8")));
        assert!(!concerns(&policy(OUT, "10.244.1.0/24", "172.16.0.0/12")));
    }

    #[test]
    fn the_selector_is_taken_at_its_word() {
        let with = |change: fn(&mut ModifyMessage)| {
            let mut changed = policy(OUT, "192.0.2.1/32", "192.0.2.2/32");
            change(&mut changed);
            concerns(&changed)
        };
        assert!(with(|it| it.user_policy_info.selector.proto = 17));
        assert!(!with(|it| it.user_policy_info.selector.proto = 6));
        assert!(with(|it| {
            let selector = &mut it.user_policy_info.selector;
            (selector.dport, selector.dport_mask) = (8472, 0xffff);
        }));
        assert!(!with(|it| {
            let selector = &mut it.user_policy_info.selector;
            (selector.dport, selector.dport_mask) = (500, 0xffff);
        }));
    }

    #[test]
    fn what_demands_nothing_or_belongs_to_a_device_is_left_out() {
        let with = |action: u8, attributes: Vec<XfrmAttrs>| {
            let mut changed = policy(OUT, "192.0.2.1/32", "192.0.2.2/32");
            changed.user_policy_info.action = action;
            changed.nlas = attributes;
            concerns(&changed)
        };
        let template = || XfrmAttrs::Template(vec![UserTemplate::default()]);
        assert!(!with(ALLOW, vec![]));
        assert!(with(1, vec![]), "blocked");
        assert!(with(ALLOW, vec![template(), XfrmAttrs::IfId(0)]));
        assert!(!with(ALLOW, vec![template(), XfrmAttrs::IfId(7)]));
        let mark = |value| Mark {
            value,
            mask: u32::MAX,
        };
        assert!(!with(ALLOW, vec![template(), XfrmAttrs::Mark(mark(42))]));
    }
}
