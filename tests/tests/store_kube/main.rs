//! The Kubernetes store, against a real API server.

mod agents;
mod made_up;
mod oracle;
mod outages;
mod server;
#[path = "../support/mod.rs"]
#[expect(
    dead_code,
    reason = "races for a subnet are for stores where nodes choose"
)]
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use overlay_user::lease::Attributes;
use overlay_user::per_family::PerFamily;
use overlay_user::store::{Error, LeaseState, Notice, Store, StoreHealth};
use serde_json::{Value, json};
use server::{Server, bare, flannels};
use support::{Node, attributes, config, open, run};

/// The file that `--net-config-path` names.
const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const TTL: Duration = Duration::from_secs(24 * 3600);
const MANIFEST: &str = include_str!("../../../deploy/kube-overlay.yml");

/// Requests about its own permissions are allowed to every user.
const EVERYBODYS: [&str; 2] = [
    "selfsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
];

/// A cluster with the manifest applied, and with these Nodes.
fn cluster(nodes: &[Value]) -> Server {
    let server = Server::start();
    // This API server is older than `appArmorProfile`.
    server.feed(&["apply", "--validate=false", "-f", "-"], MANIFEST);
    server.add_nodes(nodes);
    server
}

async fn start(server: &Server, name: &str, n: u8) -> (Node, overlay_user::lease::Lease) {
    support::start(server.location(name), TTL, NETWORK, n).await
}

async fn acquire(store: &Store, n: u8) -> Result<String, Error> {
    let lease = store.acquire(&config(NETWORK), attributes(n), None).await?;
    Ok(lease.subnets.to_string())
}

#[test]
fn annotations_are_flannels_to_the_byte_and_nodes_see_each_other() {
    let nodes = [
        bare("a", "10.244.1.0/24"),
        bare("b", "10.244.2.0/24"),
        flannels("f", "10.244.9.0/24", "192.168.0.9", "02:00:00:00:00:99"),
        bare("not-a-member", "10.244.8.0/24"),
    ];
    let server = cluster(&nodes);
    run(async {
        let (a, lease) = start(&server, "a", 1).await;
        assert_eq!(lease.subnets.to_string(), "10.244.1.0/24");
        assert!(lease.expires.is_none());
        let (b, _) = start(&server, "b", 2).await;
        let state = a.until("two others", |state| state.leases.len() == 2).await;
        assert_eq!(state.store, StoreHealth::Ok);
        let names: Vec<_> = state
            .leases
            .sorted()
            .iter()
            .map(|it| it.node.clone())
            .collect();
        assert_eq!(names, [Some("b".to_owned()), Some("f".to_owned())]);
        let written = &server.node("a")["metadata"]["annotations"];
        let wanted = flannels("a", "", "192.168.0.1", "02:00:00:00:00:01");
        assert_eq!(*written, wanted["metadata"]["annotations"]);

        b.store.publish(attributes(22));
        a.until("its new attributes", |state| {
            state
                .leases
                .values()
                .any(|it| it.attributes == attributes(22))
        })
        .await;
        server.delete_node("f");
        a.until("its end", |state| state.leases.len() == 1).await;
    });
}

