//! Summaries of the refused parts of Services.

use std::collections::BTreeMap;

use super::Refusals;

/// Number of objects of which a part is refused, by the first reason of each.
#[must_use]
pub fn by_reason(refusals: &Refusals) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for first in refusals.values().filter_map(|reasons| reasons.first()) {
        *counts.entry(first.name()).or_default() += 1;
    }
    counts
}

/// A note for the operator; `None` where nothing is refused.
#[must_use]
pub fn note(refusals: &Refusals) -> Option<String> {
    let (subject, reasons) = refusals.iter().min_by_key(|(subject, _)| *subject)?;
    let reason = reasons.first()?;
    Some(format!(
        "{} not taken as they are, for instance {subject}: {reason}; \
         kube-proxy serves what is left out",
        refusals.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Kind, ObjectName, Refusal, Role, Subject};

    #[test]
    fn refused_objects_are_counted_once_and_one_is_named() {
        let mut refusals = Refusals::default();
        assert_eq!(note(&refusals), None);
        assert!(by_reason(&refusals).is_empty());
        let loopback = || {
            let address = [127, 0, 0, 1].into();
            Refusal::Special(Role::Cluster, address, "a loopback address")
        };
        for (kind, name, reasons) in [
            (Kind::Slice, "a", vec![Refusal::Port(0)]),
            (Kind::Service, "b", vec![Refusal::Port(0), loopback()]),
            (Kind::Service, "c", vec![Refusal::Port(0), loopback()]),
            (Kind::Service, "a", vec![loopback(), Refusal::Port(0)]),
        ] {
            let name = ObjectName::new("shop", name);
            refusals.insert(Subject { kind, name }, reasons.into());
        }
        let counts = [("not_a_port", 3), ("special_address", 1)];
        assert_eq!(by_reason(&refusals), counts.into());
        let text = "4 not taken as they are, for instance Service shop/a: the cluster IP 127.0.0.1 \
                    is a loopback address; kube-proxy serves what is left out";
        assert_eq!(note(&refusals).as_deref(), Some(text));
    }
}
