//! Whether a server is in a set.

use overlay_common::socket::{
    Affinity, AffinityKey, Frontend, MAX_SERVERS, Server, ServerKey, Service, SocketTables, TCP,
    UDP, is_kept, mapped,
};
use proptest::prelude::*;

use super::{FORMER_SET, PORT_ID, SET, given, world};

/// The largest set there can be, every second address of it, too large for a list.
struct Large;

impl Large {
    fn server(number: u32) -> Server {
        let [a, b, c, d] = number.to_be_bytes();
        Server::new(mapped([a, b, c, d]), 1)
    }
}

impl SocketTables for Large {
    fn service(&self, _: &Frontend) -> Option<Service> {
        Some(Service {
            set: SET,
            servers: MAX_SERVERS,
            affinity_seconds: 0,
            port_id: PORT_ID,
        })
    }
    fn is_opted_out(&self, _: u64) -> bool {
        false
    }
    fn server(&self, key: &ServerKey) -> Option<Server> {
        (key.slot < MAX_SERVERS).then(|| Self::server(2 * key.slot + 1))
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn remember(&self, _: &AffinityKey, _: Affinity) {}
    fn now_ns(&self) -> u64 {
        0
    }
    fn random(&self) -> u32 {
        0
    }
}

#[test]
fn servers_of_the_largest_set_are_found() {
    // Those at the ends are found last.
    let (last, few) = (2 * MAX_SERVERS, 1000);
    let between = (few..last - few).step_by(255);
    for number in (0..few).chain(between).chain(last - few..=last) {
        let is_found = is_kept(&Large, &given(FORMER_SET, Large::server(number)));
        assert_eq!(is_found, number % 2 == 1, "{number}");
    }
}

/// Addresses that often begin or end alike, in bytes that order differently as signed numbers or
/// the other way round.
fn any_server() -> impl Strategy<Value = Server> {
    let byte = || prop::sample::select(vec![0_u8, 1, 128]);
    let address = prop::collection::vec(byte(), 4).prop_map(|rare| {
        let mut address = [0; 16];
        // One byte of each word, so that every word decides at times.
        for (word, byte) in rare.into_iter().enumerate() {
            address[5 * word] = byte;
        }
        address
    });
    let port = prop::sample::select(vec![1_u16, 2, 256, 0x8000]);
    (address, port).prop_map(|(address, port)| Server::new(address, port))
}

proptest! {
    #[test]
    fn a_server_is_found_in_its_set_and_nobody_else(
        servers in prop::collection::btree_set(any_server(), 1..40),
        others in prop::collection::vec(any_server(), 10),
    ) {
        let world = world(servers.iter().copied().collect());
        for server in servers.iter().chain(&others) {
            let is_found = is_kept(&world, &given(FORMER_SET, *server));
            prop_assert_eq!(is_found, servers.contains(server), "{:?}", server);
        }
    }

    #[test]
    fn what_differs_in_one_bit_is_another(
        address in any::<[u8; 16]>(),
        port in any::<u16>(),
        bit in 0..144_u32,
    ) {
        let (mut other, mut other_port) = (address, port);
        match other.get_mut(bit as usize / 8) {
            Some(byte) => *byte ^= 1 << (bit % 8),
            None => other_port ^= 1 << (bit - 128),
        }
        let (one, other_one) = (Server::new(address, port), Server::new(other, other_port));
        prop_assert!(one.is(&one) && !one.is(&other_one));
        let at = |address, port, transport| Frontend { address, port, transport };
        let one = at(address, port, TCP);
        prop_assert!(one.is(&one));
        prop_assert!(!one.is(&at(other, other_port, TCP)) && !one.is(&at(address, port, UDP)));
    }
}
