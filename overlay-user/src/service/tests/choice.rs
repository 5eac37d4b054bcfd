//! Which servers kube-proxy chooses.

use serde_json::{Value, json};

use super::*;

#[test]
fn internal_traffic_stays_on_the_node_where_the_policy_says_so() {
    let local = json!({
        "internalTrafficPolicy": "Local",
        "externalIPs": ["203.0.113.1"],
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let mut source = Source::web(&local);
    assert_eq!(source.servers(WEB), some(&[]), "nobody anywhere: refused");
    let far = json!({"addresses": ["10.244.2.2"], "nodeName": "n2"});
    let near = json!({"addresses": ["10.244.1.2"], "nodeName": "n1"});
    source.endpoints(&[far.clone(), near]);
    let both = ["10.244.1.2:8080", "10.244.2.2:8080"];
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    for other in ["203.0.113.1:80/TCP", "192.168.0.1:30080/TCP"] {
        assert_eq!(
            source.servers(other),
            some(&both),
            "{other}: cluster IPs only"
        );
    }
    source.endpoints(&[far]);
    assert_eq!(
        source.servers(WEB),
        None,
        "kube-proxy drops, and does not refuse"
    );
    assert_eq!(
        source.servers("203.0.113.1:80/TCP"),
        some(&["10.244.2.2:8080"])
    );
    // Kubernetes 1.20 names an endpoint's place in another field.
    let topology = json!({"kubernetes.io/hostname": "n1"});
    source.endpoints(&[json!({"addresses": ["10.244.1.3"], "topology": topology})]);
    assert_eq!(source.servers(WEB), some(&["10.244.1.3:8080"]));
}

#[test]
fn external_policy_is_not_for_clients_inside() {
    let mut source = Source::web(&json!({
        "externalTrafficPolicy": "Local",
        "externalIPs": ["203.0.113.1"],
        "ports": [{"port": 80, "nodePort": 30080}],
    }));
    source.endpoints(&[json!({"addresses": ["10.244.2.2"], "nodeName": "n2"})]);
    for frontend in [WEB, "203.0.113.1:80/TCP", "192.168.0.1:30080/TCP"] {
        assert_eq!(
            source.servers(frontend),
            some(&["10.244.2.2:8080"]),
            "{frontend}"
        );
    }
}

#[test]
fn endpoints_that_are_about_to_end_serve_if_nobody_else_does() {
    let ending = |address: &str, serving: bool| {
        let conditions = json!({"ready": false, "serving": serving, "terminating": true});
        json!({"addresses": [address], "conditions": conditions, "nodeName": "n1"})
    };
    let mut source = Source::web(&json!({}));
    let starting = json!({
        "addresses": ["10.244.1.9"],
        "conditions": {"ready": false, "serving": true, "terminating": false},
    });
    let ends = [
        ending("10.244.1.2", true),
        ending("10.244.1.3", false),
        starting,
    ];
    source.endpoints(&ends);
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    source.service("web", &json!({"internalTrafficPolicy": "Local"}));
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    source.service("web", &json!({}));
    source.endpoints(&[ending("10.244.1.2", true), json!("10.244.2.2")]);
    assert_eq!(source.servers(WEB), some(&["10.244.2.2:8080"]));
    // Absent conditions mean that the endpoint serves, and does not terminate.
    let conditions = json!({"ready": false, "terminating": true});
    source.endpoints(&[json!({"addresses": ["10.244.1.4"], "conditions": conditions})]);
    assert_eq!(source.servers(WEB), some(&["10.244.1.4:8080"]));
    source.endpoints(&[json!({"addresses": ["10.244.1.5"], "conditions": {"ready": false}})]);
    assert_eq!(source.servers(WEB), some(&[]));
}

#[test]
fn a_local_endpoint_that_ends_counts_before_ready_ones_elsewhere() {
    let mut source = Source::web(&json!({"internalTrafficPolicy": "Local"}));
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    source.endpoints(&[
        json!({"addresses": ["10.244.1.2"], "conditions": conditions, "nodeName": "n1"}),
        json!({"addresses": ["10.244.2.2"], "nodeName": "n2"}),
    ]);
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
}

#[test]
fn hints_for_zones_count_if_every_ready_endpoint_has_one_and_one_is_for_here() {
    let hinted = |address: &str, zone: &str| -> Value {
        json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}})
    };
    let mut source = Source::web(&json!({}));
    let both = ["10.244.1.2:8080", "10.244.2.2:8080"];
    source.endpoints(&[hinted("10.244.1.2", "a"), hinted("10.244.2.2", "b")]);
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    source.endpoints(&[hinted("10.244.1.2", "c"), hinted("10.244.2.2", "b")]);
    assert_eq!(source.servers(WEB), some(&both), "none for this zone");
    source.endpoints(&[hinted("10.244.1.2", "a"), json!("10.244.2.2")]);
    assert_eq!(source.servers(WEB), some(&both), "one has no hint");
    let conditions = json!({"ready": false});
    source.endpoints(&[
        hinted("10.244.1.2", "a"),
        hinted("10.244.2.2", "b"),
        json!({"addresses": ["10.244.3.2"], "conditions": conditions}),
    ]);
    let only = some(&["10.244.1.2:8080"]);
    assert_eq!(
        source.servers(WEB),
        only,
        "one that is not ready needs none"
    );
    let mut nowhere = Source(Catalog::new(Locality {
        zone: None,
        ..here()
    }));
    nowhere.service("web", &json!({}));
    nowhere.endpoints(&[hinted("10.244.1.2", ""), hinted("10.244.2.2", "b")]);
    assert_eq!(nowhere.servers(WEB), some(&both), "a node without a zone");
}

