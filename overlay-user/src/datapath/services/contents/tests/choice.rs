//! The server that a socket gets, for given maps.

use std::time::Duration;

use overlay_common::socket::{
    MAX_TRANSLATIONS, Translations, Verdict, choose, note, place_for, place_of,
};

use super::*;
use crate::service::SessionAffinity;

/// Every draw from 0 to the last is as good as another.
#[test]
fn every_server_is_as_likely_as_the_others() {
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table([(1, serving(0..7))]));
    let frontend = frontend_of(&frontend(1));
    let mut drawn = BTreeMap::new();
    for draw in 0..7000_u32 {
        maps.random = draw * (u32::MAX / 7000);
        let given = choose(&maps, 1, &frontend, None).expect("a server");
        *drawn.entry(given.server).or_insert(0) += 1;
    }
    assert_eq!(drawn.len(), 7);
    assert!(
        drawn.values().all(|times| (999..=1001).contains(times)),
        "{drawn:?}"
    );
}

#[test]
fn an_unconnected_socket_stays_while_its_server_serves() {
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table([(1, serving([3, 5, 7]))]));
    let frontend = frontend_of(&frontend(1));
    maps.random = u32::MAX;
    let given = choose(&maps, 1, &frontend, None).expect("a server");
    maps.random = 0;
    assert_eq!(choose(&maps, 1, &frontend, Some(&given)), Ok(given));
    become_table(&mut contents, &mut maps, &table([(1, serving(0..40))]));
    let later = choose(&maps, 1, &frontend, Some(&given)).expect("a server");
    assert_eq!(later.server, given.server);
    assert_ne!(later.set, given.set);
    become_table(&mut contents, &mut maps, &table([(1, serving([3, 5]))]));
    assert!(!is_kept(&maps, &later));
    let other = choose(&maps, 1, &frontend, Some(&later)).expect("a server");
    assert_ne!(other.server, given.server);
    become_table(&mut contents, &mut maps, &table([(1, serving([]))]));
    assert_eq!(
        choose(&maps, 1, &frontend, Some(&other)),
        Err(Verdict::NoServers)
    );
    become_table(&mut contents, &mut maps, &table([]));
    assert_eq!(
        choose(&maps, 1, &frontend, Some(&other)),
        Err(Verdict::NotService)
    );
    assert!(!is_kept(&maps, &other));
}

#[test]
fn a_socket_is_told_of_the_service_that_it_asked_last() {
    let given = |last: u8, server: u8| Translation {
        set: 1,
        frontend: frontend_of(&frontend(last)),
        server: Server::new([server; 16], 53),
    };
    let mut table = Translations {
        all: [Translation {
            set: 0,
            ..given(0, 0)
        }; MAX_TRANSLATIONS],
    };
    let mut ask = |given: Translation| {
        let place = place_for(&table, &given.frontend);
        note(&mut table, place, given)?;
        let named = table.all[place_of(&table, &given.server)].frontend;
        assert!(named.is(&given.frontend), "told of {named:?}");
        Ok(place)
    };
    // Two Services with one server, in turn.
    for last in [1, 2, 1, 2] {
        ask(given(last, 1)).expect("room");
    }
    // Services with servers of their own, as many as the table has room for.
    for server in 1..8 {
        ask(given(10 + server, 1 + server)).expect("room");
    }
    assert_eq!(ask(given(20, 20)), Err(Verdict::Full));
    assert!(ask(given(11, 2)).is_ok(), "what is known stays");
}

#[test]
fn who_opts_out_is_left_to_kube_proxy() {
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table([(1, serving([3]))]));
    let frontend = frontend_of(&frontend(1));
    let given = choose(&maps, 1, &frontend, None).expect("a server");
    for former in [None, Some(&given)] {
        let choice = choose(&maps, OPTED_OUT, &frontend, former);
        assert_eq!(choice, Err(Verdict::OptedOut));
    }
}

