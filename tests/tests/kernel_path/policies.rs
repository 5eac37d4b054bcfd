//! The packet-filter rules that count as foreign policies, with the rules in a real kernel.

use std::path::Path;
use std::time::Duration;

use overlay_user::kernel::policies::{Policies, Scope};
use overlay_user::kernel::rules::{Driver, RuleSet};

use super::namespace::{in_namespace, run};

fn scope() -> Scope {
    Scope {
        network: "10.244.0.0/16".parse().expect("a network"),
        devices: ["cni0", "flannel.1"].map(str::to_owned).into(),
        ports: ["veth1".to_owned()].into(),
    }
}

/// The policies that are found after these command lines, each run in an empty packet filter.
async fn found(setup: &str) -> Vec<String> {
    run("nft flush ruleset");
    if has_legacy() {
        for table in ["filter", "mangle", "raw"] {
            run(&format!(
                "iptables-legacy -t {table} -F; iptables-legacy -t {table} -X"
            ));
        }
        run("iptables-legacy -P FORWARD ACCEPT");
    }
    for line in setup.lines().map(str::trim).filter(|line| !line.is_empty()) {
        run(line);
    }
    let found = Policies::default().find(&scope()).await;
    assert_eq!(found.unread, None, "{setup}");
    found.policies.iter().map(ToString::to_string).collect()
}

/// Whether this kernel has iptables-legacy.
pub(super) fn has_legacy() -> bool {
    Path::new("/proc/net/ip_tables_names").exists()
}

