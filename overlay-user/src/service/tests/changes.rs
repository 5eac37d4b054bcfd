//! The result depends on the present objects alone, and not on earlier ones.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[test]
fn slices_may_come_before_their_service_and_change_sides() {
    let mut source = Source::new();
    source.endpoints(&[json!("10.244.1.2")]);
    assert!(source.frontends().is_empty());
    source.service("web", &json!({}));
    source.service("other", &json!({"clusterIP": "10.96.0.2"}));
    assert_eq!(source.servers(WEB), some(&["10.244.1.2:8080"]));
    source.slice(
        "web-1",
        "other",
        &json!({"endpoints": [{"addresses": ["10.244.1.2"]}]}),
    );
    assert_eq!(source.servers(WEB), some(&[]));
    assert_eq!(
        source.servers("10.96.0.2:80/TCP"),
        some(&["10.244.1.2:8080"])
    );
}

#[test]
fn a_list_removes_what_it_does_not_name() {
    let mut source = Source::web(&json!({}));
    source.service("other", &json!({"clusterIP": "10.96.0.2"}));
    source.endpoints(&[json!("10.244.1.2")]);
    let nonsense = ObjectName::from_key("nonsense");
    source.0.put_slice(&nonsense, Err("no JSON".into()));
    source.0.begin(Kind::Service);
    source.0.begin(Kind::Slice);
    source.service("web", &json!({}));
    assert_eq!(
        source.frontends().len(),
        2,
        "nothing goes before the list is complete"
    );
    source.0.complete(Kind::Service);
    source.0.complete(Kind::Slice);
    source.0.settle();
    assert_eq!(source.frontends(), [WEB]);
    assert_eq!(source.servers(WEB), some(&[]));
    assert!(source.refused().is_empty());
}

#[test]
fn a_change_touches_its_service_only() {
    let mut source = Source::web(&json!({}));
    for n in 1..=200 {
        let ip = format!("10.96.1.{n}");
        source.service(&format!("s{n}"), &json!({"clusterIP": ip}));
    }
    let before = source.0.table().clone();
    source.endpoints(&[json!("10.244.1.2")]);
    let changed: Vec<_> = source.0.table().differences(&before).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].key.to_string(), WEB);
    let before = source.0.table().clone();
    source.endpoints(&[json!({"addresses": ["10.244.1.2"], "conditions": {"ready": true}})]);
    assert_eq!(*source.0.table(), before, "nothing that counts");
}

/// One change that a source may report.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, Value),
    Slice(u8, u8, Vec<u8>),
    NoService(u8),
    NoSlice(u8),
    Node(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let service = (
        0u8..4,
        0u8..4,
        prop::collection::vec(0u8..4, 0..3),
        0u8..3,
        any::<bool>(),
    );
    let service = service.prop_map(|(name, ip, external, made, port)| {
        let address = |ip: &u8| match ip {
            3 => "192.168.0.9".to_owned(),
            ip => format!("10.96.0.{ip}"),
        };
        let external: Vec<_> = external.iter().map(address).collect();
        let node_port = if port { 30080 } else { 0 };
        let service = json!({
            "metadata": {"creationTimestamp": format!("{made}")},
            "spec": {
                "clusterIP": address(&ip),
                "externalIPs": external,
                "ports": [{"port": 80, "nodePort": node_port}],
            },
        });
        Step::Service(name, service)
    });
    prop_oneof![
        3 => service,
        3 => (0u8..4, 0u8..4, prop::collection::vec(0u8..6, 0..4))
            .prop_map(|(name, service, servers)| Step::Slice(name, service, servers)),
        1 => (0u8..4).prop_map(Step::NoService),
        1 => (0u8..4).prop_map(Step::NoSlice),
        1 => any::<bool>().prop_map(Step::Node),
    ]
}

impl Source {
    fn step(&mut self, step: &Step, nodes: &mut usize) {
        let node = "192.168.0.9".parse().expect("an address");
        match step {
            Step::Service(name, service) => self.object(&format!("s{name}"), service),
            Step::Slice(name, service, servers) => {
                let address = |n: &u8| match n {
                    0 => "10.96.0.1".to_owned(),
                    1 => "192.168.0.9".to_owned(),
                    n => format!("10.244.0.{n}"),
                };
                let endpoints: Vec<_> = servers
                    .iter()
                    .map(|n| json!({"addresses": [address(n)]}))
                    .collect();
                let more = json!({"endpoints": endpoints});
                self.slice(&format!("e{name}"), &format!("s{service}"), &more);
            }
            Step::NoService(name) => {
                let name = ObjectName::from_key(&format!("s{name}"));
                self.0.remove_service(&name);
            }
            Step::NoSlice(name) => self
                .0
                .remove_slice(&ObjectName::from_key(&format!("e{name}"))),
            Step::Node(true) => {
                *nodes += 1;
                self.0.add_node(node);
            }
            Step::Node(false) if *nodes > 0 => {
                *nodes -= 1;
                self.0.remove_node(node);
            }
            Step::Node(false) => {}
        }
        self.0.settle();
    }
}

proptest! {
    /// Whatever the earlier objects, the table and the refusals are those of the present ones.
    #[test]
    fn changes_come_to_the_same_as_a_list(steps in prop::collection::vec(step(), 1..40)) {
        let mut source = Source::new();
        let mut nodes = 0;
        let mut last = std::collections::BTreeMap::new();
        for step in &steps {
            source.step(step, &mut nodes);
            let about = match step {
                Step::Service(name, _) | Step::NoService(name) => (0, *name),
                Step::Slice(name, ..) | Step::NoSlice(name) => (1, *name),
                Step::Node(_) => continue,
            };
            last.insert(about, step.clone());
        }
        let mut fresh = Source::new();
        let mut none = 0;
        for _ in 0..nodes {
            fresh.step(&Step::Node(true), &mut none);
        }
        // The reverse order shows that order does not matter either.
        for step in last.values().rev() {
            fresh.step(step, &mut none);
        }
        prop_assert_eq!(source.0.table(), fresh.0.table());
        prop_assert_eq!(source.refused(), fresh.refused());
    }
}

#[test]
fn a_refused_object_that_a_list_does_not_name_is_forgotten() {
    let mut source = Source::new();
    let web = ObjectName::from_key("web");
    source.0.put_service(&web, Err("no JSON".into()));
    source.0.settle();
    assert_eq!(source.refused().len(), 1);
    source.0.begin(Kind::Service);
    source.0.complete(Kind::Service);
    source.0.settle();
    assert!(source.refused().is_empty());
}

#[test]
fn what_is_gone_takes_no_memory() {
    let node = "192.168.0.9".parse().expect("an address");
    let mut source = Source::web(&json!({"externalIPs": ["192.168.0.9"]}));
    source.service("other", &json!({}));
    source.0.add_node(node);
    source.endpoints(&[
        json!("10.244.1.2"),
        json!("10.96.0.1"),
        json!("203.0.113.1"),
    ]);
    for name in ["web", "other"] {
        source.0.remove_service(&ObjectName::from_key(name));
    }
    source.0.remove_slice(&ObjectName::from_key("web-1"));
    source.0.remove_node(node);
    source.0.settle();
    let nothing = Source::new();
    assert_eq!(format!("{:?}", source.0), format!("{:?}", nothing.0));
}
