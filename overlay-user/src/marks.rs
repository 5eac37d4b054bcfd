//! The marks by which this project recognises its own objects in the kernel. An object with a mark
//! is ours to change and to remove; an object without one is never touched. The marks outlive an
//! agent, so that after a change of a mark the objects of earlier versions are not recognised.

/// `rtm_protocol` of all our routes; see `/etc/iproute2/rt_protos` for numbers that are taken.
pub const ROUTE_PROTOCOL: u8 = 111;

/// `RTPROT_BOOT` of `linux/rtnetlink.h`: the `rtm_protocol` of flannel's routes.
pub const FLANNEL_ROUTE_PROTOCOL: u8 = 3;

/// Priority of our filters in a clsact qdisc: "ov".
pub const CLSACT_PRIORITY: u16 = 0x6f76;

/// Prefix of the name of each nftables table of ours.
pub const TABLE_PREFIX: &str = "overlay_";

/// Name of the guard's tables, one in the family `ip` and one in `bridge`.
pub const GUARD_TABLE: &str = "overlay_guard";

/// Prefix of the name of an iptables chain that masquerades one pod.
pub const POD_CHAIN_PREFIX: &str = "OVERLAY-";

/// First word of the note in the alias of a pod's veth, with the version of the note's form.
pub const POD_NOTE_TAG: &str = "overlay/1";

/// Name of the bridge that pods are ports of, unless the CNI configuration names another.
pub const BRIDGE: &str = "cni0";
