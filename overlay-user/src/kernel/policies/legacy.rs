//! Rules of iptables-legacy (`linux/netfilter_ipv4/ip_tables.h`).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::super::Error;
#[cfg(test)]
use super::super::xtables::INFO;
use super::super::xtables::{self, Info, NEXT_OFFSET};
use super::judge::{Effect, Match, Rule, Scope, match_address, match_device};
use super::name::text;

/// The tables whose rules may do more than address translation.
const FILTERS: [&str; 4] = ["raw", "mangle", "filter", "security"];
/// Hooks that packets from pod to pod pass, with the chains' names.
const HOOKS: [(usize, &str); 3] = [(0, "PREROUTING"), (2, "FORWARD"), (4, "POSTROUTING")];

/// Layout of `struct ipt_getinfo`: mask of the valid hooks, positions of the first and last entry
/// of their chains.
const VALID_HOOKS: usize = 32;
const HOOK_ENTRIES: usize = 36;
const UNDERFLOWS: usize = 56;

/// Layout of `struct ipt_entry`: addresses and masks, device names and masks, protocol, flags,
/// inversions; then the positions of the target and of the matches.
const SOURCE: usize = 0;
const DESTINATION: usize = 4;
const SOURCE_MASK: usize = 8;
const DESTINATION_MASK: usize = 12;
const IN_DEVICE: usize = 16;
const OUT_DEVICE: usize = 32;
const IN_DEVICE_MASK: usize = 48;
const OUT_DEVICE_MASK: usize = 64;
const PROTOCOL: usize = 80;
const FLAGS: usize = 82;
const INVERSIONS: usize = 83;
const TARGET_OFFSET: usize = 88;
const MATCHES: usize = 112;
const IPT_F_FRAG: u8 = 1;
const IPT_F_GOTO: u8 = 2;
const IPT_INV_VIA_IN: u8 = 1;
const IPT_INV_VIA_OUT: u8 = 2;
const IPT_INV_SRCIP: u8 = 8;
const IPT_INV_DSTIP: u8 = 16;
/// Layout of `struct xt_entry_match` and `struct xt_entry_target`: size, name, revision; then their
/// data.
const EXTENSION_NAME: usize = 2;
const EXTENSION_NAME_LENGTH: usize = 29;
const EXTENSION_DATA: usize = 32;

/// A table's chains by name; apart from them the built-in chains on hooks, each with whether its
/// policy is to drop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyTable {
    /// Rules by chain.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// The chains on hooks that packets from pod to pod pass.
    pub bases: Vec<(String, bool)>,
}

/// The tables of this network namespace that packets of `scope` pass.
///
/// # Errors
/// The error from the socket.
pub fn tables(scope: &Scope) -> Result<Vec<Info>, Error> {
    // ip6tables has other socket options, and the overlay carries IPv4.
    match scope.network {
        IpNet::V4(_) => xtables::infos(&FILTERS),
        IpNet::V6(_) => Ok(Vec::new()),
    }
}

/// Reads the rules of a table.
///
/// # Errors
/// The error from the socket: `EAGAIN` where the table has changed since `info` was read.
pub fn read(info: &Info, scope: &Scope) -> Result<LegacyTable, Error> {
    let entries = xtables::entries(info)?;
    parse(&info.bytes, &entries, scope).ok_or_else(|| Error::Answer {
        call: "getsockopt IPT_SO_GET_ENTRIES",
        object: info.table.clone(),
        reason: "entries that make no sense".to_owned(),
    })
}

/// A table from its info and its entries; `None` if they are malformed.
#[must_use]
pub fn parse(info: &[u8], entries: &[u8], scope: &Scope) -> Option<LegacyTable> {
    let mut table = LegacyTable::default();
    // Chains on hooks begin at the positions in the info, all others behind an entry with the
    // chain's name.
    let hooks = number(info, VALID_HOOKS)?;
    let mut begins = BTreeMap::new();
    let mut policies = BTreeMap::new();
    for (hook, name) in HOOKS {
        if hooks & (1 << hook) != 0 {
            begins.insert(number(info, HOOK_ENTRIES + 4 * hook)?, name.to_owned());
            policies.insert(number(info, UNDERFLOWS + 4 * hook)?, name.to_owned());
        }
    }
    let mut raw = Vec::new();
    let mut at = 0;
    while let Some(entry) = entries.get(at..).filter(|rest| !rest.is_empty()) {
        let next = short(entry, NEXT_OFFSET)?;
        let entry = entry.get(..next).filter(|entry| entry.len() >= MATCHES)?;
        let target = entry.get(short(entry, TARGET_OFFSET)?..)?;
        let name = extension(target)?;
        if name == "ERROR" {
            begins.insert(at + next, text(target.get(EXTENSION_DATA..)?));
        }
        raw.push((at, entry, target, name));
        at += next;
    }
    let mut chain = None;
    for (at, entry, target, name) in raw {
        if let Some(name) = begins.get(&at) {
            table.chains.entry(name.clone()).or_default();
            chain = Some(name.clone());
        }
        if name == "ERROR" {
            chain = None;
            continue;
        }
        let Some(current) = &chain else {
            continue;
        };
        let effect = match name.as_str() {
            "" => standard(entry, target, at, &begins)?,
            name => Effect::Act(name.to_owned()),
        };
        if let Some(base) = policies.get(&at) {
            table
                .bases
                .push((base.clone(), matches!(effect, Effect::Act(_))));
            chain = None;
            continue;
        }
        let matches = matches(entry, scope)?;
        table
            .chains
            .get_mut(current)?
            .push(Rule { matches, effect });
    }
    Some(table)
}

