//! Chains and rules of nf_tables, asked for by netlink: the chains on hooks, and the rules of
//! single chains. Never all rules, of which kube-proxy may have a hundred thousand.

mod rule;

use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_netfilter::NetfilterMessageInner;
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::super::Error;
use super::super::dump::dump;
use super::super::nftables::request;
use super::judge::{Match, Rule, Scope, match_device};
use super::name::text;

/// The verdict of netfilter that a policy of `drop` is (`linux/netfilter.h`).
const NF_DROP: u32 = 0;
/// A device of a hook by its name, or by a prefix of the name (Linux 6.16).
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;
/// Hooks of the IP stack.
const PRE_ROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POST_ROUTING: u32 = 4;

/// The chains of `family` that packets of `scope` meet.
///
/// # Errors
/// The error from netlink.
pub async fn base_chains(family: Family, scope: &Scope) -> Result<Vec<BaseChain>, Error> {
    let message = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    let request = request(family, message, "NFT_MSG_GETCHAIN");
    let chains = dump(request, |answer| match answer.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) => {
            base_chain(answer.header.family, &chain.attributes, scope)
        }
        _ => None,
    });
    chains.await
}

/// The rules of one chain, as packets of `scope` meet them.
///
/// # Errors
/// The error from netlink.
pub async fn rules(base: &BaseChain, chain: &str, scope: &Scope) -> Result<Vec<Rule>, Error> {
    let attributes = vec![
        RuleAttribute::Table(base.table.clone()),
        RuleAttribute::Chain(chain.to_owned()),
    ];
    let message = NfTablesMessage::GetRule(RuleMessage { attributes });
    let request = request(base.family, message, "NFT_MSG_GETRULE");
    let rules = dump(request, |answer| match answer.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) => {
            Some(rule::rule(base.family, &rule.attributes, scope))
        }
        _ => None,
    });
    rules.await
}

/// A chain on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain.
    pub name: String,
    /// Whether its policy is to drop.
    pub drops_by_policy: bool,
}

/// A chain, if packets from pod to pod meet it: the chain is on a hook of such packets, and does
/// more than translate addresses (replies to a translated packet return by the IP stack in any
/// case).
#[must_use]
pub fn base_chain(
    family: Family,
    attributes: &[ChainAttribute],
    scope: &Scope,
) -> Option<BaseChain> {
    let (mut table, mut name, mut hook, mut policy) = (None, None, None, None);
    for attribute in attributes {
        match attribute {
            ChainAttribute::Table(found) => table = Some(found),
            ChainAttribute::Name(found) => name = Some(found),
            ChainAttribute::Hook(found) => hook = Some(found),
            ChainAttribute::Policy(found) => policy = Some(*found),
            ChainAttribute::Type(kind) if kind == "nat" => return None,
            _ => {}
        }
    }
    is_met(family, hook?, scope).then_some(BaseChain {
        family,
        table: table?.clone(),
        name: name?.clone(),
        drops_by_policy: policy == Some(NF_DROP),
    })
}

/// Whether packets from pod to pod come by a hook. VXLAN itself, which comes by INPUT, OUTPUT and
/// the hooks of the underlay's device, is another matter.
fn is_met(family: Family, hook: &[Hook], scope: &Scope) -> bool {
    let number = hook.iter().find_map(|part| match part {
        Hook::Number(number) => Some(u32::from(*number)),
        _ => None,
    });
    let devices = hook.iter().flat_map(|part| match part {
        Hook::NetDeviceName(name) => vec![(name.clone(), false)],
        Hook::NetDevices(all) => all.iter().filter_map(device).collect(),
        _ => Vec::new(),
    });
    let mut ours = devices.filter(|(name, is_prefix)| {
        let meet = |devices| match_device(devices, name, *is_prefix) != Match::Never;
        meet(&scope.devices) || meet(&scope.ports)
    });
    match (family, number) {
        (Family::Bridge, _) => true,
        (
            Family::Inet | Family::IPv4 | Family::IPv6,
            Some(PRE_ROUTING | FORWARD | POST_ROUTING),
        ) => true,
        // `ingress` is a hook of `inet` as well.
        (Family::NetDev | Family::Inet, _) => ours.next().is_some(),
        _ => false,
    }
}

fn device(attribute: &DefaultNla) -> Option<(String, bool)> {
    let is_prefix = match attribute.kind() {
        NFTA_DEVICE_NAME => false,
        NFTA_DEVICE_PREFIX => true,
        _ => return None,
    };
    let mut name = vec![0; attribute.value_len()];
    attribute.emit_value(&mut name);
    Some((text(&name), is_prefix))
}
