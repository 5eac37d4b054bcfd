//! What the kernel says about a device.

use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use crate::mac::MacAddr;

/// What the kernel says about one device.
#[derive(Clone, Debug)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether it can carry packets at the moment.
    pub is_running: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether the bridge may send a frame back to this port.
    pub hairpin: bool,
    /// Text that somebody attached to it.
    pub alias: Option<String>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: MacAddr::default(),
            mtu: 0,
            is_up: message.header.flags.contains(LinkFlags::Up),
            is_running: false,
            is_bridge: false,
            is_veth: false,
            master: None,
            hairpin: false,
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.try_into().map(MacAddr).unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    link.hairpin = infos.iter().any(|info| {
                        matches!(info, LinkInfo::PortData(InfoPortData::BridgePort(port))
                            if port.contains(&InfoBridgePort::HairpinMode(true)))
                    });
                }
                _ => {}
            }
        }
        link
    }
}