#[test]
fn a_client_stays_with_its_server_for_the_time_of_its_affinity() {
    let sticky = |servers: &[u8]| {
        Arc::new(Serving {
            affinity: Some(SessionAffinity {
                lasts: Duration::from_secs(10),
                port_id: 80,
            }),
            ..Arc::unwrap_or_clone(serving(servers.iter().copied()))
        })
    };
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table([(1, sticky(&[1, 2, 3]))]));
    let frontend = frontend_of(&frontend(1));
    let second = |seconds: u64| seconds * 1_000_000_000;
    maps.random = u32::MAX;
    let first = choose(&maps, 7, &frontend, None).expect("a server").server;
    maps.random = 0;
    let others = choose(&maps, 8, &frontend, None).expect("a server").server;
    assert_ne!(first, others);
    // Each connection restarts the time.
    for now in [9, 18, 27] {
        maps.now_ns = second(now);
        assert_eq!(
            choose(&maps, 7, &frontend, None).map(|it| it.server),
            Ok(first)
        );
    }
    // A client does not stay with a removed server.
    become_table(&mut contents, &mut maps, &table([(1, sticky(&[1, 2]))]));
    let second_choice = choose(&maps, 7, &frontend, None).expect("a server").server;
    assert_ne!(second_choice, first);
    maps.random = u32::MAX;
    maps.now_ns = second(38);
    let third = choose(&maps, 7, &frontend, None).expect("a server").server;
    assert_ne!(third, second_choice);
}

/// A cluster IP, a node port and an external address of one port of a Service are one to clients;
/// another port is not.
#[test]
fn a_client_stays_with_its_server_at_all_frontends_of_a_port() {
    let sticky = |servers: &[u8], port_id| {
        let lasts = Duration::from_secs(10);
        Arc::new(Serving {
            affinity: Some(SessionAffinity { lasts, port_id }),
            ..Arc::unwrap_or_clone(serving(servers.iter().copied()))
        })
    };
    let all = [
        (1, sticky(&[1, 2, 3], 80)),
        (2, sticky(&[2, 3], 80)),
        (3, sticky(&[1, 2, 3], 81)),
    ];
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table(all));
    let ask = |maps: &Fake<()>, last: u8| {
        let given = choose(maps, 7, &frontend_of(&frontend(last)), None);
        given.expect("a server").server
    };
    maps.random = u32::MAX;
    let first = ask(&maps, 1);
    maps.random = 0;
    assert_eq!(ask(&maps, 2), first);
    assert_ne!(ask(&maps, 3), first, "another port");
    // A frontend that does not have the client's server gives one of its own, which then replaces
    // the former one.
    let pairs = [(1, sticky(&[1, 2, 3], 80)), (2, sticky(&[2], 80))];
    become_table(&mut contents, &mut maps, &table(pairs));
    let narrow = ask(&maps, 2);
    assert_ne!(narrow, first);
    assert_eq!(ask(&maps, 1), narrow);
}

/// The Service's entry no longer exists at the second read, or a place is missing.
#[test]
fn what_changes_meanwhile_is_left_to_kube_proxy() {
    struct Restless(Fake<()>, RefCell<u32>);
    impl SocketTables for Restless {
        fn service(&self, frontend: &socket::Frontend) -> Option<Service> {
            let looks = &mut *self.1.borrow_mut();
            *looks += 1;
            let service = self.0.service(frontend)?;
            (*looks == 1).then_some(service)
        }
        fn is_opted_out(&self, client: u64) -> bool {
            self.0.is_opted_out(client)
        }
        fn server(&self, key: &ServerKey) -> Option<Server> {
            self.0.server(key)
        }
        fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
            self.0.affinity(key)
        }
        fn remember(&self, key: &AffinityKey, affinity: Affinity) {
            self.0.remember(key, affinity);
        }
        fn now_ns(&self) -> u64 {
            0
        }
        fn random(&self) -> u32 {
            0
        }
    }
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    become_table(&mut contents, &mut maps, &table([(1, serving([1]))]));
    let frontend = frontend_of(&frontend(1));
    let restless = Restless(maps, RefCell::new(0));
    assert_eq!(
        choose(&restless, 1, &frontend, None),
        Err(Verdict::Changing)
    );
    let gone = Translation {
        set: u64::MAX,
        frontend,
        server: Server::new([0; 16], 1),
    };
    *restless.1.borrow_mut() = 0;
    assert!(is_kept(&restless, &gone), "told in doubt");
    let mut maps = restless.0;
    maps.servers.clear();
    assert_eq!(choose(&maps, 1, &frontend, None), Err(Verdict::Changing));
}
