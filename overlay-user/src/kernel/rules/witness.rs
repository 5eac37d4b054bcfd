//! Whether anybody has touched the packet filter: asked of the kernel for next to nothing, where `iptables-save` would
//! list every rule of every Service.

use std::fs;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// The state of the packet filter: equal ones mean that nobody has changed a rule in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The number of the ruleset, which every transaction of nf_tables raises.
    generation: u32,
}

impl Witness {
    /// Looks; none where that cannot be told: without nf_tables, or with tables of iptables-legacy, which count nothing.
    #[must_use]
    pub fn look() -> Option<Self> {
        let legacy = ["ip_tables_names", "ip6_tables_names"]
            .map(|names| fs::read_to_string(format!("/proc/thread-self/net/{names}")));
        if legacy.iter().flatten().any(|names| !names.is_empty()) {
            return None;
        }
        let generation = generation()?;
        Some(Self { generation })
    }
}

/// The number of the ruleset of the thread's network namespace (`NFT_MSG_GETGEN`).
fn generation() -> Option<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let ask = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        NfTablesMessage::GetGen(GenMessage {
            attributes: Vec::new(),
        }),
    );
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(ask));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    match NetlinkMessage::<NetfilterMessage>::deserialize(&answer)
        .ok()?
        .payload
    {
        NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)),
            ..
        }) => generation.attributes.iter().find_map(|it| match it {
            GenAttribute::Id(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    }
}
