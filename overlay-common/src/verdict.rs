//! The possible ends of a packet's visit to a program: exactly one verdict, counted.

/// The hooks that programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Hook {
    /// tc ingress of a pod's host veth: packets from the pod.
    PodIn = 0,
    /// tc ingress of the NIC: packets from the network.
    NetIn = 1,
    /// tc egress of a pod's host veth: packets from the IP stack or the bridge to the pod.
    PodOut = 2,
    /// tc egress of the VXLAN device, and of the NIC where packets leave without encapsulation:
    /// packets from the IP stack to other nodes.
    VtepOut = 3,
    /// XDP of the NIC: packets from the network, before the kernel makes socket buffers for them.
    NetXdp = 4,
}

impl Hook {
    /// Every hook, in the order of the counters.
    pub const ALL: [Self; 5] = [
        Self::PodIn,
        Self::NetIn,
        Self::PodOut,
        Self::VtepOut,
        Self::NetXdp,
    ];

    /// The name of the hook's program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodIn => "pod_in",
            Self::NetIn => "net_in",
            Self::PodOut => "pod_out",
            Self::VtepOut => "vtep_out",
            Self::NetXdp => "net_xdp",
        }
    }
}

/// The kind of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The packet took the fast path.
    Fast,
    /// Left to the kernel although the fast path serves such packets in principle.
    Slow,
    /// Left to the kernel, because the fast path does not serve such packets.
    Kernel,
    /// Dropped, because it forges something.
    Refused,
    /// Dropped, because the kernel failed half-way.
    Failed,
}

