//! Judges the possible actions of chains of rules on packets from pod to pod: pure.
//!
//! Matches are three-valued, because most conditions of a rule cannot be evaluated without the
//! packet: a rule that *may* match and *would* act counts. Devices and addresses are understood, so
//! that rules for other networks do not count.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// Depth to which jumps are followed; the kernel allows 16 in nf_tables.
const DEPTH: usize = 32;

/// The packets in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The whole overlay: source and destination are in it.
    pub network: IpNet,
    /// The devices by which the IP stack sees them come and go: the pods' bridge, the VXLAN device,
    /// the NIC where packets leave without encapsulation.
    pub devices: BTreeSet<String>,
    /// The host ends of the pods' veth pairs.
    pub ports: BTreeSet<String>,
}

/// Whether packets from pod to pod match a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// None matches.
    Never,
    /// Depends on the packet.
    Maybe,
    /// All match.
    Always,
}

/// The effect of a rule on a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None, or counting the packet.
    Nothing,
    /// Accepts the packet, in this chain and in those that lead here.
    Accept,
    /// Back to the chain that leads here.
    Return,
    /// The rules of another chain, then the next rule.
    Jump(String),
    /// The rules of another chain, then back to the chain that leads here.
    Goto(String),
    /// An action that a short cut would bypass, in a word: `drop`, `queue`, `log`, …
    Act(String),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether packets from pod to pod match the rule.
    pub matches: Match,
    /// The rule's effect on them.
    pub effect: Effect,
}

/// A rule that packets from pod to pod may meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The chains that lead there, the last one with the rule.
    pub chains: Vec<String>,
    /// The rule's action.
    pub act: String,
}

/// How a chain ends for packets from pod to pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// By acceptance, for all of them.
    Accepted,
    /// With the next rule of the chain that led here, for some at least.
    FellThrough,
    /// A rule may act on them.
    Hit(Hit),
}

/// A chain that has to be read first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub String);

/// The effect on packets from pod to pod of the chain `base`, on a hook, whose policy is `policy`.
/// Chains for which `is_known` holds are left out.
///
/// # Errors
/// The name of a chain that is not in `chains`.
pub fn judge(
    chains: &BTreeMap<String, Vec<Rule>>,
    base: &str,
    drops_by_policy: bool,
    is_known: impl Fn(&str) -> bool,
) -> Result<Option<Hit>, Missing> {
    let mut walk = Walk {
        chains,
        is_known,
        ends: BTreeMap::new(),
    };
    Ok(match walk.end_of(base, 0)? {
        End::Hit(hit) => Some(hit),
        End::FellThrough if drops_by_policy => Some(Hit {
            chains: vec![base.to_owned()],
            act: "policy drop".to_owned(),
        }),
        End::FellThrough | End::Accepted => None,
    })
}

struct Walk<'a, F> {
    chains: &'a BTreeMap<String, Vec<Rule>>,
    is_known: F,
    /// Of the chains that have been walked: many jumps may lead to one.
    ends: BTreeMap<String, End>,
}

impl<F: Fn(&str) -> bool> Walk<'_, F> {
    fn end_of(&mut self, chain: &str, depth: usize) -> Result<End, Missing> {
        if (self.is_known)(chain) {
            return Ok(End::FellThrough);
        }
        if let Some(end) = self.ends.get(chain) {
            return Ok(end.clone());
        }
        let hit = |act: String| {
            End::Hit(Hit {
                chains: vec![chain.to_owned()],
                act,
            })
        };
        if depth > DEPTH {
            return Ok(hit("more jumps than are followed".to_owned()));
        }
        let chains = self.chains;
        let rules = chains.get(chain).ok_or_else(|| Missing(chain.to_owned()))?;
        let mut end = End::FellThrough;
        for rule in rules.iter().filter(|rule| rule.matches != Match::Never) {
            let (found, goes_on) = match &rule.effect {
                Effect::Nothing => continue,
                Effect::Act(act) => (hit(act.clone()), false),
                Effect::Accept => (End::Accepted, false),
                Effect::Return => (End::FellThrough, false),
                Effect::Jump(to) => (self.end_of(to, depth + 1)?, true),
                Effect::Goto(to) => (self.end_of(to, depth + 1)?, false),
            };
            match found {
                End::Hit(mut hit) => {
                    if hit.chains[0] != chain {
                        hit.chains.insert(0, chain.to_owned());
                    }
                    end = End::Hit(hit);
                    break;
                }
                End::FellThrough if goes_on => {}
                found if rule.matches == Match::Always => {
                    end = found;
                    break;
                }
                // Some packets end here, the others meet the next rule.
                _ => {}
            }
        }
        self.ends.insert(chain.to_owned(), end.clone());
        Ok(end)
    }
}

