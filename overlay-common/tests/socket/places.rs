//! What a socket remembers of the Services that it was given servers of.

use overlay_common::socket::{
    Frontend, MAX_TRANSLATIONS, Server, Translation, Translations, Verdict, note, place_for,
    place_of,
};

use super::{FRONTEND, SET, given, server};

const NOTHING: Translation = Translation {
    set: 0,
    frontend: FRONTEND,
    server: Server::new([0; 16], 0),
};

fn asked(port: u16, last: u8) -> Translation {
    Translation {
        frontend: Frontend { port, ..FRONTEND },
        ..given(SET, server(last))
    }
}

#[test]
fn a_socket_has_room_for_some_services_and_is_told_the_last_one() {
    let mut table = Translations {
        all: [NOTHING; MAX_TRANSLATIONS],
    };
    // What is not in use stands for nothing, whatever is left in it.
    assert_eq!(place_of(&table, &NOTHING.server), MAX_TRANSLATIONS);
    let rooms = u16::try_from(MAX_TRANSLATIONS).expect("few");
    let mut places = Vec::new();
    for port in 1..=rooms {
        let given = asked(port, port as u8);
        let place = place_for(&table, &given.frontend);
        note(&mut table, place, given).expect("room");
        assert_eq!(table.all[place], given);
        places.push(place);
    }
    let mut all = places.clone();
    all.sort_unstable();
    assert_eq!(all, (0..MAX_TRANSLATIONS).collect::<Vec<_>>());
    for (port, place) in (1..=rooms).zip(&places) {
        let given = asked(port, port as u8);
        assert_eq!(place_for(&table, &given.frontend), *place);
        assert_eq!(place_of(&table, &given.server), *place);
    }
    assert_eq!(place_of(&table, &server(99)), MAX_TRANSLATIONS);
    let another = asked(rooms + 1, 99);
    let place = place_for(&table, &another.frontend);
    assert_eq!(place, MAX_TRANSLATIONS);
    let before = table;
    assert_eq!(note(&mut table, place, another), Err(Verdict::Full));
    assert_eq!(table, before);

    // The same server again: nothing else changes.
    note(&mut table, places[0], asked(1, 1)).expect("room");
    assert_eq!(table, before);
    // Another Service's server: that Service is forgotten, and its place is free.
    note(&mut table, places[0], asked(1, 2)).expect("room");
    assert_eq!(place_of(&table, &server(2)), places[0]);
    assert_eq!(place_of(&table, &server(1)), MAX_TRANSLATIONS);
    assert_eq!(place_for(&table, &another.frontend), places[1]);
    // A new Service with that server, in the free place.
    note(&mut table, places[1], asked(rooms + 1, 2)).expect("room");
    assert_eq!(place_of(&table, &server(2)), places[1]);
    assert_eq!(table.all[places[0]].set, 0);
}

/// A place whose remains name the very server.
#[test]
fn what_is_left_in_a_free_place_does_not_count() {
    let mut table = Translations {
        all: [NOTHING; MAX_TRANSLATIONS],
    };
    table.all[5] = asked(2, 1);
    table.all[2] = Translation {
        set: 0,
        ..asked(1, 1)
    };
    note(&mut table, 2, asked(1, 1)).expect("room");
    assert_eq!(table.all[5].set, 0, "another Service with that server");
    assert_eq!(place_of(&table, &server(1)), 2);
}
