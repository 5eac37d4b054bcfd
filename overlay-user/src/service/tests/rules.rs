//! The Services that kube-proxy serves, and their addresses and ports.

use serde_json::json;

use super::*;

#[test]
fn a_service_is_served_by_the_ready_endpoints_of_all_its_slices() {
    let mut source = Source::web(&json!({}));
    assert_eq!(source.servers(WEB), some(&[]), "refused: no endpoint");
    source.endpoints(&[json!("10.244.1.2"), json!("10.244.2.2")]);
    source.slice(
        "web-2",
        "web",
        &json!({"endpoints": [
            {"addresses": ["10.244.3.2"], "conditions": {"ready": true}},
            {"addresses": ["10.244.3.3"], "conditions": {"ready": false}},
            {"addresses": ["10.244.1.2"]},
        ]}),
    );
    let all = ["10.244.1.2:8080", "10.244.2.2:8080", "10.244.3.2:8080"];
    assert_eq!(source.servers(WEB), some(&all));
    source.0.remove_slice(&ObjectName::from_key("web-1"));
    source.0.settle();
    assert_eq!(
        source.servers(WEB),
        some(&["10.244.1.2:8080", "10.244.3.2:8080"])
    );
    source.0.remove_service(&ObjectName::from_key("web"));
    source.0.settle();
    assert!(source.frontends().is_empty());
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut source = Source::web(&json!({"ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53},
        {"name": "metrics", "port": 9153, "protocol": "TCP"},
        {"name": "sctp", "port": 7, "protocol": "SCTP"},
    ]}));
    source.slice(
        "web-1",
        "web",
        &json!({
            "endpoints": [{"addresses": ["10.244.1.2"]}],
            "ports": [
                {"name": "dns", "port": 5353, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
                {"name": "metrics", "port": 9, "protocol": "UDP"},
                {"name": "sctp", "port": 7, "protocol": "SCTP"},
                {"name": "all"},
            ],
        }),
    );
    assert_eq!(
        source.servers("10.96.0.1:53/UDP"),
        some(&["10.244.1.2:5353"])
    );
    assert_eq!(
        source.servers("10.96.0.1:53/TCP"),
        some(&["10.244.1.2:5354"])
    );
    let other = "a port of that name for UDP only";
    assert_eq!(source.servers("10.96.0.1:9153/TCP"), some(&[]), "{other}");
    assert_eq!(source.frontends().len(), 3, "SCTP is left alone");
    assert_eq!(source.refused(), Vec::<String>::new());
}

#[test]
fn one_name_may_stand_for_other_numbers_in_other_slices() {
    let mut source = Source::web(&json!({"ports": [{"name": "http", "port": 80}]}));
    for (slice, port, address) in [("a", 8080, "10.244.1.2"), ("b", 9090, "10.244.1.3")] {
        let ports = json!([{"name": "http", "port": port}]);
        let endpoints = json!([{"addresses": [address, "10.244.9.9"]}]);
        source.slice(
            slice,
            "web",
            &json!({"ports": ports, "endpoints": endpoints}),
        );
    }
    let both = ["10.244.1.2:8080", "10.244.1.3:9090"];
    assert_eq!(source.servers(WEB), some(&both), "the first address counts");
}

#[test]
fn clients_stay_as_long_as_affinity_says() {
    let of = |spec: &Value| {
        let source = Source::web(spec);
        let affinity = source.serving(WEB).expect("a frontend").affinity;
        affinity.map(|it| it.lasts)
    };
    assert_eq!(of(&json!({"sessionAffinity": "None"})), None);
    let hours = Duration::from_secs(3 * 3600);
    assert_eq!(of(&json!({"sessionAffinity": "ClientIP"})), Some(hours));
    let config = |seconds: i64| {
        json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        })
    };
    assert_eq!(of(&config(10)), Some(Duration::from_secs(10)));
    assert_eq!(of(&config(-5)), Some(Duration::from_secs(1)));
    assert_eq!(of(&config(i64::MAX)), Some(Duration::from_secs(24 * 3600)));
}

