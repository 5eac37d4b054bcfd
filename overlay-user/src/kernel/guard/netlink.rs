//! nftables by netlink: small transactions, and the generation by which foreign transactions are
//! detected.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, SetElementAttribute,
    SetElementList, SetElementMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    NetfilterSubsystem,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::time::timeout;

use super::TABLE;
use super::state::{Delta, Element, Set, TableFamily};
use crate::kernel::Error;
use crate::kernel::dump::{Request, dump};

/// Longest wait for an answer of the kernel.
const SILENCE: Duration = Duration::from_secs(10);
/// `NFNL_MSG_BATCH_BEGIN` and its attribute `NFNL_BATCH_GENID` (`linux/netfilter/nfnetlink.h`).
const BATCH_BEGIN: u8 = 16;
const BATCH_GENID: u16 = 1;
/// Most elements of one message, because the length of an attribute has 16 bits, and an element
/// takes at most 40 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// The chain on the hook of bridges, which exists where there are pods for the guard to judge.
pub(super) const BRIDGE_HOOK: &str = "prerouting";

/// Rules and tables of ours by the kernel's numbers, which the kernel never reuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// TableFamily, handle, flags, and number of the table's objects.
    tables: Vec<(u8, u64, u32, u32)>,
    /// Chain and handle, in their order.
    rules: Vec<(String, u64)>,
}

impl Fingerprint {
    /// Whether none of our tables exists.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether packets that pods send pass the guard: only then the chain on the hook of bridges
    /// exists.
    pub(super) fn judges_pods(&self) -> bool {
        self.rules.iter().any(|(chain, _)| chain == BRIDGE_HOOK)
    }
}

/// Reads a fingerprint of the guard's tables in the kernel.
pub(super) async fn fingerprint() -> Result<Fingerprint, Error> {
    let mut found = Fingerprint::default();
    for family in [TableFamily::Ip, TableFamily::Bridge] {
        let get = NfTablesMessage::GetTable(TableMessage {
            attributes: Vec::new(),
        });
        let tables = dump(
            request(family, get, "NFT_MSG_GETTABLE"),
            |answer| match answer.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => ours(&table),
                _ => None,
            },
        );
        let number = u8::from(proto(family));
        let tables = tables.await?.into_iter();
        found
            .tables
            .extend(tables.map(|(handle, flags, uses)| (number, handle, flags, uses)));
        let get = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![RuleAttribute::Table(TABLE.to_owned())],
        });
        let rules = dump(
            request(family, get, "NFT_MSG_GETRULE"),
            |answer| match answer.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) => our_rule(&rule),
                _ => None,
            },
        );
        found.rules.extend(rules.await?);
    }
    Ok(found)
}

/// The keys that a set holds.
pub(super) async fn keys(set: Set) -> Result<BTreeSet<Vec<u8>>, Error> {
    let get = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: of_set(set),
    });
    let mut keys = BTreeSet::new();
    let found = dump(request(set.family(), get, "NFT_MSG_GETSETELEM"), |answer| {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(found)) = answer.inner
        else {
            return None;
        };
        Some(keys_of(found))
    });
    keys.extend(found.await?.into_iter().flatten());
    Ok(keys)
}

/// Applies `delta` in one transaction, which fails with `ERESTART` where the generation is not
/// `expected` any more, and with `ENOENT` where an element to remove does not exist.
pub(super) async fn change(delta: &Delta, expected: Option<u32>) -> Result<(), Error> {
    let mut messages = Vec::new();
    for (set, elements) in &delta.removed {
        let elements: Vec<_> = elements.iter().map(|element| key(element, None)).collect();
        messages.extend(remove(*set, elements));
    }
    for (set, elements) in &delta.added {
        let elements: Vec<_> = elements.iter().map(|element| key(element, None)).collect();
        messages.extend(add(*set, elements));
    }
    transact(messages, expected).await
}

/// Restores the full timeout of the one element of [`Set::Kept`]. A new element replaces the old
/// one, because before Linux 6.12 the timeout of an element cannot change.
pub(super) async fn keep(port: u16, lapse: Duration) -> Result<(), Error> {
    let element = |time| vec![key(&Element::Service(port), time)];
    let anew = || add(Set::Kept, element(Some(lapse)));
    let removed = remove(Set::Kept, element(None));
    match transact(removed.into_iter().chain(anew()).collect(), None).await {
        // The element has expired.
        Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(nix::libc::ENOENT) => {
            transact(anew(), None).await
        }
        result => result,
    }
}

type Attributes = Vec<SetElementAttribute>;

fn key(element: &Element, time: Option<Duration>) -> Attributes {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(
        element.key(),
    ))];
    let milliseconds = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    attributes.extend(milliseconds.map(SetElementAttribute::Timeout));
    attributes
}

fn add(set: Set, elements: Vec<Attributes>) -> Vec<Sent> {
    pieces(set, elements, NLM_F_CREATE, NfTablesMessage::NewSetElement)
}

fn remove(set: Set, elements: Vec<Attributes>) -> Vec<Sent> {
    pieces(set, elements, 0, NfTablesMessage::DeleteSetElement)
}

fn pieces(
    set: Set,
    elements: Vec<Attributes>,
    flags: u16,
    make: impl Fn(SetElementMessage) -> NfTablesMessage,
) -> Vec<Sent> {
    let piece = |elements: &[Attributes]| {
        let elements = elements.iter().cloned().map(ListAttribute::Element);
        let mut attributes = of_set(set);
        attributes.push(SetElementList::Elements(elements.collect()));
        let content = make(SetElementMessage { attributes });
        message(proto(set.family()), 0, content, NLM_F_REQUEST | flags)
    };
    elements.chunks(ELEMENTS_PER_MESSAGE).map(piece).collect()
}

