//! A rule of nf_tables: whether packets from pod to pod match it, and what it does with them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, RuleAttribute, Verdict, VerdictAttribute,
};
use nix::libc;

use super::super::judge::{Effect, Match, Rule, Scope, match_address, match_device};
use super::super::name::text;

/// Verdicts of netfilter (`linux/netfilter.h`); bits above are a queue's number.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NF_VERDICT_MASK: u32 = 0xff;
/// The network header, as the base of a payload.
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
/// Name of an extension of iptables, in `match` and `target`.
const NFTA_XT_NAME: u16 = 1;
/// Registers that are written to the packet's connection (`ct`), a header's option (`exthdr`).
const NFTA_CT_SREG: u16 = 4;
const NFTA_EXTHDR_SREG: u16 = 7;
/// Type of a named object, and counters among them.
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFT_OBJECT_COUNTER: u32 = 1;
/// Ethernet types of what the overlay carries.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// A rule, as packets of `scope` meet it in a table of `family`.
#[must_use]
pub fn rule(family: Family, attributes: &[RuleAttribute], scope: &Scope) -> Rule {
    let mut reader = Reader {
        family,
        scope,
        registers: BTreeMap::new(),
        rule: Rule {
            matches: Match::Always,
            effect: Effect::Nothing,
        },
    };
    let expressions = attributes.iter().flat_map(|attribute| match attribute {
        RuleAttribute::Expressions(list) => list.as_slice(),
        _ => &[],
    });
    for expression in expressions {
        if let ListAttribute::Element(parts) = expression {
            reader.read(parts);
        }
    }
    reader.rule
}

/// The content of a register.
#[derive(Clone, Debug)]
enum Field {
    /// The name of a device.
    Device,
    /// So many bytes of source or destination address from this one on, masked.
    Address(usize, Vec<u8>),
    /// `NFPROTO_*`.
    Protocol,
    /// The Ethernet type.
    EtherType,
}

struct Reader<'a> {
    family: Family,
    scope: &'a Scope,
    registers: BTreeMap<u32, Field>,
    rule: Rule,
}

