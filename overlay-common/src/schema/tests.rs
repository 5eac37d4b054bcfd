use super::*;

/// The flags are stored in maps that an agent of another build may have filled.
#[test]
fn flags_are_frozen() {
    let config = [
        CONFIG_ACTIVE,
        CONFIG_PEERS_COMPLETE,
        CONFIG_SHARED_PORT,
        CONFIG_AGGREGATES_TO_KERNEL,
        CONFIG_VTEPS_INCOMPLETE,
        CONFIG_DIRECT,
        CONFIG_EVENTS,
        CONFIG_ENCAPSULATE_FOR_STACK,
    ];
    assert_eq!(config, [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80]);
    assert_eq!(POD_KERNEL_PATH, 0x01);
    assert_eq!((PEER_NEXT_HOP, PEER_DIRECT), (0x01, 0x02));
}

#[test]
fn an_endpoint_has_the_addresses_that_it_is_given_and_no_other() {
    let address = |last| [10, 244, 1, last];
    let all: [_; ENDPOINT_ADDRESSES] = core::array::from_fn(|at| address(at as u8 + 2));
    for count in 1..=ENDPOINT_ADDRESSES {
        let endpoint = Endpoint::<V4> {
            addresses: Endpoint::<V4>::places(&all[..count]).expect("room"),
            ..Endpoint::zeroed()
        };
        for (at, address) in all.into_iter().enumerate() {
            assert_eq!(endpoint.has(address), at < count, "{at} of {count}");
        }
        assert!(!endpoint.has([0; 4]));
    }
    assert_eq!(Endpoint::<V4>::places(&[]), None);
    assert_eq!(
        Endpoint::<V4>::places(&[address(2); ENDPOINT_ADDRESSES + 1]),
        None
    );
}

#[test]
fn both_directions_of_a_flow_share_a_key() {
    let a = ([10, 244, 1, 2], 40000);
    let b = ([10, 244, 1, 3], 80);
    assert_eq!(FlowKey::<V4>::new(a, b, 6), FlowKey::new(b, a, 6));
    assert_ne!(FlowKey::<V4>::new(a, b, 6), FlowKey::new(a, b, 17));
    let hairpin = (a.0, 80);
    assert_eq!(
        FlowKey::<V4>::new(a, hairpin, 6),
        FlowKey::new(hairpin, a, 6)
    );
}