#[test]
fn hints_for_nodes_come_before_those_for_zones_and_not_before_local_policy() {
    let hinted = |address: &str, node: &str, zone: &str| {
        let hints = json!({"forNodes": [{"name": node}], "forZones": [{"name": zone}]});
        json!({"addresses": [address], "nodeName": node, "hints": hints})
    };
    let mut source = Source::web(&json!({}));
    let (own, zone) = (
        hinted("10.244.1.2", "n1", "a"),
        hinted("10.244.2.2", "n2", "a"),
    );
    let far = hinted("10.244.3.2", "n3", "b");
    source.endpoints(&[own.clone(), zone.clone(), far.clone()]);
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    source.endpoints(&[zone, far]);
    assert_eq!(
        source.servers(WEB),
        some(&["10.244.2.2:8080"]),
        "the zone, then"
    );
    source.service("web", &json!({"internalTrafficPolicy": "Local"}));
    let elsewhere = hinted("10.244.1.3", "n2", "b");
    let mut unhinted = own;
    unhinted["hints"] = json!({"forNodes": [{"name": "n2"}]});
    source.endpoints(&[unhinted, elsewhere]);
    assert_eq!(
        source.servers(WEB),
        some(&["10.244.1.2:8080"]),
        "policy, not hints"
    );
}

#[test]
fn each_family_has_its_own_servers_and_hints() {
    let mut source = Source::web(&json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"]}));
    let hints = json!({"forZones": [{"name": "a"}]});
    source.endpoints(&[
        json!({"addresses": ["10.244.1.2"], "hints": hints}),
        json!({"addresses": ["10.244.2.2"], "hints": {"forZones": [{"name": "b"}]}}),
    ]);
    let v6 = json!([{"addresses": ["fd00:244::2"]}]);
    source.slice(
        "web-6",
        "web",
        &json!({"addressType": "IPv6", "endpoints": v6}),
    );
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    let six = "[fd00:96::1]:80/TCP";
    assert_eq!(source.servers(six), some(&["[fd00:244::2]:8080"]));
}

#[test]
fn of_one_server_in_two_slices_the_better_news_count_or_else_the_first() {
    let of = |first: Value, second: Value| {
        let mut source = Source::web(&json!({}));
        let hints = json!({"forZones": [{"name": "a"}]});
        let near = json!({"addresses": ["10.244.1.3"], "hints": hints});
        source.slice("a", "web", &json!({"endpoints": [first, near]}));
        source.slice("b", "web", &json!({"endpoints": [second]}));
        source.servers(WEB).expect("a frontend").len()
    };
    let hints = |zone: &str| json!({"forZones": [{"name": zone}]});
    let ready = |zone: &str| json!({"addresses": ["10.244.1.2"], "hints": hints(zone)});
    let mut ending = ready("a");
    ending["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(of(ending.clone(), ready("a")), 2);
    assert_eq!(of(ready("a"), ending), 2);
    assert_eq!(of(ready("b"), ready("a")), 1, "meant for zone b");
    assert_eq!(of(ready("a"), ready("b")), 2, "meant for zone a");
}
