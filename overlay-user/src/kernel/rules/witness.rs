//! Notices changes of our rules by others at a small cost, because `iptables-save` would list every
//! rule of every Service.

use netlink_packet_netfilter::NetfilterProtoFamily as Family;

use crate::kernel::nftables::{generation, rule_handles};
use crate::kernel::xtables::{Info, digest, entries, infos};

/// Where rules of ours are, and the chains that lead there: table and chain, as `iptables-nft` and
/// `nft` write them.
const CHAINS: [(&str, &str); 6] = [
    ("nat", "POSTROUTING"),
    ("nat", "FLANNEL-POSTRTG"),
    ("filter", "FORWARD"),
    ("filter", "FLANNEL-FWD"),
    ("flannel-ipv4", "postrtg"),
    ("flannel-ipv4", "forward"),
];
/// The tables of iptables-legacy that they may be in.
const LEGACY: [&str; 2] = ["nat", "filter"];

/// The state of the packet filter.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The number of the rule set, which every transaction of nf_tables raises.
    generation: Option<u32>,
    /// The numbers of the rules in each of [`CHAINS`].
    handles: Vec<Vec<u64>>,
    /// The tables of iptables-legacy, each with a digest of its rules.
    legacy: Vec<(Info, u64)>,
}

impl Witness {
    /// Looks at the packet filter. Rules are only read where others have made a transaction since
    /// the `last` look. `None` where the kernel does not answer.
    pub async fn look(last: Option<&Self>) -> Option<Self> {
        let generation = generation().await.ok()?;
        let legacy = infos(&LEGACY).ok()?;
        // A table of 30,000 rules takes some milliseconds; the kernel has no cheaper word for it.
        let legacy = legacy.into_iter().map(|info| {
            let entries = entries(&info).ok()?;
            Some((info, digest(entries)))
        });
        let legacy = legacy.collect::<Option<Vec<_>>>()?;
        let handles = match last {
            Some(last) if last.generation == generation => last.handles.clone(),
            _ => handles(generation).await?,
        };
        Some(Self {
            generation,
            handles,
            legacy,
        })
    }

    /// Whether no rule has been changed in between.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        (&self.handles, &self.legacy) == (&other.handles, &other.legacy)
    }
}

async fn handles(generation: Option<u32>) -> Option<Vec<Vec<u64>>> {
    let mut handles = Vec::new();
    // A kernel without nf_tables has no rules there.
    if generation.is_some() {
        for (table, chain) in CHAINS {
            handles.push(rule_handles(Family::IPv4, table, chain).await.ok()?);
        }
    }
    Some(handles)
}
