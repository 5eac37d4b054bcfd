//! The guard as text for `nft -f`.

use ipnet::Ipv4Net;

use super::state::{Elements, Set, Shape, is_plain, lengths};
use super::{Error, GuardCounters, Reason, TABLE};

/// Positions of fields in a VXLAN packet, in bits from the UDP header on: 64 of UDP, 64 of VXLAN,
/// 112 of Ethernet, then IPv4. The notation is that of `nft` for raw payload: base, offset, length.
const PORT: &str = "@th,16,16";
const VNI: &str = "@th,96,24";
/// The VNI with the reserved byte behind it, because netfilter loads four bytes fastest.
const VNI_WORD: &str = "@th,96,32";
const INNER_TYPE: &str = "@th,224,16";
const INNER_SOURCE: &str = "@th,336,32";
/// The VLAN identifier of a tagged frame (802.1Q), in the bridge family: `nft` sees the tag at its
/// original position although the kernel has removed the tag.
const VLAN_ID: &str = "@ll,116,12";

/// Ethernet types.
const IPV4: &str = "0x0800";
const VLANS: &str = "{ 0x8100, 0x88a8 }";

/// The base chain of the bridge table.
const BRIDGE_CHAIN: &str = "chain prerouting { \
     type filter hook prerouting priority -300; policy accept; iifname @ports jump guard; }\n";

/// Deletes our tables, existing or not; the table of the family `inet` is that of an earlier
/// version.
pub(super) fn removal() -> String {
    ["ip", "bridge", "inet"]
        .map(|f| format!("table {f} {TABLE}\ndelete table {f} {TABLE}\n"))
        .concat()
}

/// The transaction that replaces the existing tables by new ones, whose counters start at the given
/// counts.
pub(super) fn render(
    shape: &Shape,
    elements: &Elements,
    counters: &GuardCounters,
) -> Result<String, Error> {
    let ip = ip(shape, elements, counters)?;
    Ok(removal() + &ip + &bridge(shape, elements, counters))
}

fn ip(shape: &Shape, elements: &Elements, counters: &GuardCounters) -> Result<String, Error> {
    let mut text = format!("table ip {TABLE} {{\n");
    text += &declare(counters, |reason| !reason.in_bridge());
    if let Some(vxlan) = &shape.vxlan {
        text += &tunnel(shape, &quoted(vxlan)?, elements)?;
    }
    if let Some(nic) = &shape.nic {
        text += &link(shape, &quoted(nic)?);
    }
    if shape.has_untracked {
        text += &untracked(shape.network);
    }
    Ok(text + "}\n")
}

/// Rules for packets without encapsulation from the NIC. No field of such a packet proves its
/// sender, but no pod of this node can be the sender.
fn link(shape: &Shape, nic: &str) -> String {
    let (own_subnet, own) = (shape.own_subnet, drop(Reason::OwnSubnet));
    format!(
        "chain routed {{\n\
         type filter hook forward priority filter - 10; policy accept;\n\
         iifname {nic} ip saddr {own_subnet} {own}\n\
         }}\n"
    )
}

/// Rules for the last packets of connections that programs have carried. Connection tracking picks
/// a connection up in its middle, but not at its end: a FIN or RST of a connection that connection
/// tracking has not seen counts as invalid (`tcp_conntracks`,
/// `net/netfilter/nf_conntrack_proto_tcp.c`), and kube-proxy's rules drop invalid packets.
/// `notrack` works here, after connection tracking, because an invalid packet has no entry
/// (`nft_notrack_eval()`).
fn untracked(network: Ipv4Net) -> String {
    format!(
        "chain untracked {{\n\
         type filter hook forward priority filter - 10; policy accept;\n\
         ct state invalid ip saddr {network} ip daddr {network} \
         tcp flags & (fin | rst) != 0x0 notrack\n\
         }}\n"
    )
}

