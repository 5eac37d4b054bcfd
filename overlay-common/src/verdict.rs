//! How a packet's visit to a program can end: exactly one verdict, counted.

/// The places where programs sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Hook {
    /// tc ingress of a pod's host veth: what the pod sends.
    PodIn = 0,
    /// tc ingress of the NIC: what the network sends.
    NetIn = 1,
    /// tc egress of a pod's host veth: what the IP stack or the bridge sends to the pod.
    PodOut = 2,
    /// tc egress of the VXLAN device: what the IP stack sends to other nodes.
    VtepOut = 3,
    /// XDP of the NIC: what the network sends, before the kernel makes a socket buffer of it.
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

    /// The name of the program that sits there.
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

/// What kind of end a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The packet took the fast path.
    Fast,
    /// Left to the kernel although the fast path serves such packets in principle.
    Slow,
    /// Left to the kernel, whose business it is.
    Kernel,
    /// Dropped, because it forges something.
    Refused,
    /// Dropped, because the kernel failed half-way.
    Failed,
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $kind:ident $text:literal,)+) => {
        /// How a packet's visit ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Verdict {
            /// Every verdict, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What kind of end it is.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)+ }
            }

            /// Its name in metrics, tables and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

verdicts! {
    /// Handed to a pod of this node.
    Redirected = Fast "redirected",
    /// Encapsulated and sent to the peer's node.
    Encapsulated = Fast "encapsulated",
    /// Decapsulated and handed to a pod of this node.
    Decapsulated = Fast "decapsulated",

    /// The fast path is switched off or about to start.
    Inactive = Slow "inactive",
    /// The flow belongs to the IP stack, which translated it.
    StackOwned = Slow "stack_owned",
    /// The pod's veth carries a qdisc or a program of somebody else.
    PodKernelPath = Slow "pod_kernel_path",
    /// Part of a fragmented datagram.
    Fragment = Slow "fragment",
    /// IP options.
    Options = Slow "options",
    /// The time to live ends here.
    TtlExpired = Slow "ttl_expired",
    /// Longer than the path allows.
    TooLong = Slow "too_long",
    /// An ICMP message that the stack may have to translate: neither an echo nor about plain pod-to-pod traffic.
    IcmpError = Slow "icmp_error",
    /// A length or checksum that the IP stack would not take, or padding it would cut.
    Malformed = Slow "malformed",
    /// A VLAN tag.
    VlanTag = Slow "vlan_tag",
    /// A second MAC address in the pod, a frame for a MAC address that is not the one expected, or for the
    /// pod itself.
    ForeignMac = Slow "foreign_mac",
    /// A super-packet that the kernel segments in a way this program cannot describe.
    Aggregate = Slow "aggregate",
    /// A pair of ECN fields that needs the kernel's judgement.
    EcnPair = Slow "ecn_pair",
    /// Not every lease is known to the fast path.
    PeersIncomplete = Slow "peers_incomplete",
    /// The kernel would not change the packet; nothing was changed.
    AdjustFailed = Slow "adjust_failed",

    /// Not an IP packet of this family: ARP, IPv6 and others.
    NotIp = Kernel "not_ip",
    /// Broadcast or multicast.
    Group = Kernel "group",
    /// The destination is no pod of this node and no peer's subnet.
    NotOverlay = Kernel "not_overlay",
    /// The source is outside the overlay's network.
    ForeignSource = Kernel "foreign_source",
    /// The interface's pod is not known yet.
    UnknownEndpoint = Kernel "unknown_endpoint",
    /// Not VXLAN.
    NotVxlan = Kernel "not_vxlan",
    /// VXLAN that is not addressed to this node's VTEP.
    NotForUs = Kernel "not_for_us",
    /// VXLAN of another device that shares the port.
    ForeignVni = Kernel "foreign_vni",
    /// VXLAN flags or reserved bits that the kernel's device decides on.
    VxlanExtension = Kernel "vxlan_extension",
    /// Seen, and left as it is: nothing of it needs to be remembered or refused.
    Passed = Kernel "passed",
    /// Seen leaving by the IP stack: the flow is remembered as the stack's.
    Remembered = Kernel "remembered",

    /// The pod sent from an overlay address that is not its own.
    SpoofedSource = Refused "spoofed_source",
    /// The pod announced an overlay address by ARP that is not its own.
    SpoofedArp = Refused "spoofed_arp",
    /// The pod sent VXLAN to a node.
    PodVxlan = Refused "pod_vxlan",
    /// VXLAN from an address of no node that holds a lease.
    UnknownVtep = Refused "unknown_vtep",
    /// VXLAN with a VNI that is not ours.
    WrongVni = Refused "wrong_vni",
    /// The inner source lies outside the sending node's subnets.
    ForeignInnerSource = Refused "foreign_inner_source",
    /// A VLAN tag inside VXLAN (RFC 7348, section 6.1).
    InnerVlan = Refused "inner_vlan",
    /// A first fragment too short to show whom the packet inside comes from.
    HidingFragment = Refused "hiding_fragment",
    /// The pod put a second VLAN tag behind a priority tag: the kernel would take off both later, unseen.
    StackedVlan = Refused "stacked_vlan",

    /// The packet was changed and could not be finished.
    Failed = Failed "failed",
}

/// Counters per hook; a round number, so that new verdicts do not move old ones.
pub const SLOTS_PER_HOOK: u32 = 64;
/// Counters in all.
pub const COUNTERS: u32 = SLOTS_PER_HOOK * Hook::ALL.len() as u32;

const _: () = assert!(Verdict::ALL.len() <= SLOTS_PER_HOOK as usize);

/// Where the counter of a verdict at a hook stands in `ov_counters`.
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

    #[test]
    fn meanings_are_sentences() {
        for verdict in Verdict::ALL {
            assert!(verdict.meaning().ends_with('.'), "{verdict:?}");
        }
    }
}