/// Whether addresses of `network` match `mask` and `value`, which begin `offset` bytes into the
/// address.
#[must_use]
pub fn match_address(network: IpNet, offset: usize, mask: &[u8], value: &[u8]) -> Match {
    let (net, netmask) = match network {
        IpNet::V4(net) => (
            net.network().octets().to_vec(),
            net.netmask().octets().to_vec(),
        ),
        IpNet::V6(net) => (
            net.network().octets().to_vec(),
            net.netmask().octets().to_vec(),
        ),
    };
    let mut found = Match::Always;
    for (i, (mask, value)) in mask.iter().zip(value).enumerate() {
        let (Some(net), Some(netmask)) = (net.get(offset + i), netmask.get(offset + i)) else {
            return Match::Maybe;
        };
        if (net ^ value) & mask & netmask != 0 {
            return Match::Never;
        }
        if mask & !netmask != 0 {
            found = Match::Maybe;
        }
    }
    found
}

/// Whether a device called `name`, or whose name begins so where `is_prefix`, is one by which the
/// IP stack sees packets of pods come and go.
#[must_use]
pub fn match_device(devices: &BTreeSet<String>, name: &str, is_prefix: bool) -> Match {
    let is_it = |device: &String| match is_prefix {
        true => device.starts_with(name),
        false => device == name,
    };
    match devices.iter().any(is_it) {
        // Which one a packet takes depends on where the pods are.
        true => Match::Maybe,
        false => Match::Never,
    }
}

impl std::ops::Not for Match {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Never => Self::Always,
            Self::Maybe => Self::Maybe,
            Self::Always => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Effect::{Accept, Act, Goto, Jump, Nothing, Return};
    use super::Match::{Always, Maybe, Never};
    use super::*;

    type Rules = Vec<(Match, Effect)>;

    fn act(what: &str) -> Effect {
        Act(what.to_owned())
    }

    fn jump(to: &str) -> Effect {
        Jump(to.to_owned())
    }

    fn chains(all: Vec<(&str, Rules)>) -> BTreeMap<String, Vec<Rule>> {
        all.into_iter()
            .map(|(name, rules)| {
                let rules = rules
                    .into_iter()
                    .map(|(matches, effect)| Rule { matches, effect });
                (name.to_owned(), rules.collect())
            })
            .collect()
    }

    fn hit(all: Vec<(&str, Rules)>, drops: bool) -> Option<String> {
        let is_known = |name: &str| name.starts_with("KUBE-");
        let found = judge(&chains(all), "FORWARD", drops, is_known).expect("all chains");
        found.map(|hit| format!("{}: {}", hit.chains.join(" > "), hit.act))
    }

    #[test]
    fn what_may_act_counts_and_what_accepts_or_counts_does_not() {
        let one = |matches, effect| hit(vec![("FORWARD", vec![(matches, effect)])], false);
        assert_eq!(one(Maybe, act("drop")).as_deref(), Some("FORWARD: drop"));
        assert_eq!(one(Always, act("log")).as_deref(), Some("FORWARD: log"));
        for (matches, effect) in [
            (Never, act("drop")),
            (Always, Accept),
            (Maybe, Accept),
            (Always, Return),
            (Maybe, Nothing),
        ] {
            assert_eq!(one(matches, effect), None);
        }
    }

