//! The makers of rules, recognised by the names of tables and chains.

use super::judge::Hit;
use crate::marks::TABLE_PREFIX;

/// Tables of nf_tables that are no policies: kube-proxy's, the container engines' and flannel's.
/// What they drop, translate or mark is for Services, other bridges and forgeries.
const HARMLESS_TABLES: [&str; 5] = [
    "kube-proxy",
    "docker-bridges",
    "netavark",
    "flannel-ipv4",
    "flannel-ipv6",
];

/// Chains that no policy is in, in tables that are shared: kube-proxy's (iptables and IPVS modes)
/// and the kubelet's. By their whole names, since kube-router's begin with `KUBE-` as well. Those
/// of flannel and of the container engines need no list: they accept, or are about other devices
/// and addresses.
const HARMLESS_CHAINS: [&str; 10] = [
    "KUBE-FORWARD",
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-FIREWALL",
];

/// What writes rules, and how its tables or chains begin. Canal's are Calico's.
const ENGINES: [(&str, &str); 12] = [
    ("kube-network-policies", "kube-network-policies"),
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("cali-", "calico"),
    ("calico", "calico"),
    ("CILIUM_", "cilium"),
    ("ANTREA-", "antrea"),
    ("WEAVE-NPC", "weave-npc"),
    ("ufw-", "ufw"),
    ("firewalld", "firewalld"),
    ("DOCKER-USER", "docker-user"),
];

/// The name for an unknown maker.
const OTHER: &str = "other";

/// Whether a table of nf_tables holds no policies.
pub(super) fn is_harmless_table(table: &str) -> bool {
    HARMLESS_TABLES.contains(&table) || table.starts_with(TABLE_PREFIX)
}

/// Whether a chain holds no policies.
pub(super) fn is_harmless_chain(chain: &str) -> bool {
    HARMLESS_CHAINS.contains(&chain)
}

/// The maker of a rule.
pub(super) fn engine(table: &str, hit: &Hit) -> &'static str {
    let names = || std::iter::once(table).chain(hit.chains.iter().map(String::as_str));
    ENGINES
        .iter()
        .find(|(start, _)| names().any(|name| name.starts_with(start)))
        .map_or(OTHER, |(_, engine)| engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_named_by_tables_and_chains() {
        let made_by = |table: &str, chains: &[&str]| {
            let chains = chains.iter().map(ToString::to_string).collect();
            let act = "drop".to_owned();
            engine(table, &Hit { chains, act })
        };
        let filter = |chain| made_by("filter", &["FORWARD", chain]);
        assert_eq!(filter("KUBE-ROUTER-FORWARD"), "kube-router");
        assert_eq!(filter("cali-FORWARD"), "calico");
        assert_eq!(filter("WEAVE-NPC"), "weave-npc");
        assert_eq!(filter("ufw-before-forward"), "ufw");
        assert_eq!(filter("MINE"), "other");
        assert_eq!(made_by("firewalld", &["filter_FORWARD"]), "firewalld");
        assert_eq!(
            made_by("kube-network-policies", &["postrouting"]),
            "kube-network-policies"
        );
    }

    #[test]
    fn kube_routers_chains_are_not_taken_for_kube_proxys() {
        assert!(is_harmless_chain("KUBE-FORWARD"));
        for chain in [
            "KUBE-ROUTER-FORWARD",
            "KUBE-NWPLCY-X",
            "KUBE-POD-FW-X",
            "DOCKER-USER",
        ] {
            assert!(!is_harmless_chain(chain), "{chain}");
        }
    }
}
