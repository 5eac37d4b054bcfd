//! Services that would take the connections of others.

use serde_json::{Value, json};

use super::*;

#[test]
fn hostile_endpoints_are_refused_by_name_and_others_serve() {
    let mut source = Source::web(&json!({}));
    source.service("other", &json!({"clusterIP": "10.96.0.2"}));
    source.slice(
        "web-1",
        "web",
        &json!({
            "endpoints": [
                {"addresses": ["127.0.0.1"]},
                {"addresses": ["169.254.169.254"]},
                {"addresses": ["10.96.0.1"]},
                {"addresses": ["10.96.0.2"]},
                {"addresses": ["10.244.1.2"]},
                {"addresses": ["192.168.0.1"]},
            ],
            "ports": [{"port": 0}, {"port": 8080}],
        }),
    );
    let left = ["10.244.1.2:8080", "192.168.0.1:8080"];
    assert_eq!(source.servers(WEB), some(&left));
    assert_eq!(
        source.refused(),
        [
            "EndpointSlice default/web-1: 0 is not a port",
            "EndpointSlice default/web-1: the endpoint 127.0.0.1 is a loopback address",
            "EndpointSlice default/web-1: the endpoint 169.254.169.254 is a link-local address",
            "Service default/web: the endpoint 10.96.0.1 is the cluster IP of default/web",
            "Service default/web: the endpoint 10.96.0.2 is the cluster IP of default/other",
        ]
    );
    assert_eq!(source.servers("10.96.0.2:80/TCP"), some(&[]), "undisturbed");
    source.0.remove_service(&ObjectName::from_key("other"));
    source.0.settle();
    let left = ["10.96.0.2:8080", "10.244.1.2:8080", "192.168.0.1:8080"];
    assert_eq!(source.servers(WEB), some(&left), "a Service that is gone");
    source.endpoints(&[json!("10.244.1.2")]);
    assert!(source.refused().is_empty());
}

#[test]
fn addresses_of_pods_and_nodes_are_no_cluster_ips() {
    let source = Source::web(&json!({"clusterIP": "10.244.1.2"}));
    let pods =
        "Service default/web: the cluster IP 10.244.1.2 lies in the pods' network 10.244.0.0/16";
    assert_eq!(source.refused(), [pods]);
    assert!(source.frontends().is_empty());

    for node in [NODE, "192.168.0.2"] {
        let mut source = Source::web(&json!({"clusterIP": node}));
        source
            .0
            .add_node("192.168.0.2".parse().expect("an address"));
        source.0.settle();
        let refused = format!("Service default/web: the cluster IP {node} is a node's address");
        assert_eq!(source.refused(), [refused]);
        assert!(source.frontends().is_empty());
    }
    let mut source = Source::web(&json!({"clusterIP": "192.168.0.2"}));
    source.service("real", &json!({}));
    let node = "192.168.0.2".parse().expect("an address");
    source.slice(
        "real-1",
        "real",
        &json!({"endpoints": [{"addresses": ["192.168.0.2"]}]}),
    );
    assert_eq!(
        source.servers(WEB),
        some(&[]),
        "a Service's address, as far as is known"
    );
    source.0.add_node(node);
    source.0.settle();
    assert_eq!(source.servers(WEB), some(&["192.168.0.2:8080"]), "a node's");
    source.0.remove_node(node);
    source.0.settle();
    assert_eq!(source.servers("192.168.0.2:80/TCP"), some(&[]));
}

#[test]
fn nobody_takes_a_frontend_of_a_stronger_or_older_service() {
    let made = |day: u8| json!({"creationTimestamp": format!("2026-01-0{day}T00:00:00Z")});
    let spec = |ip: &str, external: &[&str]| -> Value {
        json!({"clusterIP": ip, "externalIPs": external, "ports": [{"port": 80}]})
    };
    let mut source = Source::new();
    // The thief is older than its victim, but gains nothing, because the victim has the address as
    // its cluster IP.
    let thief = json!({"metadata": made(1), "spec": spec("10.96.0.9", &["10.96.0.1"])});
    let victim = json!({"metadata": made(2), "spec": spec("10.96.0.1", &["203.0.113.1"])});
    let late = json!({"metadata": made(3), "spec": spec("10.96.0.8", &["203.0.113.1"])});
    source.object("late", &late);
    source.object("thief", &thief);
    for name in ["late", "thief", "web"] {
        let endpoint = format!("10.244.0.{}", name.len());
        let endpoints = json!([{"addresses": [endpoint]}]);
        source.slice(name, name, &json!({"endpoints": endpoints}));
    }
    assert_eq!(
        source.servers(WEB),
        some(&["10.244.0.5:8080"]),
        "nobody else has it yet"
    );
    source.object("web", &victim);
    assert_eq!(source.servers(WEB), some(&["10.244.0.3:8080"]));
    assert_eq!(
        source.servers("203.0.113.1:80/TCP"),
        some(&["10.244.0.3:8080"])
    );
    assert_eq!(
        source.refused(),
        [
            "Service default/late: 203.0.113.1:80/TCP is already that of default/web",
            "Service default/thief: 10.96.0.1:80/TCP is already that of default/web",
        ]
    );
    source.0.remove_service(&ObjectName::from_key("web"));
    source.0.settle();
    assert_eq!(
        source.servers("203.0.113.1:80/TCP"),
        some(&["10.244.0.4:8080"])
    );
    assert!(source.refused().is_empty());
}

#[test]
fn an_external_ip_comes_before_a_node_port() {
    let mut source = Source::web(&json!({"ports": [{"port": 80, "nodePort": 30080}]}));
    let spec = json!({"clusterIP": "10.96.0.2", "externalIPs": [NODE], "ports": [{"port": 30080}]});
    source.service("external", &spec);
    source.slice(
        "external-1",
        "external",
        &json!({"endpoints": [{"addresses": ["10.244.1.9"]}]}),
    );
    assert_eq!(
        source.servers("192.168.0.1:30080/TCP"),
        some(&["10.244.1.9:8080"])
    );
}

#[test]
fn a_service_of_too_many_frontends_is_served_in_part() {
    let external = (0..5000).map(|n: u16| {
        let [high, low] = n.to_be_bytes();
        format!("203.1.{high}.{low}")
    });
    let external: Vec<_> = external.collect();
    let just_fits = Source::web(&json!({"externalIPs": external[..4095]}));
    assert_eq!(just_fits.0.table().len(), 4096);
    assert_eq!(just_fits.refused(), Vec::<String>::new());
    let source = Source::web(&json!({"externalIPs": external}));
    assert_eq!(source.0.table().len(), 4096);
    assert!(
        source.servers(WEB).is_some(),
        "the cluster IP is among them"
    );
    let told = "Service default/web: it has 5001 addresses and ports, of which 4096 are served; \
                kube-proxy serves the others";
    assert_eq!(source.refused(), [told]);
}

#[test]
fn what_cannot_be_understood_is_refused_and_gives_its_place_up() {
    let mut source = Source::web(&json!({}));
    let web = ObjectName::from_key("web");
    source.0.put_service(&web, Err("expected a value".into()));
    source.0.settle();
    assert!(source.frontends().is_empty());
    let told = "Service default/web: its JSON cannot be understood: expected a value";
    assert_eq!(source.refused(), [told]);
}