#[test]
fn a_change_of_one_family_is_not_lost() {
    let mut dual = flannels("dual", "", "192.168.0.9", "02:00:00:00:00:99");
    dual["spec"] =
        json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24", "fd00:9::/64"]});
    let server = cluster(&[bare("a", "10.244.1.0/24"), dual]);
    run(async {
        let (a, _) = start(&server, "a", 1).await;
        let says = |wanted: fn(&Attributes) -> bool| {
            move |state: &LeaseState| state.leases.values().any(|it| wanted(&it.attributes))
        };
        a.until("the node", says(|_| true)).await;
        server.annotate("dual", &["public-ipv6=fd01::9"]);
        a.until(
            "IPv6 alone",
            says(|it| it.public_ip.v6().copied() == "fd01::9".parse().ok()),
        )
        .await;
        server.annotate("dual", &["public-ip=192.168.0.10"]);
        a.until(
            "IPv4 alone",
            says(|it| it.public_ip.v4().copied() == "192.168.0.10".parse().ok()),
        )
        .await;
    });
    // The annotations that a dual-stack flannel has left on this node stay.
    server.annotate("a", &["public-ipv6=fd01::1", "backend-v6-data=x"]);
    run(async {
        let (a, _) = start(&server, "a", 7).await;
        a.until("its own lease", |state| state.own.is_some()).await;
    });
    assert_eq!(
        server.annotation("a", "public-ip").as_deref(),
        Some("192.168.0.7")
    );
    assert_eq!(
        server.annotation("a", "public-ipv6").as_deref(),
        Some("fd01::1")
    );
    assert_eq!(
        server.annotation("a", "backend-v6-data").as_deref(),
        Some("x")
    );
}

#[test]
fn a_subnet_that_comes_late_or_is_of_no_use_is_waited_for() {
    let server = cluster(&[bare("late", ""), bare("outside", "10.9.1.0/24")]);
    run(async {
        let says = |error: Error| error.to_string();
        let absent = open(server.location("absent"), TTL);
        let error = says(acquire(&absent, 1).await.expect_err("no Node"));
        assert!(
            error.contains("node absent: there is no such Node"),
            "{error}"
        );
        let outside = open(server.location("outside"), TTL);
        let error = says(acquire(&outside, 1).await.expect_err("outside"));
        assert!(
            error.contains("not inside the Network 10.244.0.0/16"),
            "{error}"
        );
        let late = open(server.location("late"), TTL);
        let error = says(acquire(&late, 1).await.expect_err("no podCIDR"));
        assert!(error.contains("node late: no podCIDR yet"), "{error}");
        server.set_cidr("late", "10.244.5.0/24");
        assert_eq!(acquire(&late, 1).await.expect("a lease"), "10.244.5.0/24");
    });
}

#[test]
fn a_node_that_is_made_anew_gets_its_new_subnet() {
    let server = cluster(&[bare("a", "10.244.1.0/24"), bare("b", "10.244.2.0/24")]);
    run(async {
        let (a, _) = start(&server, "a", 1).await;
        let (b, _) = start(&server, "b", 2).await;
        server.delete_node("a");
        b.until("its end", |state| state.leases.is_empty()).await;
        let state = a.until("no lease", |state| state.own.is_none()).await;
        assert!(
            state
                .trouble
                .is_some_and(|why| why.contains("no such Node"))
        );
        server.add_nodes(&[bare("a", "10.244.7.0/24")]);
        let subnet = |state: &LeaseState| state.own.as_ref().map(|it| it.subnets.to_string());
        a.until("the new subnet", |state| {
            subnet(state).as_deref() == Some("10.244.7.0/24")
        })
        .await;
        b.until("the other's", |state| state.leases.len() == 1)
            .await;
    });
}

#[test]
fn the_older_of_two_nodes_with_one_subnet_stays() {
    let server = cluster(&[bare("a", "10.244.1.0/24"), bare("b", "10.244.2.0/24")]);
    run(async {
        let (a, _) = start(&server, "a", 1).await;
        let (b, _) = start(&server, "b", 2).await;
        b.until("the other", |state| state.leases.len() == 1).await;
        server.add_nodes(&[
            flannels(
                "thief",
                "10.244.1.0/24",
                "192.168.0.66",
                "02:00:00:00:00:66",
            ),
            flannels("nonsense", "10.244.6.0/24", "nobody", "?"),
        ]);
        for (who, leases) in [(&a, 1), (&b, 1)] {
            let state = who
                .until("two that are refused", |state| state.rejected.len() == 2)
                .await;
            assert_eq!(state.leases.len(), leases);
            let refused = format!("{:?}", state.rejected.sorted());
            assert!(refused.contains("node thief"), "{refused}");
            assert!(refused.contains("of node nonsense"), "{refused}");
            assert!(state.own.is_some());
        }
        // The agent there does not know of the other at first.
        let (thief, _) = start(&server, "thief", 66).await;
        let state = thief
            .until("no lease", |state| {
                state
                    .trouble
                    .as_ref()
                    .is_some_and(|why| why.contains("older node a"))
            })
            .await;
        assert!(state.own.is_none());
    });
}

