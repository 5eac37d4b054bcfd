//! Tests of the guard's rules and elements.

use super::*;

const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(in super::super) fn state() -> GuardState {
    let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
    GuardState {
        network: net("10.244.0.0/16"),
        own_subnet: net("10.244.1.0/24"),
        own_vtep: Ipv4Addr::new(192, 0, 2, 1),
        underlay: 2,
        vxlan: Some("flannel.1".into()),
        nic: None,
        bridge: "cni0".into(),
        port: 8472,
        vni: 1,
        other_vnis: BTreeSet::new(),
        peers: [(PEER, [net("10.244.2.0/24")].into())]
            .into_iter()
            .collect(),
        pods: BTreeSet::from([("pod".to_owned(), Ipv4Addr::new(10, 244, 1, 5))]),
        judged: None,
        has_untracked: false,
        translates: false,
        lapse: Duration::from_secs(600),
    }
}

#[test]
fn a_peer_that_comes_touches_its_own_elements_only() {
    let old = state();
    let mut new = old.clone();
    let vtep = Ipv4Addr::new(192, 0, 2, 3);
    let subnet: Ipv4Net = "10.244.3.0/24".parse().expect("a network");
    new.peers.insert(vtep, [subnet].into());
    assert_eq!(old.shape(), new.shape());
    let delta = Delta::between(&old.contents(), &new.contents());
    let address = BTreeSet::from([Element::Address(vtep)]);
    let source = BTreeSet::from([Element::Source(vtep, subnet.network())]);
    let expected = Elements::from([
        (Set::Vteps, address.clone()),
        (Set::Nodes, address),
        (Set::Sources(24), source),
    ]);
    assert_eq!((delta.len(), &delta.added), (3, &expected));
    assert_eq!(delta.removed, Elements::new());
    let back = Delta::between(&new.contents(), &old.contents());
    assert_eq!(back.removed, expected);
}

#[test]
fn a_second_subnet_of_a_peer_leaves_its_address_alone() {
    let old = state();
    let mut new = old.clone();
    let subnets = ["10.244.2.0/24", "10.244.9.0/24"];
    let subnets = subnets.map(|subnet| subnet.parse().expect("a network"));
    new.peers.insert(PEER, subnets.into());
    let delta = Delta::between(&old.contents(), &new.contents());
    assert_eq!(delta.added.keys().collect::<Vec<_>>(), [&Set::Sources(24)]);
}

#[test]
fn a_pod_that_comes_does_not_touch_the_peers() {
    let old = state();
    let mut new = old.clone();
    new.pods
        .insert(("two".into(), Ipv4Addr::new(10, 244, 1, 6)));
    let delta = Delta::between(&old.contents(), &new.contents());
    assert!(
        delta
            .added
            .keys()
            .all(|set| set.family() == TableFamily::Bridge)
    );
    assert_eq!((delta.len(), old.shape() == new.shape()), (2, true));
}

#[test]
fn a_pod_that_a_program_judges_is_not_for_the_bridge() {
    let mut state = state();
    assert!(state.shape().has_ports);
    state.judged = Some(["pod".into()].into());
    assert!(!state.shape().has_ports);
    assert!(!state.contents().pods.contains_key(&Set::Ports));
}

#[test]
fn names_that_would_end_the_string_are_told_apart() {
    let mut state = state();
    for name in ["", "a\"b", "veth*", "a b", "sixteen-letters!"] {
        assert!(!is_plain(name), "{name:?}");
        state
            .pods
            .insert((name.to_owned(), Ipv4Addr::new(10, 244, 1, 7)));
    }
    assert!(is_plain("veth1a2b"));
    assert_eq!(state.unnameable().count(), 5);
    assert_eq!(state.contents().pods[&Set::Ports].len(), 1);
}

#[test]
fn keys_are_what_the_kernel_compares() {
    let vtep = Ipv4Addr::new(192, 0, 2, 2);
    let source = Element::Source(vtep, Ipv4Addr::new(10, 244, 2, 0));
    assert_eq!(source.key(), [192, 0, 2, 2, 10, 244, 2, 0]);
    assert_eq!(source.to_string(), "192.0.2.2 . 0x0af40200");
    let pod = Element::Pod("veth".into(), vtep);
    assert_eq!(pod.key().len(), 20);
    assert_eq!(Element::Service(8472).key(), 8472_u16.to_be_bytes());
}
