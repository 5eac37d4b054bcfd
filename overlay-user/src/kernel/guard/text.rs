//! The guard as text for `nft -f`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Error, GuardState, Reason, TABLE};

/// Where things are in a VXLAN packet, in bits from the UDP header on: 64 of UDP, 64 of VXLAN, 112 of
/// Ethernet, then IPv4. As `nft` writes raw payload: base, offset, length.
const VNI: &str = "@th,96,24";
const INNER_TYPE: &str = "@th,224,16";
const INNER_SOURCE: &str = "@th,336,32";
/// The VLAN identifier of a frame that carries a tag (802.1Q), in the bridge family: `nft` sees the tag where
/// it was although the kernel has taken it off.
const VLAN_ID: &str = "@ll,116,12";

/// Ethernet types.
const IPV4: &str = "0x0800";
const VLANS: &str = "{ 0x8100, 0x88a8 }";

/// Deletes both tables whether they are there or not.
pub(super) fn removal() -> String {
    ["inet", "bridge"]
        .map(|f| format!("table {f} {TABLE}\ndelete table {f} {TABLE}\n"))
        .concat()
}

/// The transaction: declare everything (which leaves alone what is there, counters above all), empty
/// chains and sets, fill them again.
pub(super) fn render(state: &GuardState) -> Result<String, Error> {
    Ok(inet(state)? + &bridge(state)?)
}

fn inet(state: &GuardState) -> Result<String, Error> {
    let GuardState {
        port,
        vni,
        network,
        own_subnet,
        own_vtep,
        ..
    } = state;
    let (vxlan, bridge) = (quoted(&state.vxlan)?, quoted(&state.bridge)?);
    let network = range(*network);

    let vteps: BTreeSet<Ipv4Addr> = state.peers.iter().map(|(vtep, _)| *vtep).collect();
    let mut nodes = vteps.clone();
    nodes.insert(*own_vtep);
    // Intervals in a set may not overlap.
    let mut subnets: BTreeMap<Ipv4Addr, Vec<Ipv4Net>> = BTreeMap::new();
    for (vtep, subnet) in &state.peers {
        subnets.entry(*vtep).or_default().push(*subnet);
    }
    let sources = subnets.iter().flat_map(|(vtep, subnets)| {
        let subnets = Ipv4Net::aggregate(subnets);
        subnets
            .into_iter()
            .map(move |subnet| format!("{vtep} . {}", range(subnet)))
    });

    let mut text = declare("inet", |reason| !reason.in_bridge());
    text += &format!(
        "table inet {TABLE} {{\n\
         set vteps {{ type ipv4_addr; }}\n\
         set nodes {{ type ipv4_addr; }}\n\
         set sources {{ typeof ip saddr . {INNER_SOURCE}; flags interval; }}\n\
         chain vxlan {{ }}\n\
         chain prerouting {{ type filter hook prerouting priority raw; policy accept; }}\n\
         chain input {{ type filter hook input priority filter - 10; policy accept; }}\n\
         chain forward {{ type filter hook forward priority filter - 10; policy accept; }}\n\
         }}\n"
    );
    for chain in ["vxlan", "prerouting", "input", "forward"] {
        text += &format!("flush chain inet {TABLE} {chain}\n");
    }
    text += &fill("inet", "vteps", vteps);
    text += &fill("inet", "nodes", nodes);
    text += &fill("inet", "sources", sources);

    let unknown_vtep = drop(Reason::UnknownVtep);
    let wrong_vni = drop(Reason::WrongVni);
    // Peers send to the address that the lease names. Any other address of this node is a way around the
    // check of who sends: a pod's packet to it is masqueraded as its node's.
    let other_address = drop(Reason::OtherAddress);
    let inner_vlan = drop(Reason::InnerVlan);
    let foreign = drop(Reason::ForeignInnerSource);
    // Nor does VXLAN for a node ever come through the overlay: its outer source would be whatever a peer has put
    // inside its own VXLAN, another node's address for one.
    let pod_vxlan = drop(Reason::PodVxlan);
    let own = drop(Reason::OwnSubnet);
    let others = match join(state.other_vnis.iter().map(|vni| format!("{vni:#x}"))) {
        none if none.is_empty() => String::new(),
        vnis => format!("{VNI} {{ {vnis} }} return\n"),
    };
    text += &format!(
        "table inet {TABLE} {{\n\
         chain vxlan {{\n\
         {others}\
         {VNI} != {vni:#x} {wrong_vni}\n\
         ip saddr != @vteps {unknown_vtep}\n\
         ip daddr != {own_vtep} {other_address}\n\
         {INNER_TYPE} {VLANS} {inner_vlan}\n\
         {INNER_TYPE} {IPV4} {INNER_SOURCE} {network} ip saddr . {INNER_SOURCE} != @sources {foreign}\n\
         }}\n\
         chain prerouting {{\n\
         iifname {vxlan} ip saddr {own_subnet} {own}\n\
         }}\n\
         chain input {{\n\
         iifname {bridge} udp dport {port} {pod_vxlan}\n\
         meta nfproto ipv4 udp dport {port} jump vxlan\n\
         iifname {vxlan} udp dport {port} {VNI} {vni:#x} {pod_vxlan}\n\
         }}\n\
         chain forward {{\n\
         iifname {vxlan} udp dport {port} ip daddr @nodes {pod_vxlan}\n\
         iifname {bridge} udp dport {port} ip daddr @nodes {pod_vxlan}\n\
         ip saddr {own_subnet} udp dport {port} ip daddr @nodes {pod_vxlan}\n\
         }}\n\
         }}\n"
    );
    Ok(text)
}