/// Rules for VXLAN, in both directions.
fn tunnel(shape: &Shape, vxlan: &str, elements: &Elements) -> Result<String, Error> {
    let Shape {
        port,
        vni,
        own_subnet,
        own_vtep,
        ..
    } = shape;
    let bridge = quoted(&shape.bridge)?;
    let network = range(shape.network);
    let own_sources = range(*own_subnet);

    let unknown_vtep = drop(Reason::UnknownVtep);
    let wrong_vni = drop(Reason::WrongVni);
    // Peers send to the address in the lease. Any other address of this node would be a way around
    // the check of senders, because a pod's packet to such an address is masqueraded as its node's.
    let other_address = drop(Reason::OtherAddress);
    let inner_vlan = drop(Reason::InnerVlan);
    // The VXLAN device would accept ARP and router advertisements as this node's own.
    let inner_protocol = drop(Reason::InnerProtocol);
    let foreign = drop(Reason::ForeignInnerSource);
    let own = drop(Reason::OwnSubnet);
    let pod_vxlan = drop(Reason::PodVxlan);
    let others = match join(shape.other_vnis.iter().map(|vni| format!("{vni:#x}"))) {
        none if none.is_empty() => String::new(),
        vnis => format!("{VNI} {{ {vnis} }} return\n"),
    };
    let source_sets: String = lengths(elements)
        .map(|length| {
            let declared = format!("typeof ip saddr . {INNER_SOURCE};");
            set(Set::Sources(length), &declared, elements)
        })
        .collect();
    // Packets of peers match one rule. The VNI is compared first, because the VNI distinguishes
    // VXLAN from other packets to the port. A packet that matches is accepted at once, with the
    // same result as at the end of all rules.
    let right = |from: &str| -> String {
        let rule = |length| {
            let (set, inner) = (Set::Sources(length).name(), masked(length));
            let word = vni << 8;
            format!(
                "{VNI_WORD} {word:#x} {from}{INNER_TYPE} {IPV4} ip daddr {own_vtep} \
                 ip saddr . {inner} @{set} accept\n"
            )
        };
        lengths(elements).map(rule).collect()
    };
    // A device is matched fastest by its index. As long as the index belongs to another device, or
    // to none, all packets pass all rules.
    let right_at_once = right(&format!("iif {} ", shape.underlay));
    let right = right("");

    let mut text = set(Set::Vteps, "type ipv4_addr;", elements);
    text += &set(Set::Nodes, "type ipv4_addr;", elements);
    text += &source_sets;
    // Rules that depend on the list of leases apply only while an agent keeps the list up to date.
    text += &format!(
        "set kept {{ type inet_service; flags timeout; elements = {{ {port} timeout {}s }}; }}\n",
        shape.lapse.as_secs().max(1)
    );
    text += &format!(
        "chain sources {{\n\
         udp dport @kept {foreign}\n\
         {INNER_SOURCE} {own_sources} {own}\n\
         }}\n\
         chain checks {{\n\
         {others}\
         {VNI} != {vni:#x} {wrong_vni}\n\
         ip saddr != @vteps udp dport @kept {unknown_vtep}\n\
         ip daddr != {own_vtep} {other_address}\n\
         {INNER_TYPE} {VLANS} {inner_vlan}\n\
         {INNER_TYPE} != {IPV4} {inner_protocol}\n\
         {INNER_SOURCE} {network} jump sources\n\
         }}\n"
    );
    // A condition costs 5 to 10 ns a packet, a chain on a hook 30 ns, a jump 46 ns. Therefore
    // correct packets pass by the first rule, without a jump, and a packet that is not VXLAN is
    // compared with one condition of each rule. VXLAN for a node never arrives through the overlay,
    // because its outer source would be chosen by a peer inside the peer's own VXLAN, and could be
    // another node's address.
    text += &format!(
        "chain arriving {{\n\
         meta l4proto != udp return\n\
         iifname {bridge} {pod_vxlan}\n\
         iifname {vxlan} {VNI} {vni:#x} goto overlaid\n\
         {right}\
         goto checks\n\
         }}\n\
         chain overlaid {{\n\
         jump checks\n\
         {pod_vxlan}\n\
         }}\n\
         chain input {{\n\
         type filter hook input priority filter - 10; policy accept;\n\
         {right_at_once}{PORT} {port} jump arriving\n\
         }}\n"
    );
    // Where netfilter translates, only the first packet of a connection passes a chain of the type
    // nat; the chain's result applies to all others. The chain also sees this node's own packets,
    // for which the VXLAN device counts as the input device. (A chain on this hook can match the
    // input device since Linux 5.7.)
    let (hook, not_own) = if shape.translates {
        let hook = "chain leaving { type nat hook postrouting priority 90";
        (hook, format!("ip saddr != {own_vtep} "))
    } else {
        let hook = "chain forward { type filter hook forward priority filter - 10";
        (hook, String::new())
    };
    text += &format!(
        "chain to_nodes {{\n\
         iifname {vxlan} {not_own}{pod_vxlan}\n\
         iifname {bridge} {pod_vxlan}\n\
         ip saddr {own_subnet} {pod_vxlan}\n\
         }}\n\
         {hook}; policy accept;\n\
         udp dport {port} ip daddr @nodes jump to_nodes\n\
         }}\n"
    );
    Ok(text)
}