    #[test]
    fn rules_behind_the_acceptance_of_all_are_not_met() {
        let behind = |matches, effect: Effect| {
            let rules = vec![(matches, effect), (Always, act("drop"))];
            let fwd = vec![(Maybe, Accept), (Always, Accept)];
            hit(vec![("FORWARD", rules), ("FLANNEL-FWD", fwd)], true)
        };
        assert_eq!(behind(Always, Accept), None);
        assert_eq!(behind(Always, jump("FLANNEL-FWD")), None);
        assert_eq!(behind(Always, Goto("FLANNEL-FWD".to_owned())), None);
        assert!(behind(Maybe, jump("FLANNEL-FWD")).is_some());
        assert!(behind(Maybe, Accept).is_some());
        assert!(behind(Always, Return).is_some_and(|hit| hit == "FORWARD: policy drop"));
    }

    #[test]
    fn a_policy_counts_unless_all_are_accepted_before() {
        assert_eq!(
            hit(vec![("FORWARD", vec![])], true).as_deref(),
            Some("FORWARD: policy drop")
        );
        assert_eq!(hit(vec![("FORWARD", vec![])], false), None);
        assert_eq!(hit(vec![("FORWARD", vec![(Always, Accept)])], true), None);
    }

    #[test]
    fn jumps_are_followed_once_and_known_chains_are_not() {
        let all = vec![
            (
                "FORWARD",
                vec![(Always, jump("KUBE-FORWARD")), (Maybe, jump("A"))],
            ),
            ("A", vec![(Always, jump("B")), (Always, jump("B"))]),
            ("B", vec![(Always, Return), (Always, act("drop"))]),
        ];
        assert_eq!(hit(all, false), None);
        let all = vec![
            ("FORWARD", vec![(Always, jump("A"))]),
            ("A", vec![(Maybe, Goto("B".to_owned()))]),
            ("B", vec![(Maybe, act("queue"))]),
        ];
        assert_eq!(hit(all, false).as_deref(), Some("FORWARD > A > B: queue"));
        // Chains double with each level: walked once each, this ends.
        let mut names: Vec<String> = (0..30).map(|n| format!("C{n}")).collect();
        names.insert(0, "FORWARD".to_owned());
        let mut doubling: Vec<(&str, Rules)> = names
            .windows(2)
            .map(|pair| (pair[0].as_str(), vec![(Maybe, jump(&pair[1])); 2]))
            .collect();
        doubling.push((names[30].as_str(), vec![]));
        assert_eq!(hit(doubling, false), None);
    }

    #[test]
    fn chains_that_lead_to_themselves_end() {
        let all = vec![
            ("FORWARD", vec![(Maybe, jump("A"))]),
            ("A", vec![(Maybe, jump("A"))]),
        ];
        assert!(hit(all, false).is_some());
    }

    #[test]
    fn a_chain_that_was_not_read_is_asked_for() {
        let all = chains(vec![("FORWARD", vec![(Maybe, jump("A"))])]);
        assert_eq!(
            judge(&all, "FORWARD", false, |_| false),
            Err(Missing("A".to_owned()))
        );
    }

    #[test]
    fn addresses_are_compared_with_the_network() {
        let network = "10.244.0.0/16".parse().expect("a network");
        let all = [0xff; 4];
        for (offset, mask, value, expected) in [
            (0, &all[..], &[10, 244, 1, 2][..], Maybe),
            (0, &[0xff, 0xff, 0, 0], &[10, 244, 0, 0], Always),
            (0, &[0xff, 0, 0, 0], &[10, 0, 0, 0], Always),
            (0, &[0, 0, 0, 0], &[0, 0, 0, 0], Always),
            (0, &all[..1], &[10], Always),
            (0, &all[..3], &[10, 244, 7], Maybe),
            (0, &all[..], &[172, 17, 0, 2], Never),
            (0, &all[..2], &[10, 96], Never),
            (3, &all[..1], &[7], Maybe),
            (3, &all[..2], &[7, 7], Maybe),
        ] {
            assert_eq!(
                match_address(network, offset, mask, value),
                expected,
                "{offset} {mask:?} {value:?}"
            );
        }
    }

    #[test]
    fn devices_of_others_never_match() {
        let devices = ["cni0", "flannel.1"].map(str::to_owned).into();
        assert_eq!(match_device(&devices, "docker0", false), Never);
        assert_eq!(match_device(&devices, "cni0", false), Maybe);
        assert_eq!(match_device(&devices, "cni", false), Never);
        assert_eq!(match_device(&devices, "cni", true), Maybe);
        assert_eq!(match_device(&devices, "", true), Maybe);
    }
}
