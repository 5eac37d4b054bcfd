//! Which server a socket gets, from tables of which each test says what is in them.

mod places;
mod sets;

use std::cell::RefCell;
use std::collections::BTreeMap;

use overlay_common::socket::{
    Affinity, AffinityKey, Frontend, Server, ServerKey, Service, SocketTables, TCP, Translation,
    UDP, Verdict, choose, is_kept, mapped,
};

const CLIENT: u64 = 7;
const PORT_ID: u64 = 80;
const SET: u64 = 3;
/// A set that is no Service's any more.
const FORMER_SET: u64 = 2;
const SECOND: u64 = 1_000_000_000;

/// One Service, at [`FRONTEND`].
struct World {
    service: Option<Service>,
    /// What the second look at the Service finds, where that is something else.
    then: Option<Option<Service>>,
    looks: RefCell<u32>,
    servers: Vec<Server>,
    affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    now_ns: u64,
    random: u32,
}

const FRONTEND: Frontend = Frontend {
    address: mapped([10, 96, 0, 1]),
    port: 80,
    transport: TCP,
};

impl SocketTables for World {
    fn service(&self, frontend: &Frontend) -> Option<Service> {
        let looks = &mut *self.looks.borrow_mut();
        *looks += 1;
        let found = match self.then {
            Some(then) if *looks > 1 => then,
            _ => self.service,
        };
        found.filter(|_| *frontend == FRONTEND)
    }
    fn is_opted_out(&self, client: u64) -> bool {
        client != CLIENT
    }
    fn server(&self, key: &ServerKey) -> Option<Server> {
        let is_ours = self.service.is_some_and(|it| it.set == key.set) && key.unused == 0;
        self.servers
            .get(key.slot as usize)
            .copied()
            .filter(|_| is_ours)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }
    fn remember(&self, key: &AffinityKey, affinity: Affinity) {
        self.affinities.borrow_mut().insert(*key, affinity);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn random(&self) -> u32 {
        self.random
    }
}

fn server(last: u8) -> Server {
    Server::new(mapped([10, 244, 1, last]), 8080)
}

/// A Service with these servers, which must be in order.
fn world(servers: Vec<Server>) -> World {
    assert!(servers.is_sorted());
    let service = Service {
        set: SET,
        servers: u32::try_from(servers.len()).expect("few"),
        affinity_seconds: 0,
        port_id: PORT_ID,
    };
    World {
        service: Some(service),
        then: None,
        looks: RefCell::default(),
        servers,
        affinities: RefCell::default(),
        now_ns: 5 * SECOND,
        random: 0,
    }
}

fn sticky(servers: Vec<Server>, affinity_seconds: u32) -> World {
    let mut world = world(servers);
    world.service = world.service.map(|it| Service {
        affinity_seconds,
        ..it
    });
    world
}

fn given(set: u64, server: Server) -> Translation {
    Translation {
        set,
        frontend: FRONTEND,
        server,
    }
}

fn key() -> AffinityKey {
    AffinityKey {
        client: CLIENT,
        port_id: PORT_ID,
    }
}

#[test]
fn addresses_without_a_server_are_left_to_kube_proxy() {
    let mut world = world(vec![server(1)]);
    let other = Frontend {
        transport: UDP,
        ..FRONTEND
    };
    let choice = choose(&world, CLIENT, &other, None);
    assert_eq!(choice, Err(Verdict::NotService));
    let choice = choose(&world, CLIENT + 1, &FRONTEND, None);
    assert_eq!(choice, Err(Verdict::OptedOut));
    let choice = choose(&world, CLIENT, &FRONTEND, None);
    assert_eq!(choice, Ok(given(SET, server(1))));
    world.servers.clear();
    let choice = choose(&world, CLIENT, &FRONTEND, None);
    assert_eq!(choice, Err(Verdict::Changing), "a place that is empty");
    world.service = world.service.map(|it| Service { servers: 0, ..it });
    let choice = choose(&world, CLIENT, &FRONTEND, None);
    assert_eq!(choice, Err(Verdict::NoServers));
}

#[test]
fn a_draw_is_a_share_of_all_draws() {
    let mut world = world((0..7).map(server).collect());
    let draws = 1_u64 << 32;
    for slot in 0..7 {
        // The first and the last draw of its share.
        for draw in [
            (draws * slot).div_ceil(7),
            (draws * (slot + 1)).div_ceil(7) - 1,
        ] {
            world.random = u32::try_from(draw).expect("a draw");
            let choice = choose(&world, CLIENT, &FRONTEND, None);
            assert_eq!(choice, Ok(given(SET, server(slot as u8))), "{draw:#x}");
        }
    }
}

#[test]
fn a_service_that_changes_meanwhile_is_left_to_kube_proxy() {
    let mut world = sticky(vec![server(1)], 10);
    let other = world.service.map(|it| Service { set: SET + 1, ..it });
    for then in [None, other] {
        (world.then, world.looks) = (Some(then), RefCell::default());
        let choice = choose(&world, CLIENT, &FRONTEND, None);
        assert_eq!(choice, Err(Verdict::Changing));
        assert!(world.affinities.borrow().is_empty());
    }
}

#[test]
fn a_socket_stays_with_its_server_while_that_serves() {
    let mut world = world(vec![server(1), server(3), server(5)]);
    for last in [1, 3, 5] {
        let former = given(FORMER_SET, server(last));
        let choice = choose(&world, CLIENT, &FRONTEND, Some(&former));
        assert_eq!(choice, Ok(given(SET, server(last))));
    }
    let former = given(FORMER_SET, server(4));
    let choice = choose(&world, CLIENT, &FRONTEND, Some(&former));
    assert_eq!(choice, Ok(given(SET, server(1))), "drawn anew");
    // In the same set nothing is looked up.
    world.servers.clear();
    let former = given(SET, server(4));
    let choice = choose(&world, CLIENT, &FRONTEND, Some(&former));
    assert_eq!(choice, Ok(former));
}

#[test]
fn affinity_is_remembered_for_its_seconds_and_no_longer() {
    let mut world = sticky(vec![server(1), server(3)], 10);
    world.random = u32::MAX;
    let choice = |world: &World| choose(world, CLIENT, &FRONTEND, None).map(|it| it.server);
    assert_eq!(choice(&world), Ok(server(3)));
    let remembered = |until_ns| Affinity {
        until_ns,
        set: SET,
        server: server(3),
        unused: 0,
    };
    let known = |world: &World| world.affinities.borrow().get(&key()).copied();
    assert_eq!(known(&world), Some(remembered(15 * SECOND)));
    world.random = 0;
    world.now_ns = 15 * SECOND - 1;
    assert_eq!(choice(&world), Ok(server(3)), "a nanosecond is left");
    assert_eq!(known(&world), Some(remembered(25 * SECOND - 1)));
    world.now_ns = 25 * SECOND - 1;
    assert_eq!(choice(&world), Ok(server(1)), "over");

    // A server of an earlier set, which is in this one, or is not.
    for (last, wanted) in [(3, 3), (4, 1)] {
        let of_before = Affinity {
            set: FORMER_SET,
            server: server(last),
            ..remembered(u64::MAX)
        };
        world.affinities.borrow_mut().insert(key(), of_before);
        assert_eq!(choice(&world), Ok(server(wanted)));
    }

    let plain = sticky(vec![server(1), server(3)], 0);
    plain
        .affinities
        .borrow_mut()
        .insert(key(), remembered(u64::MAX));
    assert_eq!(choice(&plain), Ok(server(1)), "a Service without affinity");
    assert_eq!(known(&plain), Some(remembered(u64::MAX)));
}

#[test]
fn a_server_is_lost_only_without_doubt() {
    let mut world = world(vec![server(1), server(3)]);
    let is_kept = |world: &World, set, last| {
        world.looks.replace(0);
        is_kept(world, &given(set, server(last)))
    };
    assert!(is_kept(&world, SET, 1) && is_kept(&world, FORMER_SET, 3));
    assert!(!is_kept(&world, FORMER_SET, 2));
    let service = world.service;
    world.then = Some(service.map(|it| Service { set: SET + 1, ..it }));
    assert!(is_kept(&world, FORMER_SET, 2), "a set that was replaced");
    world.then = Some(None);
    assert!(is_kept(&world, FORMER_SET, 2), "a Service that was removed");
    (world.service, world.then) = (None, None);
    assert!(!is_kept(&world, SET, 1), "a Service that is gone");
    world.then = Some(service);
    assert!(is_kept(&world, SET, 1), "a Service that came");
}