impl Reader<'_> {
    fn read(&mut self, parts: &[ExpressionAttribute]) {
        let data = parts.iter().find_map(|part| match part {
            ExpressionAttribute::Data(data) => Some(data),
            _ => None,
        });
        let name = parts.iter().find_map(|part| match part {
            ExpressionAttribute::Name(name) => Some(name.as_str()),
            _ => None,
        });
        match data {
            Some(Expressions::Meta(parts)) => self.meta(parts),
            Some(Expressions::Payload(parts)) => self.payload(parts),
            Some(Expressions::Bitwise(parts)) => self.bitwise(parts),
            Some(Expressions::Cmp(parts)) => self.compare(parts),
            Some(Expressions::Immediate(parts)) => self.immediate(parts),
            Some(Expressions::Lookup(parts)) => self.lookup(parts),
            Some(Expressions::Other { attributes, .. }) => {
                self.other(name.unwrap_or_default(), attributes);
            }
            // Some, as `notrack`, have no data.
            _ => self.other(name.unwrap_or_default(), &[]),
        }
    }

    /// Notes an action that a short cut would bypass. Of several actions of a rule, the first is
    /// kept.
    fn act(&mut self, what: impl Into<String>) {
        if !matches!(self.rule.effect, Effect::Act(_)) {
            self.rule.effect = Effect::Act(what.into());
        }
    }

    fn narrow(&mut self, matches: Match) {
        self.rule.matches = self.rule.matches.min(matches);
    }

    fn hold(&mut self, register: Option<Register>, field: Option<Field>) {
        match (register, field) {
            (Some(register), Some(field)) => self.registers.insert(slot(register), field),
            (Some(register), None) => self.registers.remove(&slot(register)),
            (None, _) => None,
        };
    }

    fn meta(&mut self, parts: &[Meta]) {
        let (mut key, mut to) = (None, None);
        let mut writes = false;
        for part in parts {
            match part {
                Meta::Key(found) => key = Some(*found),
                Meta::DestinationRegister(register) => to = Some(*register),
                Meta::SourceRegister(_) => writes = true,
                _ => {}
            }
        }
        // Tracing is for who debugs.
        if writes && key != Some(MetaKey::NftraceBit) {
            return self.act("meta set");
        }
        let field = match key {
            // In a bridge, and on a device, it is a port or something below one.
            Some(MetaKey::Iifname | MetaKey::Oifname)
                if !matches!(self.family, Family::Bridge | Family::NetDev) =>
            {
                Some(Field::Device)
            }
            Some(MetaKey::Nfproto) => Some(Field::Protocol),
            Some(MetaKey::EtherTypeProtocol) => Some(Field::EtherType),
            _ => None,
        };
        self.hold(to, field);
    }

    fn payload(&mut self, parts: &[Payload]) {
        let (mut base, mut offset, mut length, mut to) = (None, 0, 0, None);
        for part in parts {
            match part {
                Payload::Base(found) => base = Some(*found),
                Payload::Offset(found) => offset = as_usize(*found),
                Payload::Len(found) => length = as_usize(*found),
                Payload::DestinationRegister(register) => to = Some(*register),
                Payload::SourceRegister(_) => return self.act("payload set"),
                _ => {}
            }
        }
        // Offsets of the source address and lengths of addresses in the header.
        let (source, size) = match self.scope.network {
            IpNet::V4(_) => (12, 4),
            IpNet::V6(_) => (8, 16),
        };
        let is_within =
            |address: usize| offset >= address && offset.saturating_add(length) <= address + size;
        let address = [source, source + size]
            .into_iter()
            .find(|at| is_within(*at));
        let address = address.filter(|_| base == Some(NFT_PAYLOAD_NETWORK_HEADER) && length > 0);
        let field = address.map(|at| Field::Address(offset - at, vec![0xff; length]));
        self.hold(to, field);
    }

    fn bitwise(&mut self, parts: &[Bitwise]) {
        let (mut from, mut to, mut mask, mut is_mask) = (None, None, Vec::new(), true);
        for part in parts {
            match part {
                Bitwise::SourceRegister(register) => from = Some(*register),
                Bitwise::DestinationRegister(register) => to = Some(*register),
                Bitwise::Mask(DataAttribute::Value(bytes)) => mask.clone_from(bytes),
                Bitwise::Xor(DataAttribute::Value(bytes)) => {
                    is_mask &= bytes.iter().all(|b| *b == 0)
                }
                Bitwise::Op(op) => is_mask &= *op == 0,
                _ => {}
            }
        }
        let held = from.and_then(|register| self.registers.get(&slot(register)));
        let field = match held {
            Some(Field::Address(at, old)) if is_mask && old.len() == mask.len() => {
                Some(Field::Address(*at, mask))
            }
            _ => None,
        };
        self.hold(to, field);
    }

    fn compare(&mut self, parts: &[Cmp]) {
        let (mut from, mut operator, mut wanted) = (None, None, None);
        for part in parts {
            match part {
                Cmp::SourceRegister(register) => from = Some(*register),
                Cmp::Op(found) => operator = Some(*found),
                Cmp::Data(DataAttribute::Value(bytes)) => wanted = Some(bytes.as_slice()),
                _ => {}
            }
        }
        let held = from.and_then(|register| self.registers.get(&slot(register)));
        let (Some(field), Some(wanted)) = (held, wanted) else {
            return self.narrow(Match::Maybe);
        };
        let is_v4 = matches!(self.scope.network, IpNet::V4(_));
        let equal = match field {
            Field::Device => {
                // Names are compared with their end or, for those that only begin so, without.
                let is_prefix = !wanted.contains(&0) && wanted.len() < libc::IFNAMSIZ;
                match_device(&self.scope.devices, &text(wanted), is_prefix)
            }
            Field::Address(at, mask) => match_address(self.scope.network, *at, mask, wanted),
            Field::Protocol => {
                let ours = if is_v4 { Family::IPv4 } else { Family::IPv6 };
                if wanted == [u8::from(ours)] {
                    Match::Always
                } else {
                    Match::Never
                }
            }
            Field::EtherType => {
                let ours = if is_v4 { ETH_P_IP } else { ETH_P_IPV6 };
                if wanted == ours.to_be_bytes() {
                    Match::Always
                } else {
                    Match::Never
                }
            }
        };
        self.narrow(match operator {
            Some(Operator::Equal) => equal,
            Some(Operator::NotEqual) => !equal,
            _ => Match::Maybe,
        });
    }

    fn immediate(&mut self, parts: &[Immediate]) {
        let verdict = parts.iter().find_map(|part| match part {
            Immediate::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
            _ => None,
        });
        let Some(verdict) = verdict else {
            let to = parts.iter().find_map(|part| match part {
                Immediate::DestinationRegister(register) => Some(*register),
                _ => None,
            });
            return self.hold(to, None);
        };
        let (mut code, mut chain) = (None, None);
        for part in verdict {
            match part {
                VerdictAttribute::Code(found) => code = Some(*found),
                VerdictAttribute::Chain(found) => chain = Some(found.clone()),
                _ => {}
            }
        }
        let effect = match (code, chain) {
            (Some(Verdict::Jump), Some(chain)) => Effect::Jump(chain),
            (Some(Verdict::Goto), Some(chain)) => Effect::Goto(chain),
            (Some(Verdict::Return), _) => Effect::Return,
            (Some(Verdict::Continue | Verdict::Break), _) => return,
            (Some(Verdict::Other(code)), _) if code & NF_VERDICT_MASK == NF_ACCEPT => {
                Effect::Accept
            }
            (Some(Verdict::Other(code)), _) if code & NF_VERDICT_MASK == NF_DROP => {
                return self.act("drop");
            }
            _ => return self.act("a verdict of another kind"),
        };
        if self.rule.effect == Effect::Nothing {
            self.rule.effect = effect;
        }
    }

    fn lookup(&mut self, parts: &[Lookup]) {
        // Sets are not read. With a destination, it is a map: of verdicts, if that is the verdict's
        // register.
        let to = parts.iter().find_map(|part| match part {
            Lookup::DestinationRegister(register) => Some(*register),
            _ => None,
        });
        match to {
            Some(Register::Verdict) => self.act("a map of verdicts"),
            _ => self.hold(to, None),
        }
        self.narrow(Match::Maybe);
    }

    /// An expression that the crate does not parse.
    fn other(&mut self, name: &str, attributes: &[DefaultNla]) {
        let find = |kind| attributes.iter().find(|attribute| attribute.kind() == kind);
        let xt_name = || find(NFTA_XT_NAME).map(|name| text(&value(name)));
        match name {
            "counter" | "last" | "flow_offload" => return,
            "objref" if is_counter(find(NFTA_OBJREF_IMM_TYPE)) => return,
            "match" if xt_name().as_deref() == Some("comment") => return,
            "target" => return self.act(xt_name().unwrap_or_default()),
            "ct" if find(NFTA_CT_SREG).is_some() => return self.act("ct set"),
            "exthdr" if find(NFTA_EXTHDR_SREG).is_some() => return self.act("exthdr set"),
            "match" | "range" | "limit" | "quota" | "connlimit" | "ct" | "fib" | "rt"
            | "socket" | "osf" | "hash" | "numgen" | "exthdr" | "byteorder" | "xfrm" | "tunnel"
            | "inner" => {}
            name => self.act(name),
        }
        // An unknown expression may have written any register.
        self.registers.clear();
        self.narrow(Match::Maybe);
    }
}

fn is_counter(kind: Option<&DefaultNla>) -> bool {
    kind.is_some_and(|kind| value(kind) == NFT_OBJECT_COUNTER.to_be_bytes())
}

/// The first of the 4-byte registers that a register covers: those of 16 bytes are four of them.
fn slot(register: Register) -> u32 {
    const FIRST_OF_4_BYTES: u32 = 8;
    match u32::from(register) {
        wide @ 1..=4 => FIRST_OF_4_BYTES + (wide - 1) * 4,
        narrow => narrow,
    }
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

fn as_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