/// Commands, and the policies that are found afterwards.
type Case = (&'static str, &'static [&'static str]);

fn check(cases: &'static [Case]) {
    in_namespace(move || async move {
        for (setup, expected) in cases {
            assert_eq!(found(setup).await, *expected, "{setup}");
        }
    });
}

const FORWARD: &str =
    "nft 'table inet t { chain c { type filter hook forward priority 0; RULE; }; }'";

/// Single rules in a chain at `forward`, each with the effect that is found.
fn check_rules(cases: &'static [(&'static str, Option<&'static str>)]) {
    in_namespace(move || async move {
        for (rule, act) in cases {
            let expected: Vec<_> = act
                .iter()
                .map(|act| format!("other: {act} in inet t c"))
                .collect();
            let setup = FORWARD.replace("RULE", rule);
            assert_eq!(found(&setup).await, expected, "{rule}");
        }
    });
}

#[test]
fn nft_rules_that_may_act_on_pods_packets_count() {
    check_rules(&[
        ("drop", Some("drop")),
        ("counter drop", Some("drop")),
        ("reject", Some("reject")),
        ("log accept", Some("log")),
        ("meta mark set 1", Some("meta set")),
        ("ct mark set 1", Some("ct set")),
        ("ip dscp set 1", Some("payload set")),
        ("ct state invalid drop", Some("drop")),
        ("tcp dport 80 drop", Some("drop")),
        ("ip saddr 10.244.1.2 drop", Some("drop")),
        ("ip saddr 10.240.0.0/12 drop", Some("drop")),
        ("ip daddr != 10.244.1.0/24 drop", Some("drop")),
        ("ip daddr { 10.244.1.2, 10.244.1.7 } drop", Some("drop")),
        ("ip saddr 10.244.1.2-10.244.1.9 drop", Some("drop")),
        ("iifname \"cni0\" drop", Some("drop")),
        ("oifname \"flannel*\" drop", Some("drop")),
        ("iifname != \"cni0\" drop", Some("drop")),
        (
            "iifname vmap { \"cni0\" : drop }",
            Some("a map of verdicts"),
        ),
        ("meta nfproto ipv4 drop", Some("drop")),
        ("limit rate over 10/second drop", Some("drop")),
        ("iifname \"cni0\" accept; drop", Some("drop")),
        ("policy drop; tcp dport 80 accept", Some("policy drop")),
    ]);
}

#[test]
fn nft_rules_for_others_packets_or_without_effect_do_not_count() {
    check_rules(&[
        ("accept", None),
        ("counter", None),
        ("ct state established accept", None),
        ("ip saddr 172.17.0.0/16 drop", None),
        ("ip daddr 10.96.0.0/12 reject", None),
        ("ip saddr 192.0.2.1 drop", None),
        ("ip daddr != 10.0.0.0/8 drop", None),
        ("iifname \"docker0\" drop", None),
        ("oifname \"br-*\" drop", None),
        ("meta nfproto ipv6 drop", None),
        ("ip6 saddr fd00::1 drop", None),
        ("meta nftrace set 1", None),
        ("ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8 accept; drop", None),
        ("policy drop; ip saddr 10.244.0.0/16 counter accept", None),
    ]);
}

#[test]
fn every_hook_that_pods_packets_come_by_counts_and_no_other() {
    const IP: [&str; 3] = ["prerouting", "forward", "postrouting"];
    in_namespace(|| async {
        run("ip link add veth1 type veth peer name veth2");
        let count = async |family: &str, hook: &str, kind: &str| {
            let chain = format!("type {kind} hook {hook} priority 0;");
            let setup =
                format!("nft 'table {family} t {{ chain c {{ {chain} counter drop; }}; }}'");
            found(&setup).await.len()
        };
        for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
            let expected = usize::from(IP.contains(&hook));
            for family in ["ip", "inet"] {
                assert_eq!(
                    count(family, hook, "filter").await,
                    expected,
                    "{family} {hook}"
                );
            }
            assert_eq!(count("ip6", hook, "filter").await, 0, "{hook}");
            assert_eq!(count("bridge", hook, "filter").await, 1, "{hook}");
        }
        assert_eq!(count("ip", "prerouting", "nat").await, 0);
        for (device, expected) in [("veth1", 1), ("veth2", 0)] {
            let hook = format!("ingress device {device}");
            assert_eq!(count("netdev", &hook, "filter").await, expected, "{device}");
            assert_eq!(count("inet", &hook, "filter").await, expected, "{device}");
        }
    });
}

#[test]
fn bridges_frames_of_other_protocols_do_not_count() {
    check(&[
        (
            "nft 'table bridge t { chain c { type filter hook forward priority 0; ip saddr \
            10.244.1.2 drop; }; }'",
            &["other: drop in bridge t c"],
        ),
        (
            "nft 'table bridge t { chain c { type filter hook forward priority 0; meta protocol \
            arp drop; }; }'",
            &[],
        ),
        (
            "nft 'table bridge t { chain c { type filter hook forward priority 0; ip saddr \
            172.17.0.2 drop; }; }'",
            &[],
        ),
    ]);
}

/// For iptables by nf_tables; where iptables-legacy exists, it runs in its place.
const IPTABLES: &[Case] = &[
    (
        "iptables-nft -A FORWARD -s 10.244.1.2 -d 10.244.2.2 -j DROP",
        &["other: drop in ip filter FORWARD"],
    ),
    (
        "iptables-nft -A FORWARD -i cni+ -j DROP",
        &["other: drop in ip filter FORWARD"],
    ),
    (
        "iptables-nft -A FORWARD ! -i docker0 -o cni0 -j REJECT",
        &["other: REJECT in ip filter FORWARD"],
    ),
    (
        "iptables-nft -A FORWARD -m comment --comment why -p tcp --dport 80 -j NFQUEUE \
        --queue-num 5",
        &["other: NFQUEUE in ip filter FORWARD"],
    ),
    (
        "iptables-nft -t raw -A PREROUTING -p udp -j DROP",
        &["other: drop in ip raw PREROUTING"],
    ),
    (
        "iptables-nft -t mangle -A POSTROUTING -p tcp --tcp-flags SYN,RST SYN -j TCPMSS \
        --clamp-mss-to-pmtu",
        &["other: TCPMSS in ip mangle POSTROUTING"],
    ),
    (
        "iptables-nft -P FORWARD DROP",
        &["other: policy drop in ip filter FORWARD"],
    ),
    (
        "iptables-nft -N MINE
         iptables-nft -A MINE -s 10.244.1.2 -j RETURN
         iptables-nft -A MINE -j DROP
         iptables-nft -A FORWARD -g MINE",
        &["other: drop in ip filter FORWARD > MINE"],
    ),
    (
        "iptables-nft -N DOCKER-USER
         iptables-nft -A DOCKER-USER -s 10.244.1.2 -j DROP
         iptables-nft -A FORWARD -j DOCKER-USER",
        &["docker-user: drop in ip filter FORWARD > DOCKER-USER"],
    ),
    (
        "iptables-nft -N KUBE-ROUTER-FORWARD
         iptables-nft -N KUBE-POD-FW-ABC
         iptables-nft -A KUBE-POD-FW-ABC -m mark ! --mark 0x10000/0x10000 -j REJECT
         iptables-nft -A KUBE-ROUTER-FORWARD -d 10.244.1.2/32 -m comment --comment \"rule to \
         jump\" -j KUBE-POD-FW-ABC
         iptables-nft -A FORWARD -m comment --comment \"kube-router netpol\" -j \
         KUBE-ROUTER-FORWARD",
        &["kube-router: REJECT in ip filter FORWARD > KUBE-ROUTER-FORWARD > KUBE-POD-FW-ABC"],
    ),
    (
        "iptables-nft -N cali-FORWARD
         iptables-nft -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
         iptables-nft -A FORWARD -j cali-FORWARD",
        &["calico: MARK in ip filter FORWARD > cali-FORWARD"],
    ),
    // These rules come behind one that accepts all of the pods' packets.
    (
        "iptables-nft -P FORWARD DROP
         iptables-nft -N FLANNEL-FWD
         iptables-nft -A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j \
         ACCEPT
         iptables-nft -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
         iptables-nft -A FORWARD -j DROP",
        &[],
    ),
    // Rules of kube-proxy and of the kubelet.
    (
        "iptables-nft -N KUBE-FORWARD
         iptables-nft -N KUBE-SERVICES
         iptables-nft -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
         iptables-nft -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -j REJECT
         iptables-nft -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
         iptables-nft -A FORWARD -j KUBE-FORWARD",
        &[],
    ),
    // Rules of Docker before version 28.
    (
        "iptables-nft -N DOCKER
         iptables-nft -N DOCKER-USER
         iptables-nft -N DOCKER-ISOLATION-STAGE-1
         iptables-nft -N DOCKER-ISOLATION-STAGE-2
         iptables-nft -A DOCKER-USER -j RETURN
         iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j \
         DOCKER-ISOLATION-STAGE-2
         iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
         iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN
         iptables-nft -A FORWARD -j DOCKER-USER
         iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
         iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         iptables-nft -A FORWARD -o docker0 -j DOCKER
         iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
         iptables-nft -A FORWARD -i docker0 -o docker0 -j DROP",
        &[],
    ),
    // Rules of Docker from version 28 on, which protects containers' addresses from other hosts.
    (
        "iptables-nft -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
         iptables-nft -N DOCKER
         iptables-nft -N DOCKER-FORWARD
         iptables-nft -A DOCKER ! -i docker0 -o docker0 -j DROP
         iptables-nft -A DOCKER-FORWARD -j DOCKER
         iptables-nft -A DOCKER-FORWARD -i docker0 -j ACCEPT
         iptables-nft -A FORWARD -j DOCKER-FORWARD",
        &[],
    ),
    // Rules of Podman, and of the CNI plugins `firewall` and `portmap`.
    (
        "iptables-nft -N NETAVARK_FORWARD
         iptables-nft -N CNI-FORWARD
         iptables-nft -N CNI-ADMIN
         iptables-nft -t nat -N CNI-HOSTPORT-DNAT
         iptables-nft -A NETAVARK_FORWARD -d 10.88.0.0/16 -m conntrack --ctstate \
         RELATED,ESTABLISHED -j ACCEPT
         iptables-nft -A CNI-FORWARD -j CNI-ADMIN
         iptables-nft -A CNI-FORWARD -s 10.244.1.2/32 -j ACCEPT
         iptables-nft -t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 80 -j DNAT --to-destination \
         10.244.1.2:80
         iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
         iptables-nft -A FORWARD -j NETAVARK_FORWARD
         iptables-nft -A FORWARD -j CNI-FORWARD",
        &[],
    ),
];

#[test]
fn rules_of_iptables_count_unless_they_are_the_clusters_or_the_engines_own() {
    check(IPTABLES);
}

#[test]
fn rules_of_iptables_legacy_are_judged_alike() {
    if !has_legacy() {
        eprintln!("skipped: this kernel has no iptables-legacy");
        return;
    }
    in_namespace(|| async {
        for (setup, expected) in IPTABLES {
            let setup = setup.replace("iptables-nft", "iptables-legacy");
            let expected: Vec<_> = expected
                .iter()
                .map(|policy| policy.replace(" in ip ", " in iptables-legacy "))
                .collect();
            assert_eq!(found(&setup).await, expected, "{setup}");
        }
    });
}

#[test]
fn whole_tables_are_known_by_their_names() {
    check(&[
        (
            "nft 'table ip kube-proxy { chain c { type filter hook forward priority 0; ct state \
            invalid drop; }; }'",
            &[],
        ),
        (
            "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority \
            10; reject; }; }'",
            &["firewalld: reject in inet firewalld filter_FORWARD"],
        ),
        (
            "nft 'table inet kube-network-policies { chain postrouting { type filter hook \
            postrouting priority 95; drop; }; }'",
            &["kube-network-policies: drop in inet kube-network-policies postrouting"],
        ),
    ]);
}

/// flannel's own rules accept the pods' packets before the policy applies.
#[test]
fn our_own_rules_do_not_count() {
    in_namespace(|| async {
        let rules = RuleSet {
            network: scope().network,
            subnet: "10.244.1.0/24".parse().expect("a network"),
            masquerade: true,
            forward: true,
            random_fully: true,
        };
        run("iptables -P FORWARD DROP");
        for driver in [Driver::Iptables, Driver::Nftables] {
            driver.ensure(&rules).await.expect("ensure");
        }
        let found = Policies::default().find(&scope()).await;
        assert_eq!(found.reason(), None);
    });
}

/// Additions and removals are noticed after an earlier look.
#[test]
fn rules_are_followed_as_they_come_and_go() {
    in_namespace(|| async {
        let mut policies = Policies::default();
        let mut is_found = async |wanted: bool| {
            // A look that read much is followed by a pause of some milliseconds.
            for _ in 0..1000 {
                if policies.find(&scope()).await.reason().is_some() == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("the rules are not {wanted}");
        };
        is_found(false).await;
        for iptables in ["iptables-nft", "iptables-legacy"] {
            if iptables == "iptables-legacy" && !has_legacy() {
                continue;
            }
            run(&format!("{iptables} -A FORWARD -j DROP"));
            is_found(true).await;
            run(&format!("{iptables} -D FORWARD -j DROP"));
            is_found(false).await;
        }
    });
}