/// Makes the enum `Verdict` of verdicts with their numbers, names and meanings.
macro_rules! numbered {
    ($about:literal:
     $($(#[doc = $doc:literal])+ $name:ident = $number:literal $text:literal,)+) => {
        #[doc = $about]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Verdict {
            /// Every verdict, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The verdict's name in metrics, tables and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The verdict's meaning, in a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}
pub(crate) use numbered;

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $kind:ident $text:literal,)+) => {
        numbered! {
            "How a packet's visit ended.":
            $($(#[doc = $doc])+ $name = $number $text,)+
        }

        impl Verdict {
            /// The verdict with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The verdict's kind.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)+ }
            }
        }
    };
}

// The numbers are the places of the counters in a map that outlives the agent: a verdict keeps its
// number, and a new one takes the next.
verdicts! {
    /// Handed to a pod of this node.
    Redirected = 0 Fast "redirected",
    /// Encapsulated and sent to the peer's node.
    Encapsulated = 1 Fast "encapsulated",
    /// Decapsulated and handed to a pod of this node.
    Decapsulated = 2 Fast "decapsulated",
    /// Sent as it is to the peer's node, which is on the same link.
    Routed = 44 Fast "routed",

    /// The fast path is switched off or about to start.
    Inactive = 3 Slow "inactive",
    /// The flow belongs to the IP stack, which translated it.
    StackOwned = 4 Slow "stack_owned",
    /// The pod's veth carries a qdisc or a foreign program.
    PodKernelPath = 5 Slow "pod_kernel_path",
    /// Part of a fragmented datagram.
    Fragment = 6 Slow "fragment",
    /// IP options.
    Options = 7 Slow "options",
    /// The time to live ends here.
    TtlExpired = 8 Slow "ttl_expired",
    /// Longer than the path allows.
    TooLong = 9 Slow "too_long",
    /// An ICMP message that the stack may have to translate: neither an echo nor about plain
    /// pod-to-pod traffic.
    IcmpError = 10 Slow "icmp_error",
    /// A length or checksum that the IP stack would not take, or padding it would cut.
    Malformed = 11 Slow "malformed",
    /// A VLAN tag.
    VlanTag = 12 Slow "vlan_tag",
    /// A second MAC address in the pod, a frame for a MAC address that is not the one expected, or
    /// for the pod itself.
    ForeignMac = 13 Slow "foreign_mac",
    /// A super-packet that the kernel segments in a way this program cannot describe.
    Aggregate = 14 Slow "aggregate",
    /// A pair of ECN fields that needs the kernel's judgement.
    EcnPair = 15 Slow "ecn_pair",
    /// Not every lease is known to the fast path.
    PeersIncomplete = 16 Slow "peers_incomplete",
    /// The destination is in this node's subnet, and the fast path knows no pod with that address.
    UnknownPod = 39 Slow "unknown_pod",
    /// The destination is in the overlay's network, and the fast path knows no node with that
    /// subnet.
    UnknownPeer = 40 Slow "unknown_peer",
    /// The source is another interface's address of the same container.
    SiblingSource = 42 Slow "sibling_source",
    /// The interface's pod is not known yet.
    UnknownEndpoint = 22 Slow "unknown_endpoint",
    /// No agent has kept the list of leases for so long that a sender that is not in it may be
    /// honest.
    StaleLeases = 41 Slow "stale_leases",
    /// Without encapsulation, from the overlay's network, and not from the MAC address of the node
    /// with that subnet.
    UnprovenSource = 45 Slow "unproven_source",
    /// The kernel would not change the packet; nothing was changed.
    AdjustFailed = 17 Slow "adjust_failed",

    /// Not an IP packet of a family that the overlay carries: ARP and others.
    NotIp = 18 Kernel "not_ip",
    /// Broadcast or multicast.
    Group = 19 Kernel "group",
    /// The destination is outside the overlay's network, or an address of this node itself.
    NotOverlay = 20 Kernel "not_overlay",
    /// The source is outside the overlay's network.
    ForeignSource = 21 Kernel "foreign_source",
    /// Not VXLAN.
    NotVxlan = 23 Kernel "not_vxlan",
    /// VXLAN that is not addressed to this node's VTEP.
    NotForUs = 24 Kernel "not_for_us",
    /// VXLAN of another device that shares the port.
    ForeignVni = 25 Kernel "foreign_vni",
    /// VXLAN flags or reserved bits that the kernel's device decides on.
    VxlanExtension = 26 Kernel "vxlan_extension",
    /// Seen, and left as it is: nothing of it needs to be remembered or refused.
    Passed = 27 Kernel "passed",
    /// Seen leaving by the IP stack: the flow is remembered as the stack's.
    Remembered = 28 Kernel "remembered",
    /// Seen leaving by the IP stack for another node, and encapsulated; where the stack translated
    /// it, the flow is remembered, too.
    EncapsulatedForStack = 46 Kernel "encapsulated_for_stack",

    /// The pod sent from an overlay address that is not its own.
    SpoofedSource = 29 Refused "spoofed_source",
    /// The pod claimed an overlay address that is not its own, by ARP or neighbour discovery.
    SpoofedArp = 30 Refused "spoofed_arp",
    /// The pod sent VXLAN to a node.
    PodVxlan = 31 Refused "pod_vxlan",
    /// VXLAN from an address of no node that holds a lease.
    UnknownVtep = 32 Refused "unknown_vtep",
    /// VXLAN with a VNI that is not ours.
    WrongVni = 33 Refused "wrong_vni",
    /// The inner source is in the overlay's network, and outside the sending node's subnets; or,
    /// without encapsulation, in this node's own.
    ForeignInnerSource = 34 Refused "foreign_inner_source",
    /// A VLAN tag inside VXLAN (RFC 7348, section 6.1).
    InnerVlan = 35 Refused "inner_vlan",
    /// A protocol inside VXLAN that the overlay does not carry: ARP, IPv6 and others.
    InnerProtocol = 43 Refused "inner_protocol",
    /// A first fragment too short to show whom the packet inside comes from.
    HidingFragment = 36 Refused "hiding_fragment",
    /// The pod put a second VLAN tag behind a priority tag: the kernel would take off both later,
    /// unseen.
    StackedVlan = 37 Refused "stacked_vlan",

    /// The packet was changed and could not be finished.
    Failed = 38 Failed "failed",
}

/// Counters per hook, with spare places, so that a new verdict does not move the counters of the
/// next hook.
pub const SLOTS_PER_HOOK: u32 = 64;
/// Counters in all.
pub const COUNTERS: u32 = SLOTS_PER_HOOK * Hook::ALL.len() as u32;

const _: () = {
    let mut i = 0;
    while i < Verdict::ALL.len() {
        assert!((Verdict::ALL[i] as u32) < SLOTS_PER_HOOK);
        i += 1;
    }
};

/// The place of the counter of a verdict at a hook in `ov_counters`.
#[must_use]
#[inline(always)]
pub const fn counter_index(hook: Hook, verdict: Verdict) -> u32 {
    hook as u32 * SLOTS_PER_HOOK + verdict as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_counters_are_unique() {
        let names: HashSet<_> = Verdict::ALL.iter().map(|v| v.name()).collect();
        assert_eq!(names.len(), Verdict::ALL.len());
        let mut indices = HashSet::new();
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                assert!(indices.insert(counter_index(hook, *verdict)));
                assert!(counter_index(hook, *verdict) < COUNTERS);
            }
        }
    }

    /// The listed numbers never change; a change of the list may only add lines.
    #[test]
    fn numbers_are_frozen() {
        const FROZEN: &[(u32, &str)] = &[
            (0, "redirected"),
            (1, "encapsulated"),
            (2, "decapsulated"),
            (3, "inactive"),
            (4, "stack_owned"),
            (5, "pod_kernel_path"),
            (6, "fragment"),
            (7, "options"),
            (8, "ttl_expired"),
            (9, "too_long"),
            (10, "icmp_error"),
            (11, "malformed"),
            (12, "vlan_tag"),
            (13, "foreign_mac"),
            (14, "aggregate"),
            (15, "ecn_pair"),
            (16, "peers_incomplete"),
            (17, "adjust_failed"),
            (18, "not_ip"),
            (19, "group"),
            (20, "not_overlay"),
            (21, "foreign_source"),
            (22, "unknown_endpoint"),
            (23, "not_vxlan"),
            (24, "not_for_us"),
            (25, "foreign_vni"),
            (26, "vxlan_extension"),
            (27, "passed"),
            (28, "remembered"),
            (29, "spoofed_source"),
            (30, "spoofed_arp"),
            (31, "pod_vxlan"),
            (32, "unknown_vtep"),
            (33, "wrong_vni"),
            (34, "foreign_inner_source"),
            (35, "inner_vlan"),
            (36, "hiding_fragment"),
            (37, "stacked_vlan"),
            (38, "failed"),
            (39, "unknown_pod"),
            (40, "unknown_peer"),
            (41, "stale_leases"),
            (42, "sibling_source"),
            (43, "inner_protocol"),
            (44, "routed"),
            (45, "unproven_source"),
            (46, "encapsulated_for_stack"),
        ];
        let mut found: Vec<_> = Verdict::ALL.iter().map(|v| (*v as u32, v.name())).collect();
        found.sort_unstable();
        assert_eq!(found, FROZEN);
        for (number, name) in FROZEN {
            let verdict = Verdict::from_number(*number);
            assert_eq!(verdict.map(Verdict::name), Some(*name));
        }
        assert_eq!(Verdict::from_number(FROZEN.len() as u32), None);
    }

    #[test]
    fn hooks_have_the_names_of_their_programs() {
        let names = Hook::ALL.map(|hook| (hook as u32, hook.name()));
        let frozen = [
            (0, "pod_in"),
            (1, "net_in"),
            (2, "pod_out"),
            (3, "vtep_out"),
            (4, "net_xdp"),
        ];
        assert_eq!(names, frozen);
    }

    #[test]
    fn meanings_are_sentences() {
        for verdict in Verdict::ALL {
            assert!(verdict.meaning().ends_with('.'), "{verdict:?}");
        }
    }
}
