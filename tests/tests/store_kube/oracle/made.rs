//! Random Services and EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::super::server::Server;

/// The invented Services.
#[derive(Default)]
pub struct Made {
    pub services: BTreeMap<String, Value>,
    slices: BTreeMap<String, Value>,
    /// Prefixes of frontends that are left to kube-proxy.
    pub left: BTreeSet<String>,
    count: usize,
}

impl Made {
    pub fn create(&mut self, server: &Server, random: &mut StdRng, count: usize) {
        let mut balanced = Vec::new();
        let mut items = Vec::new();
        for _ in 0..count {
            self.count += 1;
            let number = self.count;
            let name = format!("s{number}");
            let service = service(random, &name, number);
            if service["spec"]["type"] == "LoadBalancer" {
                balanced.push((name.clone(), number));
            }
            items.push(service.clone());
            for part in 0..random.random_range(0..4) {
                let slice = slice(random, &format!("{name}-{part}"), &name, &service);
                items.push(slice.clone());
                self.slices.insert(format!("{name}-{part}"), slice);
            }
            self.services.insert(name, service);
        }
        feed(server, "create", &items);
        for (name, number) in balanced {
            let address = format!("198.51.{}.{}", number / 250, number % 250 + 1);
            let service = &self.services[&name];
            if service["spec"]["loadBalancerSourceRanges"].is_array() {
                self.left.insert(format!("{address}:"));
            }
            let known = server.kubectl(&["get", "service", &name, "-o", "json"]);
            let mut known: Value = serde_json::from_str(&known).expect("JSON");
            known["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
            let path = format!("/api/v1/namespaces/default/services/{name}/status");
            server.feed(&["replace", "--raw", &path, "-f", "-"], &known.to_string());
        }
    }

    /// Deletes some Services and slices, changes the endpoints of others, and makes new ones.
    pub fn change(&mut self, server: &Server, random: &mut StdRng) {
        let mut gone = Vec::new();
        self.services.retain(|name, _| {
            let stays = random.random_range(0..10) > 0;
            if !stays {
                gone.push(format!("service/{name}"));
            }
            stays
        });
        self.slices.retain(|name, _| {
            let stays = random.random_range(0..10) > 0;
            if !stays {
                gone.push(format!("endpointslice/{name}"));
            }
            stays
        });
        let delete = ["delete", "--wait=false"].into_iter();
        let delete: Vec<&str> = delete.chain(gone.iter().map(String::as_str)).collect();
        server.kubectl(&delete);
        let mut changed = Vec::new();
        for (name, known) in &mut self.slices {
            let owner = known["metadata"]["labels"]["kubernetes.io/service-name"].clone();
            let owner = owner.as_str().unwrap_or_default();
            let Some(service) = self.services.get(owner).filter(|_| random.random_bool(0.3)) else {
                continue;
            };
            *known = slice(random, name, owner, service);
            changed.push(known.clone());
        }
        feed(server, "replace", &changed);
        self.create(server, random, self.services.len() / 10);
    }
}

fn feed(server: &Server, verb: &str, items: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    server.feed(&[verb, "-f", "-"], &list.to_string());
}

fn service(random: &mut StdRng, name: &str, number: usize) -> Value {
    let ports = random.random_range(1..4);
    let transports = ["TCP", "TCP", "UDP", "UDP", "SCTP"];
    let ports = (0..ports).map(|index| {
        let protocol = transports[random.random_range(0..transports.len())];
        let name = if ports == 1 {
            String::new()
        } else {
            format!("p{index}")
        };
        json!({"name": name, "port": 1000 + index, "protocol": protocol})
    });
    let ports: Vec<_> = ports.collect();
    let mut spec = json!({"ports": ports});
    match random.random_range(0..20) {
        0 => spec["clusterIP"] = "None".into(),
        1 => {
            spec["type"] = "ExternalName".into();
            spec["externalName"] = "example.com".into();
        }
        2..6 => spec["type"] = "NodePort".into(),
        6 => {
            spec["type"] = "LoadBalancer".into();
            // This version accepts only one protocol for a load balancer.
            let protocol = spec["ports"][0]["protocol"].clone();
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                port["protocol"] = protocol.clone();
            }
            if random.random_bool(0.3) {
                spec["loadBalancerSourceRanges"] = json!(["203.0.113.0/24"]);
            }
        }
        _ => {}
    }
    if spec["type"] != "ExternalName" && random.random_bool(0.25) {
        spec["externalIPs"] = json!([format!("203.0.{}.{}", number / 250, number % 250 + 1)]);
    }
    let outside = spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
    if outside && random.random_bool(0.4) {
        spec["externalTrafficPolicy"] = "Local".into();
    }
    if spec["type"] != "ExternalName" && random.random_bool(0.3) {
        let seconds = random.random_range(1..20_000);
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    let mut labels = json!({});
    if random.random_range(0..20) == 0 {
        labels["service.kubernetes.io/service-proxy-name"] = "other".into();
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": spec,
    })
}

/// Slices of one Service have the same ports for shared addresses, or no shared addresses, because
/// this version of kube-proxy makes a random choice of the port number where slices disagree about
/// one address.
fn slice(random: &mut StdRng, name: &str, service: &str, of: &Value) -> Value {
    let number = |text: &str| text.parse().unwrap_or(0);
    let part: u16 = name.rsplit('-').next().map_or(0, number);
    let is_shared = number(service.trim_start_matches('s')) % 2 == 0;
    let ports = of["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let ports: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            let protocol = match random.random_range(0..20) {
                0 => return None,
                1 => "TCP".into(),
                _ => port["protocol"].clone(),
            };
            let number = if is_shared {
                port["port"].clone()
            } else {
                json!(random.random_range(1..5) * 8000)
            };
            Some(json!({"name": port["name"], "port": number, "protocol": protocol}))
        })
        .collect();
    let endpoints: Vec<_> = (0..random.random_range(0..6))
        .map(|_| {
            let node = random.random_range(1..4);
            let first = if is_shared { 2 } else { 2 + 10 * part };
            // The range is small, so that some addresses occur twice.
            let host = random.random_range(first..first + 10);
            let address = format!("10.244.{node}.{host}");
            let mut endpoint = json!({
                "addresses": [address],
                "topology": {"kubernetes.io/hostname": format!("n{node}")},
            });
            match random.random_range(0..5) {
                0 => endpoint["conditions"] = json!({"ready": false}),
                1 => {}
                _ => endpoint["conditions"] = json!({"ready": true}),
            }
            endpoint
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}