#[test]
fn an_overwritten_public_ip_is_published_and_one_of_the_node_is_told() {
    let server = cluster(&[bare("a", "10.244.1.0/24")]);
    run(async {
        let (a, _) = start(&server, "a", 1).await;
        assert_eq!(a.store.node_public_ip().await.expect("an answer"), None);
        server.annotate(
            "a",
            &[
                "public-ip-overwrite=172.18.0.2",
                "node-public-ip=192.168.0.77",
            ],
        );
        a.until("the overwritten address", |state| {
            state.own.as_ref().is_some_and(|own| {
                own.attributes.public_ip == PerFamily::V4([172, 18, 0, 2].into())
            })
        })
        .await;
        assert_eq!(
            server.annotation("a", "public-ip").as_deref(),
            Some("172.18.0.2")
        );
        let asked = a.store.node_public_ip().await.expect("an answer");
        assert_eq!(asked, "192.168.0.77".parse().ok());
        server.annotate("a", &["public-ip-overwrite-"]);
        a.until("the node's address again", |state| {
            state
                .own
                .as_ref()
                .is_some_and(|own| own.attributes == attributes(1))
        })
        .await;
    });
}

#[test]
fn the_node_says_how_it_fares_and_no_more_is_allowed() {
    let server = cluster(&[bare("a", "10.244.1.0/24")]);
    let condition = || {
        let node = server.node("a");
        let conditions = node["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        conditions
            .find(|it| it["type"] == "NetworkUnavailable")
            .unwrap_or_default()
    };
    run(async {
        let store = open(server.location("a"), TTL);
        let down = Notice::Unavailable {
            reason: "OverlayIsStarting",
            message: "no podCIDR".into(),
        };
        store.notify(&down).await.expect("told");
        assert_eq!(condition()["status"], "True");
        assert_eq!(condition()["message"], "no podCIDR");
        store.notify(&Notice::Available).await.expect("told");
        let known = condition();
        assert_eq!(known["status"], "False");
        assert_eq!(known["reason"], "FlannelIsUp");
        assert_eq!(known["message"], "Flannel is running on this node");
        let event = Notice::Event {
            reason: "FastPathDown",
            message: "why".into(),
        };
        store.notify(&event).await.expect("posted");
        let events = server.kubectl(&["get", "events", "-o", "json"]);
        let events: Value = serde_json::from_str(&events).expect("JSON");
        let event = &events["items"][0];
        assert_eq!(event["reason"], "FastPathDown");
        assert_eq!(event["involvedObject"]["name"], "a");
    });
    // The API server's own list of the permissions of the manifest's service account.
    let allowed: BTreeSet<_> = server
        .allowed()
        .into_iter()
        .filter(|(resource, _)| !EVERYBODYS.contains(&resource.as_str()))
        .collect();
    let wanted = [
        ("endpointslices.discovery.k8s.io", "[get list watch]"),
        ("events", "[create]"),
        ("nodes", "[get list watch]"),
        ("nodes/status", "[patch]"),
        ("services", "[get list watch]"),
    ];
    let wanted = wanted.map(|(resource, verbs)| (resource.to_owned(), verbs.to_owned()));
    assert_eq!(allowed, BTreeSet::from(wanted));
}

#[test]
fn the_kustomization_is_the_manifest() {
    let server = Server::start();
    let names = |text: &str| {
        let mut names: Vec<_> = text
            .lines()
            .filter(|it| it.starts_with("kind: "))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let built = server.kubectl(&["kustomize", deploy]);
    assert_eq!(names(&built), names(MANIFEST));
}