fn bridge(shape: &Shape, elements: &Elements, counters: &GuardCounters) -> String {
    let network = shape.network;
    let source = drop(Reason::SpoofedSource);
    let arp = drop(Reason::SpoofedArp);
    let stacked = drop(Reason::StackedVlan);
    // Without pods to judge the bridge's hook has no chain; the counters stay, and the CNI plugin
    // finds the sets for the pods that it creates while no agent runs.
    let hook = if shape.has_ports { BRIDGE_CHAIN } else { "" };
    // The kernel removes one tag before the bridge sees the frame, so that a tagged packet is
    // matched like an untagged one. But `nft` would look for ARP in the Ethernet header, which
    // still shows the tag, unless the rule matches the protocol. The kernel removes any number of
    // tags with VLAN 0 before the IP stack sees the frame, so that a frame with a second tag could
    // contain anything.
    format!(
        "table bridge {TABLE} {{\n\
         {}{}{}\
         chain guard {{\n\
         meta protocol ip ip saddr {network} iifname . ip saddr != @pods {source}\n\
         meta protocol arp arp saddr ip {network} iifname . arp saddr ip != @pods {arp}\n\
         meta protocol {VLANS} {VLAN_ID} 0 {stacked}\n\
         }}\n\
         {hook}\
         }}\n",
        declare(counters, Reason::in_bridge),
        set(Set::Ports, "type ifname;", elements),
        set(Set::Pods, "typeof iifname . ip saddr;", elements),
    )
}

fn drop(reason: Reason) -> String {
    format!("counter name {} drop", reason.name())
}

/// The inner source without its host part.
fn masked(length: u8) -> String {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    match mask {
        u32::MAX => INNER_SOURCE.to_owned(),
        mask => format!("{INNER_SOURCE} & {mask:#010x}"),
    }
}

/// Declares a table's counters.
fn declare(counters: &GuardCounters, which: impl Fn(Reason) -> bool) -> String {
    let reasons = Reason::ALL.into_iter().filter(|reason| which(*reason));
    reasons
        .map(|reason| {
            let (name, packets) = (reason.name(), counters.get(reason));
            format!("counter {name} {{ packets {packets} bytes 0; }}\n")
        })
        .collect()
}

/// Declares a set with its elements.
fn set(set: Set, declared: &str, elements: &Elements) -> String {
    let inside = elements.get(&set).map(join).unwrap_or_default();
    let elements = match inside.is_empty() {
        true => String::new(),
        false => format!(" elements = {{ {inside} }};"),
    };
    format!("set {} {{ {declared}{elements} }}\n", set.name())
}

fn join(items: impl IntoIterator<Item: ToString>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// A range of addresses as numbers, because raw payload is compared with numbers.
fn range(net: Ipv4Net) -> String {
    format!(
        "{:#010x}-{:#010x}",
        net.network().to_bits(),
        net.broadcast().to_bits()
    )
}

/// A device name as a string of nft.
fn quoted(name: &str) -> Result<String, Error> {
    match is_plain(name) {
        true => Ok(format!("\"{name}\"")),
        false => Err(Error::Name(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::state;
    use super::*;

    #[test]
    fn ranges_cover_the_prefix() {
        let net = "10.244.1.0/24".parse().expect("a network");
        assert_eq!(range(net), "0x0af40100-0x0af401ff");
    }

    #[test]
    fn masks_leave_the_network_part() {
        assert_eq!(masked(24), "@th,336,32 & 0xffffff00");
        assert_eq!(masked(32), INNER_SOURCE);
        assert_eq!(masked(0), "@th,336,32 & 0x00000000");
    }

    #[test]
    fn what_programs_judge_meets_no_chain_on_a_hook() {
        let hooks = |state: &super::super::GuardState| {
            let none = GuardCounters::default();
            let elements = state.contents().elements(&state.shape());
            let text = render(&state.shape(), &elements, &none).expect("text");
            text.matches(" hook ").count()
        };
        let mut state = state();
        assert_eq!(hooks(&state), 3);
        state.judged = Some(["pod".into()].into());
        assert_eq!(hooks(&state), 2);
    }

    #[test]
    fn last_packets_are_untracked_only_where_programs_carry_packets_or_did() {
        let text = |has_untracked| {
            let state = super::super::GuardState {
                has_untracked,
                ..state()
            };
            let elements = state.contents().elements(&state.shape());
            render(&state.shape(), &elements, &GuardCounters::default()).expect("text")
        };
        assert!(!text(false).contains("notrack"));
        let rule = "ct state invalid ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 \
                    tcp flags & (fin | rst) != 0x0 notrack";
        assert!(text(true).contains(rule), "{}", text(true));
    }

    #[test]
    fn without_a_tunnel_nothing_is_said_of_vxlan() {
        let mut state = state();
        (state.vxlan, state.nic) = (None, Some("eth0".into()));
        let none = GuardCounters::default();
        let elements = state.contents().elements(&state.shape());
        let text = render(&state.shape(), &elements, &none).expect("text");
        assert!(
            !text.contains("udp dport") && !text.contains("@nodes"),
            "{text}"
        );
        assert!(
            text.contains("iifname \"eth0\" ip saddr 10.244.1.0/24 counter name own_subnet drop"),
            "{text}"
        );
        assert!(text.contains("iifname @ports jump guard"), "{text}");
    }
}
