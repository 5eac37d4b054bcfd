//! Foreign packet-filter rules that packets from pod to pod meet on the kernel path: network
//! policies, above all.
//!
//! The fast path passes by netfilter. What may act on packets from pod to pod there (drop, queue,
//! log, mark, …) is found by reading: the chains of nf_tables on the hooks that such packets come
//! by (`prerouting`, `forward` and `postrouting` of the IP stack, everything of bridges, `ingress`
//! of pods' devices), those that their rules jump to, and the tables of iptables-legacy. Not looked
//! at: chains that translate addresses, INPUT and OUTPUT, which only VXLAN itself comes by,
//! ebtables-legacy, and hooks of kernel modules and BPF programs.
//!
//! A look without change asks one number of nf_tables and four structs of iptables-legacy.

mod judge;
mod known;
mod legacy;
mod name;
mod nftables;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use serde::{Deserialize, Serialize};

use super::Error;
use super::nftables::generation;
use super::xtables::Info;
use judge::{Hit, Missing, judge};
use nftables::BaseChain;

pub use judge::Scope;

/// Most chains that are read for one chain on a hook.
const MOST_CHAINS: usize = 256;
/// Interval of reading the rules of iptables-legacy, because rules replaced by others of the same
/// size are not noticed otherwise.
const LEGACY_RESYNC: Duration = Duration::from_secs(30);
/// How long the last answer is used while the rules cannot be read.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause after a look, as a multiple of the look's duration. The pause bounds the cost on a
/// node where kube-proxy has ten thousands of chains and writes all the time.
const REST: u32 = 20;

/// Foreign rules that packets from pod to pod may meet: of one chain on a hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Policy {
    /// Maker of the rules, in a word: `calico`, `ufw`, …, `other`.
    pub engine: String,
    /// Family, table and chains.
    pub place: String,
    /// The action of the first of the rules: `drop`, `queue`, …
    pub act: String,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, place, act } = self;
        write!(f, "{engine}: {act} in {place}")
    }
}

/// The result of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Foreign rules, by chain on a hook.
    pub policies: Vec<Policy>,
    /// Why the rules cannot be read, if they cannot.
    pub unread: Option<String>,
}

impl Found {
    /// The rules that forbid short cuts past netfilter, in a line; `None` where there are none.
    /// Rules that cannot be read forbid short cuts, too.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        /// Most rules named in the line.
        const SHOWN: usize = 4;
        if let Some(error) = &self.unread {
            return Some(format!("packet-filter rules cannot be read: {error}"));
        }
        let shown: Vec<_> = self
            .policies
            .iter()
            .take(SHOWN)
            .map(ToString::to_string)
            .collect();
        let more = match self.policies.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!shown.is_empty())
            .then(|| format!("foreign packet-filter rules ({}{more})", shown.join("; ")))
    }
}

/// The state that an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    generation: Option<u32>,
    tables: Vec<Info>,
    scope: Scope,
}

/// An answer.
#[derive(Clone, Debug)]
struct Answer {
    key: Key,
    policies: Vec<Policy>,
    at: Instant,
    took: Duration,
}

/// Follows the rules from look to look.
#[derive(Debug, Default)]
pub struct Policies {
    last: Option<Answer>,
    /// When the last answer was known to hold.
    confirmed: Option<Instant>,
}

impl Policies {
    /// Finds the foreign rules that packets of `scope` meet, in the network namespace of the
    /// thread. Reads them only if something has changed.
    pub async fn find(&mut self, scope: &Scope) -> Found {
        let unread = match self.look(scope).await {
            Ok(()) => None,
            Err(error) if self.confirmed.is_some_and(|at| at.elapsed() < PATIENCE) => {
                tracing::debug!("look for packet-filter rules: {error}");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let last = self.last.as_ref();
        Found {
            policies: last.map(|last| last.policies.clone()).unwrap_or_default(),
            unread,
        }
    }

    async fn look(&mut self, scope: &Scope) -> Result<(), Error> {
        let key = Key {
            generation: generation().await?,
            tables: legacy::tables(scope)?,
            scope: scope.clone(),
        };
        if let Some(last) = &self.last {
            let is_due = !key.tables.is_empty() && last.at.elapsed() >= LEGACY_RESYNC;
            if last.key == key && !is_due {
                self.confirmed = Some(Instant::now());
                return Ok(());
            }
            if last.at.elapsed() < last.took * REST {
                return Ok(());
            }
        }
        let start = Instant::now();
        let mut policies = of_legacy(&key.tables, scope)?;
        if key.generation.is_some() {
            policies.extend(of_nftables(scope).await?);
        }
        policies.sort();
        policies.dedup();
        let at = Instant::now();
        self.confirmed = Some(at);
        self.last = Some(Answer {
            key,
            policies,
            at,
            took: at - start,
        });
        Ok(())
    }
}

async fn of_nftables(scope: &Scope) -> Result<Vec<Policy>, Error> {
    let ip = match scope.network {
        IpNet::V4(_) => Family::IPv4,
        IpNet::V6(_) => Family::IPv6,
    };
    let mut found = Vec::new();
    for family in [ip, Family::Inet, Family::Bridge, Family::NetDev] {
        for base in nftables::base_chains(family, scope).await? {
            if known::is_harmless_table(&base.table) {
                continue;
            }
            let hit = judge_base(&base, scope).await?;
            found.extend(hit.map(|hit| policy(name_of(base.family), &base.table, &hit)));
        }
    }
    Ok(found)
}

/// Reads one chain after another, as far as the judgement needs them.
async fn judge_base(base: &BaseChain, scope: &Scope) -> Result<Option<Hit>, Error> {
    let mut chains = BTreeMap::new();
    loop {
        let harmless = known::is_harmless_chain;
        match judge(&chains, &base.name, base.drops_by_policy, harmless) {
            Ok(hit) => return Ok(hit),
            Err(Missing(_)) if chains.len() >= MOST_CHAINS => {
                return Ok(Some(Hit {
                    chains: vec![base.name.clone()],
                    act: format!("more than {MOST_CHAINS} chains"),
                }));
            }
            Err(Missing(chain)) => {
                let rules = nftables::rules(base, &chain, scope).await?;
                chains.insert(chain, rules);
            }
        }
    }
}

fn of_legacy(tables: &[Info], scope: &Scope) -> Result<Vec<Policy>, Error> {
    let mut found = Vec::new();
    for info in tables {
        let table = legacy::read(info, scope)?;
        for (base, drops) in &table.bases {
            let hit = judge(&table.chains, base, *drops, known::is_harmless_chain);
            let hit = hit.map_err(|Missing(chain)| Error::Answer {
                call: "getsockopt IPT_SO_GET_ENTRIES",
                object: info.table.clone(),
                reason: format!("a jump to {chain}, which is not there"),
            })?;
            found.extend(hit.map(|hit| policy("iptables-legacy", &info.table, &hit)));
        }
    }
    Ok(found)
}

fn policy(family: &str, table: &str, hit: &Hit) -> Policy {
    Policy {
        engine: known::engine(table, hit).to_owned(),
        place: format!("{family} {table} {}", hit.chains.join(" > ")),
        act: hit.act.clone(),
    }
}

/// As `nft` names it.
fn name_of(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "ip",
        Family::IPv6 => "ip6",
        Family::Inet => "inet",
        Family::Bridge => "bridge",
        Family::NetDev => "netdev",
        _ => "other",
    }
}
