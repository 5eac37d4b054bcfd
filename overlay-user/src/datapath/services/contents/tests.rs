use std::cell::RefCell;
use std::convert::Infallible;

use overlay_common::socket::{
    Affinity, AffinityKey, Server, ServerKey, Service, SocketTables, Translation, is_kept,
};
use proptest::prelude::*;

use super::*;

mod choice;

/// A client that kube-proxy serves.
const OPTED_OUT: u64 = 99;

/// Maps with room for a limited number of servers, which are checked after every step.
struct Fake<F> {
    services: BTreeMap<socket::Frontend, Service>,
    servers: BTreeMap<ServerKey, Server>,
    affinity: RefCell<BTreeMap<AffinityKey, Affinity>>,
    random: u32,
    now_ns: u64,
    room: usize,
    look: F,
}

fn fake(room: usize) -> Fake<()> {
    looked_at(room, ())
}

fn looked_at<F>(room: usize, look: F) -> Fake<F> {
    Fake {
        services: BTreeMap::new(),
        servers: BTreeMap::new(),
        affinity: RefCell::default(),
        random: 0,
        now_ns: 0,
        room,
        look,
    }
}

impl<F> SocketTables for Fake<F> {
    fn service(&self, frontend: &socket::Frontend) -> Option<Service> {
        self.services.get(frontend).copied()
    }
    fn is_opted_out(&self, client: u64) -> bool {
        client == OPTED_OUT
    }
    fn server(&self, key: &ServerKey) -> Option<Server> {
        self.servers.get(key).copied()
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn remember(&self, key: &AffinityKey, affinity: Affinity) {
        self.affinity.borrow_mut().insert(*key, affinity);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn random(&self) -> u32 {
        self.random
    }
}

trait Watch: Sized {
    fn watch(fake: &Fake<Self>);
}

impl Watch for () {
    fn watch(_: &Fake<Self>) {}
}

/// The sets of servers that a frontend may have at the moment.
struct Allowed(BTreeMap<socket::Frontend, Vec<Vec<Server>>>);

impl Watch for Allowed {
    /// Whichever number a socket draws, the socket gets a server of one of these sets; over all
    /// numbers, every server is drawn.
    fn watch(fake: &Fake<Self>) {
        for (frontend, service) in &fake.services {
            let set: Vec<_> = (0..service.servers)
                .map(|slot| fake.servers[&server_key(service.set, slot)])
                .collect();
            let allowed = fake.look.0.get(frontend);
            assert!(
                allowed.is_some_and(|allowed| allowed.contains(&set)),
                "{set:?} is neither what was nor what will be"
            );
            for server in set {
                let translation = Translation {
                    set: u64::MAX,
                    frontend: *frontend,
                    server,
                };
                assert!(is_kept(fake, &translation), "{server:?} is not found");
            }
        }
    }
}

impl<F: Watch> Writer for Fake<F> {
    type Error = Infallible;
    fn put_server(&mut self, key: ServerKey, server: Server) -> Result<(), Failure<Infallible>> {
        if self.servers.len() >= self.room {
            return Err(Failure::Full);
        }
        assert_eq!(self.servers.insert(key, server), None, "written twice");
        F::watch(self);
        Ok(())
    }
    fn remove_server(&mut self, key: ServerKey) -> Result<(), Infallible> {
        assert!(self.servers.remove(&key).is_some(), "not there");
        F::watch(self);
        Ok(())
    }
    fn put_service(
        &mut self,
        frontend: socket::Frontend,
        service: Service,
    ) -> Result<(), Failure<Infallible>> {
        self.services.insert(frontend, service);
        F::watch(self);
        Ok(())
    }
    fn remove_service(&mut self, frontend: socket::Frontend) -> Result<(), Infallible> {
        self.services.remove(&frontend);
        F::watch(self);
        Ok(())
    }
}

fn frontend(last: u8) -> Frontend {
    Frontend {
        address: [10, 96, 0, last].into(),
        port: 53,
        transport: ServiceTransport::Udp,
    }
}

fn serving(servers: impl IntoIterator<Item = u8>) -> Arc<Serving> {
    let servers = servers.into_iter();
    Arc::new(Serving {
        servers: servers
            .map(|last| SocketAddr::from(([10, 244, 1, last], 53)))
            .collect(),
        affinity: None,
    })
}

fn table(entries: impl IntoIterator<Item = (u8, Arc<Serving>)>) -> ServiceTable {
    let entries = entries.into_iter();
    entries.map(|(last, it)| (frontend(last), it)).collect()
}

fn become_table<F: Watch>(
    contents: &mut Contents,
    maps: &mut Fake<F>,
    table: &ServiceTable,
) -> Changed {
    contents
        .become_table(table, maps)
        .unwrap_or_else(|never| match never {})
}

proptest! {
    /// After every single step a socket gets a server of the old table or of the new one; at the
    /// end only the entries of the new table are left.
    #[test]
    fn nobody_meets_half_of_a_change(
        tables in prop::collection::vec(
            prop::collection::btree_map(0u8..4, prop::collection::btree_set(1u8..40, 0..12), 0..4),
            1..6,
        ),
    ) {
        let mut contents = Contents::empty(1);
        let mut maps = looked_at(usize::MAX, Allowed(BTreeMap::new()));
        for servers in tables {
            let served = servers.iter();
            let served = served.map(|(last, it)| (*last, serving(it.iter().copied())));
            let wanted = table(served);
            for (frontend, serving) in wanted.iter() {
                let servers = serving.servers.iter().map(server_of).collect();
                maps.look.0.entry(frontend_of(frontend)).or_default().push(servers);
            }
            become_table(&mut contents, &mut maps, &wanted);
            prop_assert_eq!(maps.services.len(), wanted.len());
            let all: usize = wanted.values().map(|serving| serving.servers.len()).sum();
            prop_assert_eq!(maps.servers.len(), all);
            prop_assert_eq!(contents.counts(), (wanted.len(), all, 0));
            for sets in maps.look.0.values_mut() {
                sets.drain(..sets.len() - 1);
            }
        }
    }
}

#[test]
fn what_finds_no_room_is_left_out_until_there_is_some() {
    let mut contents = Contents::empty(1);
    let mut maps = fake(5);
    become_table(&mut contents, &mut maps, &table([(1, serving(1..5))]));
    become_table(
        &mut contents,
        &mut maps,
        &table([(1, serving(1..5)), (2, serving(1..4))]),
    );
    assert_eq!(contents.counts(), (1, 4, 1));
    // A change needs room for the old and the new set; without that room the Service is left to
    // kube-proxy.
    become_table(
        &mut contents,
        &mut maps,
        &table([(1, serving(2..6)), (2, serving(1..4))]),
    );
    assert_eq!(maps.services.len(), contents.counts().0);
    let changed = become_table(&mut contents, &mut maps, &table([(2, serving(1..4))]));
    assert_eq!(changed.frontends, 1);
    assert_eq!(contents.counts(), (1, 3, 0));
    assert_eq!(maps.servers.len(), 3);
}

#[test]
fn a_server_that_leaves_datagrams_is_told_of() {
    let mut contents = Contents::empty(1);
    let mut maps = fake(100);
    let mut left = |table| become_table(&mut contents, &mut maps, &table).datagram_server_left;
    assert!(!left(table([(1, serving([1, 2]))])));
    assert!(!left(table([(1, serving([1, 2, 3]))])));
    assert!(left(table([(1, serving([1, 3]))])));
    assert!(!left(table([(1, serving([1, 3])), (2, serving([]))])));
    assert!(left(table([(2, serving([]))])));
}
