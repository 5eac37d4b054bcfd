//! A node's own subnet: taken, kept, and taken again.

use std::time::Duration;

use etcd_client::PutOptions;
use overlay_user::lease::{AllocateError, are_allowed};
use overlay_user::store::Error;
use tokio::time::{sleep, timeout};

use crate::server::{Server, key};
use crate::support::{LARGE, SMALL, attributes, config, open, race, run, start, subnets};
use crate::{SHORT, TTL};

#[test]
fn keys_and_values_are_flannels_to_the_byte() {
    run(async {
        let server = Server::start().await;
        let store = open(server.location(), TTL);
        let error = store.network_config().await.expect_err("nothing is there");
        assert!(matches!(error, Error::NoConfig(_)), "{error}");
        server.put("config", LARGE).await;
        let config = store.network_config().await.expect("config");
        let previous = Some(subnets("10.3.6.1/24"));
        let lease = store
            .acquire(&config, attributes(1), previous)
            .await
            .expect("a lease");
        assert_eq!(lease.subnets.to_string(), "10.3.6.0/24");
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 1);
        assert_eq!(key(&kvs[0]), "/coreos.com/network/subnets/10.3.6.0-24");
        assert_eq!(
            kvs[0].value_str().expect("UTF-8"),
            "{\"PublicIP\":\"192.168.0.1\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"}}"
        );
        let ttl = server
            .client()
            .await
            .lease_time_to_live(kvs[0].lease(), None)
            .await;
        assert_eq!(ttl.expect("a term").granted_ttl(), 24 * 3600);
        // A second agent of the same node continues with the same subnet and the same etcd lease.
        let again = open(server.location(), TTL);
        let lease = again
            .acquire(&config, attributes(1), None)
            .await
            .expect("a lease");
        assert_eq!(lease.subnets.to_string(), "10.3.6.0/24");
        assert_eq!(server.leases().await[0].lease(), kvs[0].lease());
        // The network changes: the old lease is useless and is removed.
        let moved = crate::support::config(r#"{"Network":"10.9.0.0/16"}"#);
        let lease = again
            .acquire(&moved, attributes(1), previous)
            .await
            .expect("a lease");
        assert!(are_allowed(&moved.pools, &lease.subnets));
        assert_eq!(server.leases().await.len(), 1);
        assert!(
            again
                .release(&lease.subnets, &attributes(1))
                .await
                .expect("released")
        );
        assert!(server.leases().await.is_empty());
    });
}

#[test]
fn ten_nodes_race_for_three_subnets() {
    run(async {
        let server = Server::start().await;
        let won = race(&server.location(), TTL, SMALL, 10).await;
        assert_eq!(won.len(), 3);
        assert_eq!(server.leases().await.len(), 3);
    });
}

#[test]
fn forty_nodes_all_get_a_subnet_of_their_own() {
    run(async {
        let server = Server::start().await;
        let won = race(&server.location(), TTL, LARGE, 40).await;
        assert_eq!(won.len(), 40);
    });
}

#[test]
fn subnets_of_different_lengths_never_overlap() {
    run(async {
        let server = Server::start().await;
        let races = (1..=20).map(|n| {
            let store = open(server.location(), TTL);
            let len = if n % 2 == 0 { 24 } else { 26 };
            let config = config(&format!(r#"{{"Network":"10.3.0.0/20","SubnetLen":{len}}}"#));
            async move { store.acquire(&config, attributes(n), None).await }
        });
        // Each takes a part of one of sixteen blocks, so that at least sixteen find room.
        let mut won = Vec::new();
        for outcome in futures::future::join_all(races).await {
            match outcome {
                Ok(lease) => won.push(lease),
                Err(Error::Allocate(AllocateError::OutOfSubnets { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(won.len() >= 16, "only {} find room", won.len());
        assert_eq!(
            server.leases().await.len(),
            won.len(),
            "no loser leaves anything"
        );
        for (at, one) in won.iter().enumerate() {
            assert!(
                won[at + 1..]
                    .iter()
                    .all(|other| !other.key().overlaps(&one.key())),
                "{won:#?}"
            );
        }
    });
}

#[test]
fn a_revoked_lease_is_taken_again() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let before = server.leases().await;
        server
            .client()
            .await
            .lease_revoke(before[0].lease())
            .await
            .expect("revoked");
        let back = async {
            loop {
                let now = server.leases().await;
                if now.len() == 1 && now[0].lease() != before[0].lease() {
                    break now;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let now = timeout(Duration::from_secs(10), back)
            .await
            .expect("not taken again");
        assert_eq!(key(&now[0]), key(&before[0]));
        let state = one
            .until("its own lease", |state| state.own.is_some())
            .await;
        assert_eq!(state.own.map(|it| it.subnets), Some(own.subnets));
    });
}

#[test]
fn a_stranger_on_our_key_is_not_overwritten() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let stranger = r#"{"PublicIP":"192.168.0.99","PublicIPv6":null}"#;
        server
            .put(&format!("subnets/{}", own.key()), stranger)
            .await;
        let state = one
            .until("another subnet", |state| {
                state
                    .own
                    .as_ref()
                    .is_some_and(|it| it.subnets != own.subnets)
            })
            .await;
        assert_eq!(state.leases.len(), 1);
        let kvs = server.leases().await;
        assert!(
            kvs.iter().any(|kv| kv.value() == stranger.as_bytes()),
            "the stranger's stays"
        );
        assert_eq!(kvs.len(), 2);
    });
}

#[test]
fn our_key_written_over_by_ourselves_is_set_right() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let before = server.leases().await;
        let options = PutOptions::new().with_lease(before[0].lease());
        let wrong = r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#;
        server
            .client()
            .await
            .put(before[0].key(), wrong, Some(options))
            .await
            .expect("written");
        let right = async {
            while server.leases().await[0].value() != before[0].value() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), right)
            .await
            .expect("not set right");
        assert_eq!(
            one.state.borrow().own.as_ref().map(|it| it.subnets),
            Some(own.subnets)
        );
    });
}

#[test]
fn reservations_keep_their_nature() {
    run(async {
        let server = Server::start().await;
        server
            .put("subnets/10.3.9.0-24", r#"{"PublicIP":"192.168.0.1"}"#)
            .await;
        server.put("subnets/10.3.5.0-24", "held for later").await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        assert_eq!(own.subnets.to_string(), "10.3.9.0/24");
        assert!(own.reserved && own.expires.is_none());
        sleep(SHORT).await;
        one.until("a complete answer", |state| state.synced).await;
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 2);
        assert!(
            kvs.iter().all(|kv| kv.lease() == 0),
            "no reservation has got a term"
        );
        assert!(
            !one.store
                .release(&own.subnets, &own.attributes)
                .await
                .expect("asked")
        );
    });
}