/// The effect of the target without a name: a verdict, or a jump to the begin of a chain.
fn standard(
    entry: &[u8],
    target: &[u8],
    at: usize,
    begins: &BTreeMap<usize, String>,
) -> Option<Effect> {
    const DROP: i32 = -1;
    const ACCEPT: i32 = -2;
    const QUEUE: i32 = -4;
    const RETURN: i32 = -5;
    let verdict = target.get(EXTENSION_DATA..EXTENSION_DATA + 4)?;
    let verdict = i32::from_ne_bytes(verdict.try_into().ok()?);
    Some(match verdict {
        DROP => Effect::Act("drop".to_owned()),
        ACCEPT => Effect::Accept,
        QUEUE => Effect::Act("queue".to_owned()),
        RETURN => Effect::Return,
        to => {
            let to = usize::try_from(to).ok()?;
            let is_goto = entry.get(FLAGS)? & IPT_F_GOTO != 0;
            match begins.get(&to) {
                // A rule without a target continues with the next entry.
                _ if to == at + entry.len() => Effect::Nothing,
                Some(chain) if is_goto => Effect::Goto(chain.clone()),
                Some(chain) => Effect::Jump(chain.clone()),
                None => return None,
            }
        }
    })
}

/// Whether packets from pod to pod match an entry.
fn matches(entry: &[u8], scope: &Scope) -> Option<Match> {
    let inverted = *entry.get(INVERSIONS)?;
    let mut all = Match::Always;
    for (address, mask, bit) in [
        (SOURCE, SOURCE_MASK, IPT_INV_SRCIP),
        (DESTINATION, DESTINATION_MASK, IPT_INV_DSTIP),
    ] {
        let (address, mask) = (entry.get(address..address + 4)?, entry.get(mask..mask + 4)?);
        let found = match_address(scope.network, 0, mask, address);
        all = all.min(if inverted & bit != 0 { !found } else { found });
    }
    for (device, mask, bit) in [
        (IN_DEVICE, IN_DEVICE_MASK, IPT_INV_VIA_IN),
        (OUT_DEVICE, OUT_DEVICE_MASK, IPT_INV_VIA_OUT),
    ] {
        let (device, mask) = (entry.get(device..device + 16)?, entry.get(mask..mask + 16)?);
        let length = mask.iter().take_while(|byte| **byte != 0).count();
        if length == 0 {
            continue;
        }
        // The mask of a whole name includes the zero byte at its end; the mask of `eth+` does not
        // include the sign.
        let name = text(device);
        let found = match name.get(..length) {
            Some(start) => match_device(&scope.devices, start, true),
            None => match_device(&scope.devices, &name, false),
        };
        all = all.min(if inverted & bit != 0 { !found } else { found });
    }
    if short(entry, PROTOCOL)? != 0 || entry.get(FLAGS)? & IPT_F_FRAG != 0 {
        all = all.min(Match::Maybe);
    }
    let mut at = MATCHES;
    let end = short(entry, TARGET_OFFSET)?;
    while at < end {
        let extension_at = entry.get(at..end)?;
        if extension(extension_at)? != "comment" {
            all = all.min(Match::Maybe);
        }
        at += short(extension_at, 0)?.max(1);
    }
    Some(all)
}

/// The name of a match or a target.
fn extension(bytes: &[u8]) -> Option<String> {
    let name = bytes.get(EXTENSION_NAME..EXTENSION_NAME + EXTENSION_NAME_LENGTH)?;
    Some(text(name))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(bytes)).ok()
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(usize::from(u16::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests in `tests/kernel_path` have rules of a real kernel; the entries here are
    /// malformed.
    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let scope = Scope {
            network: "10.244.0.0/16".parse().expect("a network"),
            devices: [].into(),
            ports: [].into(),
        };
        assert_eq!(parse(&[], &[], &scope), None);
        let info = [0; INFO];
        assert_eq!(parse(&info, &[], &scope), Some(LegacyTable::default()));
        let mut entry = [0; MATCHES + 40];
        assert_eq!(parse(&info, &entry, &scope), None, "no next entry");
        for (target, next) in [(0, 8), (200, 152), (150, 152), (112, 200)] {
            entry[TARGET_OFFSET..][..2].copy_from_slice(&u16::to_ne_bytes(target));
            entry[NEXT_OFFSET..][..2].copy_from_slice(&u16::to_ne_bytes(next));
            assert_eq!(parse(&info, &entry, &scope), None, "{target} {next}");
        }
    }
}