fn of_set(set: Set) -> Vec<SetElementList> {
    vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(set.name()),
    ]
}

fn proto(family: TableFamily) -> NetfilterProtoFamily {
    match family {
        TableFamily::Ip => NetfilterProtoFamily::IPv4,
        TableFamily::Bridge => NetfilterProtoFamily::Bridge,
    }
}

fn request(
    family: TableFamily,
    message: NfTablesMessage,
    call: &'static str,
) -> Request<NetfilterMessage> {
    Request {
        protocol: NETLINK_NETFILTER,
        message: NetfilterMessage::new(NetfilterHeader::new(proto(family), 0, 0), message),
        call,
        object: TABLE,
    }
}

/// Handle, flags and uses of a table, if it is ours.
fn ours(table: &TableMessage) -> Option<(u64, u32, u32)> {
    let (mut is_ours, mut found) = (false, (0, 0, 0));
    for attribute in &table.attributes {
        match attribute {
            TableAttribute::Name(name) => is_ours = name == TABLE,
            TableAttribute::Handle(handle) => found.0 = *handle,
            TableAttribute::Flags(flags) => found.1 = flags.bits(),
            TableAttribute::Use(uses) => found.2 = *uses,
            _ => {}
        }
    }
    is_ours.then_some(found)
}

/// Chain and handle of a rule, if the rule is ours, because older kernels dump the rules of all
/// tables.
fn our_rule(rule: &RuleMessage) -> Option<(String, u64)> {
    let (mut is_ours, mut chain, mut handle) = (false, None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Table(name) => is_ours = name == TABLE,
            RuleAttribute::Chain(name) => chain = Some(name.clone()),
            RuleAttribute::Handle(number) => handle = Some(*number),
            _ => {}
        }
    }
    Some((chain?, handle?)).filter(|_| is_ours)
}

fn keys_of(message: SetElementMessage) -> Vec<Vec<u8>> {
    let lists = message.attributes.into_iter().filter_map(|it| match it {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    let attributes = lists.flatten().filter_map(|it| match it {
        ListAttribute::Element(attributes) => Some(attributes),
        _ => None,
    });
    let keys = attributes.flatten().filter_map(|it| match it {
        SetElementAttribute::Key(DataAttribute::Value(key)) => Some(key),
        _ => None,
    });
    keys.collect()
}

type Sent = NetlinkMessage<NetfilterMessage>;

fn message(
    family: NetfilterProtoFamily,
    resource: u16,
    content: impl Into<NetfilterMessageInner>,
    flags: u16,
) -> Sent {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let content = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), content);
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(content))
}

/// Makes one transaction, on condition of the generation `expected` where given.
async fn transact(mut messages: Vec<Sent>, expected: Option<u32>) -> Result<(), Error> {
    let Some(last) = messages.last_mut() else {
        return Ok(());
    };
    // The answers have the order of the messages, so that the last one's acknowledgement means that
    // there was no error before.
    last.header.flags |= NLM_F_ACK;
    let resource = u16::from(u8::from(NetfilterSubsystem::NfTables));
    let border = |content: ControlMessage| {
        message(
            NetfilterProtoFamily::Unspec,
            resource,
            content,
            NLM_F_REQUEST,
        )
    };
    let generation = expected.map(|id| DefaultNla::new(BATCH_GENID, id.to_be_bytes().to_vec()));
    messages.insert(
        0,
        border(ControlMessage::Other {
            message_type: BATCH_BEGIN,
            attributes: generation.into_iter().collect(),
        }),
    );
    messages.push(border(ControlMessage::BatchEnd));
    let mut batch = Vec::new();
    for (number, message) in messages.iter_mut().enumerate() {
        message.header.sequence_number = u32::try_from(number).unwrap_or(u32::MAX);
        batch.extend(bytes(message));
    }
    let mut channel = Channel::open("NFT_MSG_NEWSETELEM")?;
    channel.send_bytes(&batch).await?;
    channel
        .answer(|answer| match answer.payload {
            NetlinkPayload::Error(error) => Some(match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io()),
            }),
            _ => None,
        })
        .await
}

fn bytes(message: &mut Sent) -> Vec<u8> {
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A socket for one request.
struct Channel {
    socket: TokioSocket,
    call: &'static str,
}

impl Channel {
    fn open(call: &'static str) -> Result<Self, Error> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        socket.socket_mut().bind_auto().map_err(Error::Socket)?;
        Ok(Self { socket, call })
    }

    async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0)).await;
        sent.map(std::mem::drop)
            .map_err(|source| self.refused(source))
    }

    /// The first answer that `pick` accepts.
    async fn answer<T>(
        &mut self,
        pick: impl Fn(Sent) -> Option<io::Result<T>>,
    ) -> Result<T, Error> {
        loop {
            let mut datagram = Vec::with_capacity(64 << 10);
            let received = timeout(SILENCE, self.socket.recv_from(&mut datagram)).await;
            received
                .map_err(|_| Error::Deadline {
                    call: self.call,
                    object: TABLE.to_owned(),
                })?
                .map_err(|source| self.refused(source))?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = Sent::deserialize(rest).map_err(|error| Error::Answer {
                    call: self.call,
                    object: TABLE.to_owned(),
                    reason: error.to_string(),
                })?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                if let Some(picked) = pick(message) {
                    return picked.map_err(|source| self.refused(source));
                }
                rest = rest
                    .get(length.next_multiple_of(4).max(16)..)
                    .unwrap_or_default();
            }
        }
    }

    fn refused(&self, source: io::Error) -> Error {
        Error::Refused {
            call: self.call,
            object: TABLE.to_owned(),
            source,
        }
    }
}
