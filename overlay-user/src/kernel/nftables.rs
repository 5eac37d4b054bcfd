//! Requests to nf_tables by netlink that several modules need.

use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    GenAttribute, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::Error;
use super::dump::{Request, ask, dump};

/// The number of the rule set in force: each transaction makes a new one. `None` where the kernel
/// has no nf_tables.
///
/// # Errors
/// The error from netlink.
pub async fn generation() -> Result<Option<u32>, Error> {
    let message = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
    let found = ask(
        request(Family::Unspec, message, "NFT_MSG_GETGEN"),
        |answer| {
            let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)) = answer.inner
            else {
                return None;
            };
            message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    GenAttribute::Id(id) => Some(id),
                    _ => None,
                })
        },
    );
    match found.await {
        Ok(found) => Ok(found.first().copied()),
        // The kernel has no nf_tables, or no netfilter at all.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The rules of one chain, as the kernel numbers them; a number is never given again. None where
/// there is no such chain.
///
/// # Errors
/// The error from netlink.
pub async fn rule_handles(family: Family, table: &str, chain: &str) -> Result<Vec<u64>, Error> {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
    ];
    let message = NfTablesMessage::GetRule(RuleMessage { attributes });
    let handles = dump(
        request(family, message, "NFT_MSG_GETRULE"),
        |answer| match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) => handle(&rule, chain),
            _ => None,
        },
    );
    match handles.await {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        handles => handles,
    }
}

/// The number of a rule of a chain: older kernels dump the rules of all.
fn handle(rule: &RuleMessage, wanted: &str) -> Option<u64> {
    let (mut is_it, mut handle) = (false, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Chain(name) => is_it = name == wanted,
            RuleAttribute::Handle(number) => handle = Some(*number),
            _ => {}
        }
    }
    handle.filter(|_| is_it)
}

/// A request to nf_tables.
pub(super) fn request(
    family: Family,
    message: NfTablesMessage,
    call: &'static str,
) -> Request<NetfilterMessage> {
    Request {
        protocol: NETLINK_NETFILTER,
        message: NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message),
        call,
        object: "nf_tables",
    }
}
