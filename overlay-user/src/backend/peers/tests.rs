use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::backend::judge::tests::{here, mac};
use crate::backend::judge::{judge as judge_one, tests::lease as lease_by};
use crate::backend::{Entries, Vxlan, Way};
use crate::per_family::PerFamily;

fn lease(subnet: &str, public_ip: [u8; 4], mac: MacAddr) -> Lease {
    lease_by(&Vxlan::default(), subnet, public_ip, mac)
}

fn update(peers: &mut Peers, leases: &[Lease]) {
    let leases = leases.iter().map(|it| (it.key(), Arc::new(it.clone())));
    peers.update(&Vxlan::default(), &here(), &leases.collect());
}

fn judge(leases: &[Lease]) -> (Vec<Peer>, Vec<RejectReason>) {
    let mut peers = Peers::default();
    update(&mut peers, leases);
    outcome(&peers)
}

fn outcome(peers: &Peers) -> (Vec<Peer>, Vec<RejectReason>) {
    let believed = peers.believed().sorted().into_iter().cloned();
    let rejected = peers.rejected().sorted().into_iter();
    (
        believed.collect(),
        rejected.map(|it| it.reason.clone()).collect(),
    )
}

fn good() -> Lease {
    lease("10.244.2.0/24", [192, 168, 0, 2], mac(2))
}

#[test]
fn good_leases_become_peers() {
    let second = lease("10.244.3.0/24", [192, 168, 0, 2], mac(2));
    let mut old = lease("10.244.4.0/24", [192, 168, 0, 4], mac(4));
    old.attributes.backend_data = Some(PerFamily::V4(json!({ "VtepMAC": mac(4) }).into()));
    let (peers, rejected) = judge(&[second, good(), old]);
    assert_eq!(rejected, []);
    let subnets: Vec<String> = peers.iter().map(|peer| peer.subnet.to_string()).collect();
    assert_eq!(subnets, ["10.244.2.0/24", "10.244.3.0/24", "10.244.4.0/24"]);
    assert_eq!(
        peers[0],
        Peer {
            subnet: "10.244.2.0/24".parse().expect("a subnet"),
            vtep: IpAddr::from([192, 168, 0, 2]),
            way: Way::Vxlan { mac: mac(2) }
        }
    );
}

#[test]
fn a_link_of_two_has_no_broadcast_address() {
    for last in [0, 1] {
        let lease = lease("10.244.9.0/24", [192, 168, 5, last], mac(9));
        assert_eq!(judge(&[lease]).1, []);
    }
}