/// kube-proxy remembers clients by the endpoints of a Service's port: chains `KUBE-SEP-…`, whose
/// names are made of namespace, name, port's name and transport.
#[test]
fn clients_are_remembered_by_port_of_a_service() {
    let mut source = Source::new();
    let spec = |ip: &str| {
        json!({
            "clusterIP": ip,
            "externalIPs": ["203.0.113.1"],
            "sessionAffinity": "ClientIP",
            "ports": [
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 81},
                {"name": "a", "port": 80, "protocol": "UDP"},
            ],
        })
    };
    let object = |name: &str, ip| json!({"metadata": {"name": name}, "spec": spec(ip)});
    source.object("web", &object("web", "10.96.0.1"));
    // A frontend that both Services claim belongs to the first by name.
    source.object("web-2", &object("web-2", "10.96.0.2"));
    let id = |frontend| {
        let affinity = source.serving(frontend).expect(frontend).affinity;
        affinity.expect("affinity").port_id
    };
    for same in ["203.0.113.1:80/TCP", "192.168.0.1:30080/TCP"] {
        assert_eq!(id(same), id(WEB), "{same}");
    }
    for other in ["10.96.0.1:81/TCP", "10.96.0.1:80/UDP", "10.96.0.2:80/TCP"] {
        assert_ne!(id(other), id(WEB), "{other}");
    }
}

#[test]
fn other_addresses_of_a_service_are_served_as_its_cluster_ip_is() {
    let mut source = Source::new();
    source.object(
        "web",
        &json!({
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "externalIPs": ["203.0.113.1", "192.168.0.2"],
                "ports": [{"port": 80, "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1"},
                {"ip": "198.51.100.2", "ipMode": "VIP"},
                {"ip": "198.51.100.3", "ipMode": "Proxy"},
                {"hostname": "lb.example"},
            ]}},
        }),
    );
    source.endpoints(&[json!("10.244.1.2")]);
    let all = [
        "10.96.0.1:80/TCP",
        "192.168.0.1:30080/TCP",
        "192.168.0.2:80/TCP",
        "198.51.100.1:80/TCP",
        "198.51.100.2:80/TCP",
        "203.0.113.1:80/TCP",
    ];
    assert_eq!(source.frontends(), all);
    for frontend in all {
        assert_eq!(source.servers(frontend), some(&["10.244.1.2:8080"]));
    }
}

#[test]
fn load_balancers_with_source_ranges_are_left_to_kube_proxy() {
    let mut source = Source::new();
    source.object(
        "web",
        &json!({
            "spec": {
                "clusterIP": "10.96.0.1",
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "ports": [{"port": 80}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
        }),
    );
    assert_eq!(source.frontends(), [WEB]);
}

#[test]
fn what_kube_proxy_does_not_serve_is_left_alone() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
    ] {
        let source = Source::web(&spec);
        assert!(source.frontends().is_empty(), "{spec}");
        assert!(source.refused().is_empty(), "{spec}");
    }
    for label in api::LEFT_TO_OTHERS {
        let mut source = Source::web(&json!({}));
        let metadata = json!({"labels": {label: "other"}});
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        source.object("web", &json!({"metadata": metadata, "spec": spec}));
        assert!(source.frontends().is_empty(), "{label}");
    }
    let mut source = Source::web(&json!({}));
    let names = json!([{"addresses": ["db.example"]}]);
    source.slice(
        "web-1",
        "web",
        &json!({"addressType": "FQDN", "endpoints": names}),
    );
    assert_eq!(source.servers(WEB), some(&[]));
    assert!(source.refused().is_empty());
}

#[test]
fn nulls_are_as_good_as_nothing() {
    let service = json!({
        "metadata": {"creationTimestamp": null, "labels": null},
        "spec": {
            "clusterIP": "10.96.0.1", "clusterIPs": null, "externalIPs": null,
            "ports": [{"port": 80}], "sessionAffinityConfig": null,
        },
        "status": {"loadBalancer": {"ingress": null}},
    });
    let mut source = Source::new();
    source.object("web", &service);
    source.slice("web-1", "web", &json!({"endpoints": null, "ports": null}));
    assert_eq!(source.servers(WEB), some(&[]));
    let one = json!([{
        "addresses": ["10.244.1.2"], "conditions": {"ready": null}, "nodeName": null,
        "topology": null, "hints": null,
    }]);
    let port = json!([{"name": null, "protocol": null, "port": 1}]);
    source.slice("web-1", "web", &json!({"endpoints": one, "ports": port}));
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:1"]));
}
