//! What the kernel answers over netlink, as our own code understands it once the crates have parsed
//! it.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use overlay_user::kernel::{attributes, conntrack, monitor, pods};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// The upper byte of the type of such messages (`NFNL_SUBSYS_CTNETLINK`).
const CONNTRACK: u8 = 1;

/// One datagram: of a dump, of a subscription, of connection tracking.
pub fn netlink(data: &[u8]) {
    let events = monitor::events(data);
    assert!(
        events.len() <= data.len() / 16,
        "more events than messages fit"
    );
    let mut rest = data;
    while rest.len() >= 16 {
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            route(&message);
        }
        // The kernel answers a dump of connection tracking with nothing else; what the crate reads
        // of nftables can panic (netlink-packet-netfilter 0.4.0: an attribute shorter than its
        // header in a set's expression).
        if rest[5] == CONNTRACK
            && let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) = message.payload
            && let Some(flow) = conntrack::connection(&attributes)
        {
            assert_ne!(flow.reply, flow.original.reversed(), "it is not translated");
        }
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        rest = rest
            .get(length.next_multiple_of(4).max(16)..)
            .unwrap_or_default();
    }
}

fn route(message: &RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewLink(link) => {
            let pod = pods::pod(link, 1);
            assert!(pod.is_none_or(|pod| pod.master == 1 && !pod.name.is_empty()));
            let _ = attributes::vxlan(link);
            let _ = attributes::link_mtu(link);
        }
        RouteNetlinkMessage::NewAddress(address) => {
            let ifindex = address.header.index;
            let found = attributes::on_device(std::slice::from_ref(address), ifindex).count();
            assert!(found <= 1, "one message, one address");
        }
        RouteNetlinkMessage::NewRoute(route) => {
            let _ = attributes::route(route, |index| (index == 1).then(|| "eth0".to_owned()));
            let _ = attributes::default_devices(std::slice::from_ref(route));
        }
        _ => {}
    }
}