#[test]
fn hostile_leases_are_rejected_and_cost_no_good_one() {
    let with = |data: Value| {
        let mut lease = lease("10.244.9.0/24", [192, 168, 0, 9], mac(9));
        lease.attributes.backend_data = Some(PerFamily::V4(data.into()));
        lease
    };
    let at = |address| lease("10.244.9.0/24", address, mac(9));
    let of = |subnet| lease(subnet, [192, 168, 0, 9], mac(9));
    let mut untyped = of("10.244.9.0/24");
    untyped.attributes.backend_type = None;
    type Wanted = fn(&RejectReason) -> bool;
    let cases: [(Lease, Wanted); 27] = [
        (of("10.245.9.0/24"), |it| {
            matches!(it, RejectReason::OutsideNetwork(_))
        }),
        (of("0.0.0.0/0"), |it| {
            matches!(it, RejectReason::OutsideNetwork(_))
        }),
        (at([192, 168, 0, 255]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([192, 168, 0, 0]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (of("10.244.9.0/31"), |it| {
            matches!(it, RejectReason::TooSmall(31))
        }),
        (of("10.244.1.0/24"), |it| {
            matches!(it, RejectReason::OverlapsOwn(_))
        }),
        (of("10.244.1.64/26"), |it| {
            matches!(it, RejectReason::OverlapsOwn(_))
        }),
        (of("10.244.0.0/16"), |it| {
            matches!(it, RejectReason::OverlapsOwn(_))
        }),
        (of("10.244.2.0/25"), |it| {
            matches!(it, RejectReason::Overlaps(_))
        }),
        (untyped, |it| matches!(it, RejectReason::BackendType { .. })),
        (at([0, 0, 0, 0]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([0, 1, 2, 3]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([127, 0, 0, 1]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([224, 0, 0, 1]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([240, 0, 0, 1]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([255, 255, 255, 255]), |it| {
            matches!(it, RejectReason::PublicIp(_))
        }),
        (at([10, 244, 3, 3]), |it| {
            matches!(it, RejectReason::PublicIpInside(_))
        }),
        (at([192, 168, 0, 1]), |it| {
            matches!(it, RejectReason::PublicIpOwn(_))
        }),
        (with(Value::Null), |it| {
            matches!(it, RejectReason::BackendData(_))
        }),
        (with(json!("text")), |it| {
            matches!(it, RejectReason::BackendData(_))
        }),
        (with(json!({ "VNI": 1 })), |it| {
            matches!(it, RejectReason::BackendData(_))
        }),
        (with(json!({ "VNI": -1, "VtepMAC": mac(9) })), |it| {
            matches!(it, RejectReason::BackendData(_))
        }),
        (with(json!({ "VNI": 2, "VtepMAC": mac(9) })), |it| {
            matches!(it, RejectReason::Vni { theirs: 2, ours: 1 })
        }),
        (with(json!({ "VtepMAC": MacAddr([0; 6]) })), |it| {
            matches!(it, RejectReason::Mac(_))
        }),
        (
            with(json!({ "VtepMAC": MacAddr([1, 0, 0, 0, 0, 1]) })),
            |it| matches!(it, RejectReason::Mac(_)),
        ),
        (with(json!({ "VtepMAC": mac(1) })), |it| {
            matches!(it, RejectReason::MacTaken { .. })
        }),
        (with(json!({ "VtepMAC": mac(2) })), |it| {
            matches!(it, RejectReason::MacTaken { .. })
        }),
    ];
    for (bad, wanted) in cases {
        let (peers, rejected) = judge(&[good(), bad.clone()]);
        assert_eq!(peers.len(), 1, "{bad:?}");
        assert_eq!(peers[0].mac(), Some(mac(2)), "{bad:?}");
        assert!(
            matches!(&rejected[..], [reason] if wanted(reason)),
            "{bad:?}: {rejected:?}"
        );
    }
}

#[test]
fn who_was_there_first_stays() {
    let intruder = lease("10.244.0.0/20", [192, 168, 0, 66], mac(66));
    let intruder = Lease {
        subnets: "10.244.2.0/23".parse::<IpNet>().expect("a subnet").into(),
        ..intruder
    };
    let mut peers = Peers::default();
    update(&mut peers, &[good()]);
    let (first, _) = outcome(&peers);
    update(&mut peers, &[intruder.clone(), good()]);
    let (kept, rejected) = outcome(&peers);
    assert_eq!(kept, first);
    assert!(matches!(rejected[..], [RejectReason::Overlaps(_)]));
    let (first, _) = judge(&[intruder, good()]);
    assert_eq!(
        first[0].mac(),
        Some(mac(66)),
        "without a past, the order of leases decides"
    );
}

/// The rule once more, without any stored state: peers that were `accepted` come first.
fn rule(here: &Here, leases: &Leases, accepted: &[Peer]) -> (Vec<Peer>, Vec<Rejected>) {
    let (known, new): (Vec<_>, Vec<_>) = leases
        .sorted()
        .into_iter()
        .map(|lease| (lease.key(), judge_one(&Vxlan::default(), here, lease)))
        .partition(|(_, judged)| judged.as_ref().is_ok_and(|peer| accepted.contains(peer)));
    let (mut believed, mut rejected) = (Vec::<Peer>::new(), Vec::new());
    for (key, judged) in known.into_iter().chain(new) {
        let contradiction = |peer: &Peer| {
            let share = |other: &&Peer| {
                other.subnet.contains(&peer.subnet) || peer.subnet.contains(&other.subnet)
            };
            // Of several subnets that lie in a larger one, the next one is named.
            let overlapped = |other: &&Peer| (other.subnet > peer.subnet, other.subnet);
            if let Some(other) = believed.iter().filter(share).min_by_key(overlapped) {
                return Some(RejectReason::Overlaps(other.subnet));
            }
            let twin = |other: &&Peer| other.mac() == peer.mac() && other.vtep != peer.vtep;
            believed
                .iter()
                .find(twin)
                .map(|other| RejectReason::MacTaken {
                    mac: peer.mac().expect("a MAC address"),
                    holder: other.vtep,
                })
        };
        let refused = match &judged {
            Ok(peer) => contradiction(peer),
            Err(reason) => Some(reason.clone()),
        };
        match (judged, refused) {
            (Ok(peer), None) => believed.push(peer),
            (_, refused) => rejected.extend(refused.map(|reason| Rejected {
                subject: key.to_string(),
                reason,
            })),
        }
    }
    believed.sort();
    rejected.sort();
    (believed, rejected)
}

/// Subnets that lie in each other, some of them named by two keys.
const KEYS: [&str; 12] = [
    "10.244.1.0-24",
    "10.244.2.0-23",
    "10.244.2.0-24",
    "10.244.2.0-24&fd00:2::-64",
    "10.244.3.0-24",
    "10.244.3.0-25",
    "10.244.3.128-25",
    "10.244.3.128-25&fd00:3::-64",
    "10.244.4.0-22",
    "10.244.5.0-24",
    "10.244.6.0-24",
    "10.245.7.0-24",
];

fn lease_of(key: usize, node: u8, mac_of: u8) -> (SubnetKey, Arc<Lease>) {
    let key: SubnetKey = KEYS[key].parse().expect("a key");
    let lease = Lease {
        subnets: key.0,
        ..lease(&key.0.first().to_string(), [192, 168, 0, node], mac(mac_of))
    };
    (key, Arc::new(lease))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn step_by_step_it_comes_to_what_the_rule_says(
        steps in prop::collection::vec(
            (
                prop::collection::vec((0..KEYS.len(), prop::option::of((1u8..6, 1u8..6))), 0..6),
                // This node's address may change, and all leases are judged against this address.
                prop_oneof![9 => Just(1u8), 1 => Just(2u8)],
            ),
            1..12,
        ),
    ) {
        let (mut peers, mut leases) = (Peers::default(), Leases::default());
        let mut accepted = Vec::new();
        for (changes, node) in steps {
            for (key, change) in changes {
                match change {
                    Some((node, mac_of)) => {
                        let (key, lease) = lease_of(key, node, mac_of);
                        leases.insert(key, lease);
                    }
                    None => {
                        leases.remove(&KEYS[key].parse::<SubnetKey>().expect("a key"));
                    }
                }
            }
            let here = Here { public_ip: [192, 168, 0, node].into(), ..here() };
            let (expected, rejected) = rule(&here, &leases, &accepted);
            peers.update(&Vxlan::default(), &here, &leases);
            let told = peers.rejected().values().map(|it| Rejected::clone(it));
            let mut told: Vec<_> = told.collect();
            told.sort();
            prop_assert_eq!(&outcome(&peers).0, &expected);
            prop_assert_eq!(told, rejected);
            accepted = expected;
        }
    }
}

/// Counts the leases that the backend is asked about.
#[derive(Debug, Default)]
struct Counting {
    asked: AtomicUsize,
    vxlan: Vxlan,
}

impl Backend for Counting {
    fn name(&self) -> &'static str {
        self.vxlan.name()
    }

    fn has_direct_ways(&self) -> bool {
        self.vxlan.has_direct_ways()
    }

    fn mtu(&self, underlay: u32) -> u32 {
        self.vxlan.mtu(underlay)
    }

    fn data(&self, mac: MacAddr) -> Option<Value> {
        self.vxlan.data(mac)
    }

    fn way(
        &self,
        here: &Here,
        public_ip: IpAddr,
        data: Option<&Value>,
    ) -> Result<Way, RejectReason> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.vxlan.way(here, public_ip, data)
    }

    fn entries(&self, here: &Here, peer: &Peer) -> Entries {
        self.vxlan.entries(here, peer)
    }
}

#[test]
fn one_change_among_ten_thousand_costs_what_it_costs_among_ten() {
    let here = Here {
        network: "10.0.0.0/8".parse().expect("a network"),
        ..here()
    };
    let at = |n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        let subnet = format!("10.{high}.{low}.0/24");
        lease(
            &subnet,
            [172, 16, high, low],
            MacAddr([2, 0, 0, 0, high, low]),
        )
    };
    let mut leases: Leases = (1000..11_000)
        .map(|n| (at(n).key(), Arc::new(at(n))))
        .collect();
    let mut peers = Peers::default();
    let backend = Counting::default();
    let asked = || backend.asked.swap(0, Ordering::Relaxed);
    peers.update(&backend, &here, &leases);
    assert_eq!((peers.believed().len(), asked()), (10_000, 10_000));

    let before = peers.believed().clone();
    let key = at(5000).key();
    let moved = lease(&key.0.to_string(), [172, 17, 0, 1], mac(9));
    leases.insert(key, Arc::new(moved));
    peers.update(&backend, &here, &leases);
    assert_eq!(asked(), 1);
    let changed: Vec<_> = peers.believed().differences(&before).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].now.and_then(Peer::mac), Some(mac(9)));
}
