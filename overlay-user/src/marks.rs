//! The marks by which this project knows its own objects in the kernel. Whatever bears one is ours
//! to change and to remove; whatever does not is never touched. They outlive an agent, so that a
//! change of one loses sight of what earlier versions made.

/// `rtm_protocol` of every route that is ours; see `/etc/iproute2/rt_protos` for numbers that are
/// taken.
pub const ROUTE_PROTOCOL: u8 = 111;

/// `RTPROT_BOOT` of `linux/rtnetlink.h`: what flannel leaves its routes with.
pub const FLANNEL_ROUTE_PROTOCOL: u8 = 3;

/// Priority of our filters in a clsact qdisc: "ov".
pub const CLSACT_PRIORITY: u16 = 0x6f76;

/// What the name of each nftables table of ours begins with.
pub const TABLE_PREFIX: &str = "overlay_";

/// Name of the guard's tables, one in the family `ip` and one in `bridge`.
pub const GUARD_TABLE: &str = "overlay_guard";

/// What the name of an iptables chain that masquerades one pod begins with.
pub const POD_CHAIN_PREFIX: &str = "OVERLAY-";

/// First word of the note in the alias of a pod's veth, with the version of the note's form.
pub const POD_NOTE_TAG: &str = "overlay/1";

/// Name of the bridge that pods are ports of, unless the CNI configuration names another.
pub const BRIDGE: &str = "cni0";
