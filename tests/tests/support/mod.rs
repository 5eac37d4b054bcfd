//! Helpers that the tests of both stores share.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use overlay_user::backend::{Backend as _, Vxlan};
use overlay_user::config::NetworkConfig;
use overlay_user::lease::{Attributes, Lease};
use overlay_user::mac::MacAddr;
use overlay_user::per_family::PerFamily;
use overlay_user::store::{
    Error, LeaseState, Location, ServiceFollower, ServiceState, Store, StoreHealth,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A configuration with room for three nodes.
pub const SMALL: &str = r#"{"Network":"10.3.4.0/22","Backend":{"Type":"vxlan"}}"#;
/// One with room for 255.
pub const LARGE: &str = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;

pub fn config(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json).expect("a usable configuration")
}

/// Subnets of a lease that has one.
pub fn subnets(text: &str) -> PerFamily<IpNet> {
    text.parse::<IpNet>().expect("a subnet").into()
}

/// The attributes of node number `n`.
pub fn attributes(n: u8) -> Attributes {
    let mac = MacAddr([2, 0, 0, 0, 0, n]);
    Vxlan::default().attributes(&PerFamily::V4((IpAddr::from([192, 168, 0, n]), mac)))
}

/// A node with its store running until it is dropped.
pub struct Node {
    pub store: Arc<Store>,
    pub state: watch::Receiver<LeaseState>,
    _stop: DropGuard,
}

pub fn open(location: Location, ttl: Duration) -> Store {
    Store::open(location, ttl, ttl / 3).expect("options that can be meant")
}

/// Acquires a lease for node number `n` and keeps it.
pub async fn start(location: Location, ttl: Duration, json: &str, n: u8) -> (Node, Lease) {
    let store = open(location, ttl);
    let lease = store
        .acquire(&config(json), attributes(n), None)
        .await
        .expect("a lease");
    (keep(store), lease)
}

/// Keeps the lease of a store that has acquired it.
pub fn keep(store: Store) -> Node {
    let store = Arc::new(store);
    let state = store.subscribe();
    let cancel = CancellationToken::new();
    let (running, token) = (Arc::clone(&store), cancel.clone());
    tokio::spawn(async move { running.run(token).await });
    Node {
        store,
        state,
        _stop: cancel.drop_guard(),
    }
}

impl Node {
    /// Waits until the state is as wanted, and returns it.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&LeaseState) -> bool) -> LeaseState {
        let mut watched = self.state.clone();
        match timeout(Duration::from_secs(30), watched.wait_for(wanted)).await {
            Ok(state) => state.expect("the store lives").clone(),
            Err(_) => panic!("never saw {what}; the state is {:#?}", *self.state.borrow()),
        }
    }
}

/// Lets nodes 1 to `nodes` request a lease at the same time; returns the subnets that they got. A
/// node without a subnet must have got the error that there is no room.
pub async fn race(
    location: &Location,
    ttl: Duration,
    json: &str,
    nodes: u8,
) -> BTreeSet<PerFamily<IpNet>> {
    let config = config(json);
    let races = (1..=nodes).map(|n| {
        let store = open(location.clone(), ttl);
        let config = &config;
        async move { store.acquire(config, attributes(n), None).await }
    });
    let results = futures::future::join_all(races).await;
    let won = results.into_iter().filter_map(|result| match result {
        Ok(lease) => Some(lease.subnets),
        Err(Error::Allocate(_)) => None,
        Err(error) => panic!("{error}"),
    });
    won.collect()
}

/// Two nodes with their leases, the first of which has seen the second being added and changed.
pub async fn see_each_other(location: &Location, ttl: Duration) -> ([Node; 2], [Lease; 2]) {
    let (one, own) = start(location.clone(), ttl, LARGE, 1).await;
    let (two, lease) = start(location.clone(), ttl, LARGE, 2).await;
    let state = one
        .until("the other node", |state| state.leases.len() == 1)
        .await;
    assert!(state.synced);
    assert_eq!(state.store, StoreHealth::Ok);
    assert_eq!(state.own.map(|it| it.subnets), Some(own.subnets));
    assert_eq!(state.leases.sorted()[0].subnets, lease.subnets);
    two.store.publish(attributes(22));
    one.until("its new attributes", |state| {
        state
            .leases
            .values()
            .any(|it| it.attributes == attributes(22))
    })
    .await;
    ([one, two], [own, lease])
}

/// Runs a test's body with threads and timers. `RUST_LOG=overlay_user=debug` shows what happens.
pub fn run(body: impl Future<Output = ()>) {
    // Another test of the same process may have set it up already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(body);
}

/// The Services that a node sees, until it is dropped.
pub struct SeenServices {
    pub state: watch::Receiver<ServiceState>,
    _stop: DropGuard,
}

/// Follows the Services of a store that runs.
pub fn serve(node: &Node) -> SeenServices {
    let services = Arc::new(ServiceFollower::default());
    let state = services.subscribe();
    let cancel = CancellationToken::new();
    let (store, token) = (Arc::clone(&node.store), cancel.clone());
    tokio::spawn(async move {
        let pods = subnets("10.244.0.0/16");
        services.run(&store, pods, token).await;
    });
    SeenServices {
        state,
        _stop: cancel.drop_guard(),
    }
}

impl SeenServices {
    /// Waits until the state is as wanted.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&ServiceState) -> bool) {
        let mut watched = self.state.clone();
        if timeout(Duration::from_secs(30), watched.wait_for(wanted))
            .await
            .is_err()
        {
            panic!("never saw {what}; the state is {:#?}", *self.state.borrow());
        }
    }

    /// Waits until these servers, and no others, serve 10.96.0.1:80/TCP; or until it is no
    /// frontend.
    pub async fn until_web(&self, servers: Option<&[&str]>) {
        let web = |state: &ServiceState| {
            let mut table = state.table.as_ref()?.iter();
            let found = table.find(|(frontend, _)| frontend.to_string() == "10.96.0.1:80/TCP");
            found.map(|(_, it)| {
                it.servers
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
            })
        };
        let what = format!("{servers:?}");
        let is_known = |state: &ServiceState| state.table.is_some();
        self.until(&what, |state| {
            is_known(state)
                && web(state)
                    .as_deref()
                    .map(|it| it.iter().map(String::as_str).collect::<Vec<_>>())
                    .as_deref()
                    == servers
        })
        .await;
    }
}

/// A Service at 10.96.0.1:80/TCP.
pub const WEB: &str = r#"{"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}"#;

/// An EndpointSlice of the Service `web` with one server.
pub fn web_slice(address: &str) -> String {
    format!(
        "{{\"metadata\":{{\"labels\":{{\"kubernetes.io/service-name\":\"web\"}}}},\
        \"addressType\":\"IPv4\",\"ports\":[{{\"port\":8080}}],\
        \"endpoints\":[{{\"addresses\":[\"{address}\"]}}]}}"
    )
}
