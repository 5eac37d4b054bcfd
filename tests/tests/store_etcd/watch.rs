//! Other nodes' leases as they are added, changed and removed.

use etcd_client::{Txn, TxnOp};
use overlay_user::store::{Location, StoreHealth, etcd};

use crate::server::{Server, free_port};
use crate::support::{LARGE, run, see_each_other, start};
use crate::{PREFIX, SHORT, TTL};

#[test]
fn nodes_see_each_other_come_and_change() {
    run(async {
        let server = Server::start().await;
        let ([one, _two], _) = see_each_other(&server.location(), TTL).await;
        server.put("subnets/10.3.300.0-24", "{}").await;
        server.put("subnets/10.3.77.0-24", "not JSON").await;
        let state = one
            .until("the rejections", |state| state.rejected.len() == 2)
            .await;
        assert_eq!(state.leases.len(), 1, "bad entries cost no good one");
    });
}

/// Values as large as etcd accepts: four of them exceed a client's limit for one answer.
async fn put_giants(server: &Server) {
    for n in 0..4 {
        server
            .put(&format!("subnets/giant{n}"), &"x".repeat(1_400_000))
            .await;
    }
}

#[test]
fn giant_values_cost_no_good_lease() {
    run(async {
        let server = Server::start().await;
        put_giants(&server).await;
        let ([one, _two], _) = see_each_other(&server.location(), TTL).await;
        one.until("the giants", |state| state.rejected.len() == 4)
            .await;
    });
}

#[test]
fn more_leases_than_one_answer_holds_are_all_seen() {
    run(async {
        let server = Server::start().await;
        let mut client = server.client().await;
        // etcd accepts at most 128 operations in one transaction.
        for hundred in 0..12 {
            let puts: Vec<_> = (0..100)
                .map(|n| {
                    let key = format!("{PREFIX}/subnets/10.{}.{n}.0-24", 20 + hundred);
                    TxnOp::put(key, r#"{"PublicIP":"192.168.7.7"}"#, None)
                })
                .collect();
            client
                .txn(Txn::new().and_then(puts))
                .await
                .expect("written");
        }
        let (one, _) = start(server.location(), TTL, LARGE, 1).await;
        one.until("all leases", |state| state.leases.len() == 1200)
            .await;
    });
}

/// Passes connections on to `to` until it is dropped.
async fn relay(port: u16, to: u16) -> AbortOnDrop {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .expect("a free port");
    let task = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            open.spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    AbortOnDrop(task)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[test]
fn a_watch_catches_up_with_giant_values() {
    run(async {
        let server = Server::start().await;
        let port = free_port();
        let way = relay(port, server.port).await;
        let Location::Etcd(options) = server.location() else {
            unreachable!("etcd")
        };
        let by_relay = Location::Etcd(etcd::Options {
            endpoints: vec![format!("http://127.0.0.1:{port}")],
            ..options
        });
        let (one, _) = start(by_relay, TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        drop(way);
        one.until("the outage", |state| {
            matches!(state.store, StoreHealth::Unreachable { .. })
        })
        .await;
        put_giants(&server).await;
        server
            .put("subnets/10.3.77.0-24", r#"{"PublicIP":"192.168.0.2"}"#)
            .await;
        let _way = relay(port, server.port).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        one.until("the giants", |state| state.rejected.len() == 4)
            .await;
        one.until("an answer", |state| state.store == StoreHealth::Ok)
            .await;
    });
}

#[test]
fn a_peers_lease_ends_and_ours_is_kept() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        let (two, _) = start(server.location(), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        drop(two);
        one.until("the other node's lease end", |state| {
            state.leases.is_empty()
        })
        .await;
        assert_eq!(
            one.state.borrow().own.as_ref().map(|it| it.subnets),
            Some(own.subnets)
        );
    });
}
