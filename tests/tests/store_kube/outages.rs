//! The state that remains while the API server does not answer.

use std::fs;
use std::time::Duration;

use overlay_user::store::{Error, StoreHealth};

use super::server::{bare, flannels};
use super::support::{attributes, keep, open, run};
use super::{TTL, acquire, cluster, start};

#[test]
fn leases_outlive_the_api_server() {
    let mut server = cluster(&[bare("a", "10.244.1.0/24"), bare("b", "10.244.2.0/24")]);
    run(async {
        let (a, _) = start(&server, "a", 1).await;
        let (_b, _) = start(&server, "b", 2).await;
        a.until("the other", |state| state.leases.len() == 1).await;
        server.stop_api();
        let state = a
            .until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        assert_eq!((state.leases.len(), state.own.is_some()), (1, true));
        server.start_api();
        a.until("its end", |state| state.store == StoreHealth::Ok)
            .await;
        server.add_nodes(&[flannels(
            "f",
            "10.244.9.0/24",
            "192.168.0.9",
            "02:00:00:00:00:99",
        )]);
        a.until("who came since", |state| state.leases.len() == 2)
            .await;
    });
}

/// Repeats `attempt` until it succeeds.
async fn in_time<T>(mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let tries = async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) => println!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let tried = tokio::time::timeout(Duration::from_secs(30), tries).await;
    tried.expect("an answer in time")
}

#[test]
fn an_agent_that_starts_during_an_outage_goes_on_with_what_was_known_last() {
    let nodes = [
        bare("a", "10.244.1.0/24"),
        bare("b", "10.244.2.0/24"),
        flannels("f", "10.244.9.0/24", "192.168.0.9", "02:00:00:00:00:99"),
        flannels("odd", "10.244.1.0/24", "192.168.0.8", "02:00:00:00:00:88"),
    ];
    let mut server = cluster(&nodes);
    server.annotate("a", &["node-public-ip=192.168.0.77"]);
    run(async {
        let store = open(server.location("a"), TTL);
        store.network_config().await.expect("a file");
        acquire(&store, 1).await.expect("a lease");
        let a = keep(store);
        let (_b, _) = start(&server, "b", 2).await;
        a.until("the others", |state| state.leases.len() == 2).await;
        let memory = server.memory("a");
        let knows = || fs::read_to_string(&memory).is_ok_and(|it| it.contains(r#""node":"b""#));
        in_time(async || match knows() {
            true => Ok(()),
            false => Err(Error::Options("b is not written down yet".into())),
        })
        .await;
    });
    // No agent runs. A Node is deleted, of which the next agent cannot know.
    server.delete_node("f");
    server.stop_api();
    run(async {
        let store = open(server.location("a"), TTL);
        store.network_config().await.expect("a file");
        acquire(&store, 1)
            .await
            .expect_err("the server may answer yet");
        let subnet = in_time(async || acquire(&store, 1).await).await;
        assert_eq!(subnet, "10.244.1.0/24");
        let asked = store.node_public_ip().await.expect("as known last");
        assert_eq!(asked, "192.168.0.77".parse().ok());
        let earlier = store.earlier_attributes().await.expect("as known last");
        assert_eq!(earlier, Some(attributes(1)));
        let a = keep(store);
        let state = a.until("what was known", |state| state.synced).await;
        assert_eq!((state.leases.len(), state.rejected.len()), (2, 1));
        assert!(state.as_of.is_some() && state.own.is_some(), "{state:#?}");
        assert!(matches!(state.store, StoreHealth::Unreachable { .. }));

        server.start_api();
        let state = a.until("an answer", |state| state.as_of.is_none()).await;
        assert!(state.own.is_some());
        a.until("the end of the Node", |state| state.leases.len() == 1)
            .await;
    });
}