fn bridge(state: &GuardState) -> Result<String, Error> {
    let network = state.network;
    let mut ports = BTreeSet::new();
    let mut pods = Vec::new();
    for (device, address) in &state.pods {
        let Ok(device) = quoted(device) else {
            // One odd name must not leave all others unguarded.
            tracing::warn!(device, "the guard cannot name this device: rename it");
            continue;
        };
        pods.push(format!("{device} . {address}"));
        ports.insert(device);
    }
    let source = drop(Reason::SpoofedSource);
    let arp = drop(Reason::SpoofedArp);
    let stacked = drop(Reason::StackedVlan);

    let mut text = declare("bridge", Reason::in_bridge);
    text += &format!(
        "table bridge {TABLE} {{\n\
         set ports {{ type ifname; }}\n\
         set pods {{ typeof iifname . ip saddr; }}\n\
         chain guard {{ }}\n\
         chain prerouting {{ type filter hook prerouting priority -300; policy accept; }}\n\
         }}\n\
         flush chain bridge {TABLE} guard\n\
         flush chain bridge {TABLE} prerouting\n"
    );
    text += &fill("bridge", "ports", ports);
    text += &fill("bridge", "pods", pods);
    // The kernel takes one tag off before the bridge sees the frame, so that a tagged packet is matched
    // like a plain one; but `nft` would look for ARP in the Ethernet header, where the tag still shows,
    // unless told to ask for the protocol. The kernel takes any number of tags with VLAN 0 off before the IP
    // stack sees it: what has a second tag could be anything.
    text += &format!(
        "table bridge {TABLE} {{\n\
         chain guard {{\n\
         meta protocol ip ip saddr {network} iifname . ip saddr != @pods {source}\n\
         meta protocol arp arp saddr ip {network} iifname . arp saddr ip != @pods {arp}\n\
         meta protocol {VLANS} {VLAN_ID} 0 {stacked}\n\
         }}\n\
         chain prerouting {{\n\
         iifname @ports jump guard\n\
         }}\n\
         }}\n"
    );
    Ok(text)
}

fn drop(reason: Reason) -> String {
    format!("counter name {} drop", reason.name())
}

/// Declares a table's counters.
fn declare(family: &str, which: impl Fn(Reason) -> bool) -> String {
    let counters = Reason::ALL.into_iter().filter(|reason| which(*reason));
    let counters: String = counters
        .map(|r| format!("counter {} {{ }}\n", r.name()))
        .collect();
    format!("table {family} {TABLE} {{\n{counters}}}\n")
}

/// Replaces the elements of a set.
fn fill(family: &str, set: &str, elements: impl IntoIterator<Item: ToString>) -> String {
    let elements = join(elements);
    let flush = format!("flush set {family} {TABLE} {set}\n");
    if elements.is_empty() {
        return flush;
    }
    format!("{flush}add element {family} {TABLE} {set} {{ {elements} }}\n")
}

fn join(items: impl IntoIterator<Item: ToString>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// A range of addresses as numbers, which is what raw payload is compared with.
fn range(net: Ipv4Net) -> String {
    format!(
        "{:#010x}-{:#010x}",
        net.network().to_bits(),
        net.broadcast().to_bits()
    )
}

/// A device name as a string of nft, which has no escapes and takes a final asterisk for a wildcard.
fn quoted(name: &str) -> Result<String, Error> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'*');
    if name.is_empty() || name.len() > 15 || !name.bytes().all(plain) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(format!("\"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_end_the_string_are_refused() {
        for name in ["", "a\"b", "veth*", "a b", "sixteen-letters!"] {
            assert!(quoted(name).is_err(), "{name:?}");
        }
        assert_eq!(quoted("veth1a2b").expect("a plain name"), "\"veth1a2b\"");
    }

    #[test]
    fn ranges_cover_the_prefix() {
        let net = "10.244.1.0/24".parse().expect("a network");
        assert_eq!(range(net), "0x0af40100-0x0af401ff");
    }
}
