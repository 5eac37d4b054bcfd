//! Leases, and the knowledge of leases, when etcd fails.

use nix::sys::signal::Signal;
use overlay_user::store::StoreHealth;
use tokio::time::{sleep, timeout};

use crate::server::{Server, free_port};
use crate::support::{LARGE, attributes, run, start};
use crate::{SHORT, TTL};

#[test]
fn a_restarted_etcd_is_followed() {
    run(async {
        let mut server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        let (_two, _) = start(server.location(), TTL, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        server.stop();
        let state = one
            .until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        assert!(state.synced && state.own.is_some());
        assert_eq!(state.leases.len(), 1, "known leases stay");
        server.restart().await;
        one.until("the return", |state| state.store == StoreHealth::Ok)
            .await;
        let (_three, _) = start(server.location(), TTL, LARGE, 3).await;
        let state = one
            .until("a third node", |state| state.leases.len() == 2)
            .await;
        assert_eq!(state.own.map(|it| it.subnets), Some(own.subnets));
    });
}

#[test]
fn compaction_during_a_partition_loses_nothing() {
    run(async {
        let mut server = Server::start().await;
        let (one, _) = start(server.location(), TTL, LARGE, 1).await;
        // Seeing a peer shows that the watch has a place to go on from.
        server
            .put(
                "subnets/10.3.49.0-24",
                &attributes(49).to_json().expect("JSON"),
            )
            .await;
        one.until("the first peer", |state| state.leases.len() == 1)
            .await;
        // The agent gets no news while a peer is added and the history is compacted: meanwhile the
        // same server listens at another port.
        server.stop();
        let port = std::mem::replace(&mut server.port, free_port());
        server.restart().await;
        server
            .put(
                "subnets/10.3.50.0-24",
                &attributes(50).to_json().expect("JSON"),
            )
            .await;
        for n in 0..5 {
            server.put("noise", &n.to_string()).await;
        }
        let mut client = server.client().await;
        let revision = client
            .get("x", None)
            .await
            .expect("asked")
            .header()
            .expect("a header")
            .revision();
        client.compact(revision, None).await.expect("compacted");
        server.stop();
        server.port = port;
        server.restart().await;
        let state = one
            .until("the second peer", |state| state.leases.len() == 2)
            .await;
        assert_eq!(state.leases.sorted()[1].attributes, attributes(50));
    });
}

#[test]
fn an_etcd_that_lost_its_data_is_filled_again() {
    run(async {
        let mut server = Server::start().await;
        for n in 0..20 {
            server.put("noise", &n.to_string()).await;
        }
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        server
            .put(
                "subnets/10.3.50.0-24",
                &attributes(50).to_json().expect("JSON"),
            )
            .await;
        one.until("the peer", |state| state.leases.len() == 1).await;
        server.stop();
        server.data = tempfile::tempdir().expect("a directory");
        server.restart().await;
        let state = one
            .until("the peer go", |state| state.leases.is_empty())
            .await;
        assert_eq!(state.own.map(|it| it.subnets), Some(own.subnets));
        assert_eq!(server.leases().await.len(), 1, "our own lease is back");
    });
}

#[test]
fn an_etcd_that_stands_still_for_longer_than_the_lease_cuts_nobody() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        let (two, other) = start(server.location(), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        two.until("the other node", |state| state.leases.len() == 1)
            .await;
        server.signal(Signal::SIGSTOP);
        for node in [&one, &two] {
            node.until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        }
        sleep(SHORT * 2).await;
        let mut gaps = one.state.clone();
        gaps.mark_unchanged();
        server.signal(Signal::SIGCONT);
        let watched = async {
            loop {
                gaps.changed().await.expect("the store lives");
                assert_eq!(
                    gaps.borrow_and_update().leases.len(),
                    1,
                    "the peer never goes"
                );
            }
        };
        assert!(timeout(SHORT * 3, watched).await.is_err());
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 2);
        for (node, lease) in [(one, own), (two, other)] {
            let state = node.state.borrow();
            assert_eq!(state.store, StoreHealth::Ok);
            assert_eq!(state.own.as_ref().map(|it| it.subnets), Some(lease.subnets));
        }
    });
}
