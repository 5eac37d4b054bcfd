//! One pod in the guard, for the CNI plugin: no agent may run that would write it.

use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc::{EEXIST, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT};
use tokio::time::timeout;

use super::{Error, TABLE};
use crate::kernel;

/// The subsystem that a batch is for (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// Length of a device's name in a set (`IFNAMSIZ`), filled up with zeros.
const NAME: usize = 16;
/// How long the kernel may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// For errors.
const CALL: &str = "NFT_MSG_NEWSETELEM";

/// Has the guard judge what comes from `device`, where only `address` may come from. Without a guard there is nothing to
/// do: programs judge, or no agent has run.
///
/// # Errors
/// [`Error::Pod`] with what the kernel says.
pub async fn admit(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    change(NfTablesMessage::NewSetElement, device, address).await
}

/// Undoes [`admit`]. An element that is not there is no error.
///
/// # Errors
/// [`Error::Pod`] with what the kernel says.
pub async fn dismiss(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    change(NfTablesMessage::DeleteSetElement, device, address).await
}

async fn change(
    verb: fn(SetElementMessage) -> NfTablesMessage,
    device: &str,
    address: Ipv4Addr,
) -> Result<(), Error> {
    let mut name = device.as_bytes().to_vec();
    name.resize(NAME, 0);
    let pod = [name.clone(), address.octets().to_vec()].concat();
    // Each by itself: a transaction that removes what is not there does nothing at all. The address comes first, for a
    // port of which none is known may send nothing.
    for (set, key) in [("pods", pod), ("ports", name)] {
        match transact(verb(element(set, key))).await {
            Ok(()) => {}
            // No such table, set or element; it is there already; a kernel without nftables or bridge tables.
            Err(kernel::Error::Refused { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(ENOENT | EEXIST | EOPNOTSUPP | EPROTONOSUPPORT)
                ) => {}
            Err(kernel::Error::Socket(source))
                if source.raw_os_error() == Some(EPROTONOSUPPORT) => {}
            Err(error) => return Err(Error::Pod(error)),
        }
    }
    Ok(())
}

fn element(set: &str, key: Vec<u8>) -> SetElementMessage {
    let key = SetElementAttribute::Key(DataAttribute::Value(key));
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(vec![ListAttribute::Element(vec![key])]),
        ],
    }
}

/// Changes a set in the family `bridge`, in a transaction of its own.
async fn transact(change: NfTablesMessage) -> Result<(), kernel::Error> {
    let refused = |source| kernel::Error::Refused {
        call: CALL,
        object: TABLE.to_owned(),
        source,
    };
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        serialize(
            NLM_F_REQUEST,
            NetfilterMessage::new(header, NetfilterMessageInner::None(message)),
        )
    };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Bridge, 0, 0);
    let batch = [
        control(ControlMessage::BatchBegin),
        serialize(
            NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK,
            NetfilterMessage::new(header, change),
        ),
        control(ControlMessage::BatchEnd),
    ];
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(kernel::Error::Socket)?;
    let bound = socket.socket_mut().bind_auto();
    bound.map_err(kernel::Error::Socket)?;
    socket
        .send_to(&batch.concat(), &SocketAddr::new(0, 0))
        .await
        .map_err(refused)?;
    let mut answer = Vec::with_capacity(8 << 10);
    timeout(SILENCE, socket.recv_from(&mut answer))
        .await
        .map_err(|_| kernel::Error::Deadline {
            call: CALL,
            object: TABLE.to_owned(),
        })?
        .map_err(refused)?;
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map_err(|error| {
        kernel::Error::Answer {
            call: CALL,
            object: TABLE.to_owned(),
            reason: error.to_string(),
        }
    })?;
    match answer.payload {
        // An acknowledgement is an error without a number.
        NetlinkPayload::Error(error) if error.code.is_some() => Err(refused(error.to_io())),
        _ => Ok(()),
    }
}

fn serialize(flags: u16, message: NetfilterMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
