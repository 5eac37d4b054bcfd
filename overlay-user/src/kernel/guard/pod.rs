//! One pod in the guard, for the CNI plugin: no agent may run that would write it.

use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc::{EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT};
use tokio::time::timeout;

use super::{Error, TABLE};
use crate::kernel;

/// The subsystem that a batch is for (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// Length of a device's name in a set (`IFNAMSIZ`), filled up with zeros.
const NAME: usize = 16;
/// How long the kernel may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Has the guard judge what comes from `device`, where only `address` may come from. Without a
/// guard there is nothing to do: programs judge, or no agent has run.
///
/// # Errors
/// [`Error::Pod`] with what the kernel says.
pub async fn admit(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    let change = async {
        let Some(mut socket) = Socket::open()? else {
            return Ok(());
        };
        let table = vec![TableAttribute::Name(TABLE.to_owned())];
        let table = NfTablesMessage::GetTable(TableMessage { attributes: table });
        if socket.finds(table).await? {
            let elements = elements(device, address).map(NfTablesMessage::NewSetElement);
            socket.transact(elements.into()).await?;
        }
        Ok(())
    };
    change.await.map_err(Error::Pod)
}

/// Undoes [`admit`]. An element that is not there is no error.
///
/// # Errors
/// [`Error::Pod`] with what the kernel says.
pub async fn dismiss(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    let change = async {
        let Some(mut socket) = Socket::open()? else {
            return Ok(());
        };
        let mut found = Vec::new();
        for element in elements(device, address) {
            if socket
                .finds(NfTablesMessage::GetSetElement(element.clone()))
                .await?
            {
                found.push(NfTablesMessage::DeleteSetElement(element));
            }
        }
        socket.transact(found).await
    };
    change.await.map_err(Error::Pod)
}

/// A pod in the two sets of the family `bridge`.
fn elements(device: &str, address: Ipv4Addr) -> [SetElementMessage; 2] {
    let mut port = device.as_bytes().to_vec();
    port.resize(NAME, 0);
    let pod = [&port[..], &address.octets()].concat();
    [("pods", pod), ("ports", port)].map(|(set, key)| {
        let key = SetElementAttribute::Key(DataAttribute::Value(key));
        SetElementMessage {
            attributes: vec![
                SetElementList::Table(TABLE.to_owned()),
                SetElementList::Set(set.to_owned()),
                SetElementList::Elements(vec![ListAttribute::Element(vec![key])]),
            ],
        }
    })
}

/// A socket to nftables.
struct Socket(TokioSocket);

impl Socket {
    /// `None` on a kernel without netfilter.
    fn open() -> Result<Option<Self>, kernel::Error> {
        let mut socket = match TokioSocket::new(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(EPROTONOSUPPORT) => return Ok(None),
            opened => opened.map_err(kernel::Error::Socket)?,
        };
        let bound = socket.socket_mut().bind_auto();
        bound.map_err(kernel::Error::Socket)?;
        Ok(Some(Self(socket)))
    }

    /// Whether there is what a request asks for. A transaction on what is not there would tell as
    /// well, but waits for RCU before it does.
    async fn finds(&mut self, what: NfTablesMessage) -> Result<bool, kernel::Error> {
        // There is none; or the kernel has no nftables, or none for bridges.
        const ABSENT: [i32; 4] = [ENOENT, EINVAL, EOPNOTSUPP, EPROTONOSUPPORT];
        match self
            .ask("NFT_MSG_GET", &serialize(NLM_F_REQUEST, what))
            .await
        {
            Ok(()) => Ok(true),
            Err(kernel::Error::Refused { source, .. })
                if source
                    .raw_os_error()
                    .is_some_and(|errno| ABSENT.contains(&errno)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes all changes in one step.
    async fn transact(&mut self, changes: Vec<NfTablesMessage>) -> Result<(), kernel::Error> {
        let Some(last) = changes.len().checked_sub(1) else {
            return Ok(());
        };
        let mut batch = control(ControlMessage::BatchBegin);
        for (number, change) in changes.into_iter().enumerate() {
            // One answer: that of the last, or of the first that is refused.
            let answer = if number == last { NLM_F_ACK } else { 0 };
            batch.extend(serialize(NLM_F_REQUEST | NLM_F_CREATE | answer, change));
        }
        batch.extend(control(ControlMessage::BatchEnd));
        self.ask("NFT_MSG_NEWSETELEM", &batch).await
    }

    async fn ask(&mut self, call: &'static str, request: &[u8]) -> Result<(), kernel::Error> {
        let refused = |source| kernel::Error::Refused {
            call,
            object: TABLE.to_owned(),
            source,
        };
        let sent = self.0.send_to(request, &SocketAddr::new(0, 0)).await;
        sent.map_err(refused)?;
        let mut answer = Vec::with_capacity(8 << 10);
        timeout(SILENCE, self.0.recv_from(&mut answer))
            .await
            .map_err(|_| kernel::Error::Deadline {
                call,
                object: TABLE.to_owned(),
            })?
            .map_err(refused)?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer);
        let answer = answer.map_err(|error| kernel::Error::Answer {
            call,
            object: TABLE.to_owned(),
            reason: error.to_string(),
        })?;
        match answer.payload {
            // An acknowledgement is an error without a number.
            NetlinkPayload::Error(error) if error.code.is_some() => Err(refused(error.to_io())),
            _ => Ok(()),
        }
    }
}

/// Begin and end of a transaction.
fn control(message: ControlMessage) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
    let message = NetfilterMessage::new(header, message);
    bytes(NLM_F_REQUEST, message)
}

fn serialize(flags: u16, message: NfTablesMessage) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Bridge, 0, 0);
    bytes(flags, NetfilterMessage::new(header, message))
}

fn bytes(flags: u16, message: NetfilterMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
