//! One test for each rule of kube-proxy's, and for each rule of ours about hostile Services.

mod changes;
mod choice;
mod hostile;
mod rules;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::per_family::PerFamily;

const NODE: &str = "192.168.0.1";

fn here() -> Locality {
    Locality {
        node: "n1".into(),
        zone: Some("a".into()),
        addresses: vec![NODE.parse().expect("an address")],
        pods: PerFamily::Both {
            v4: "10.244.0.0/16".parse().expect("a network"),
            v6: "fd00:244::/48".parse().expect("a network"),
        },
    }
}

/// A catalog that gets objects as JSON.
struct Source(Catalog);

impl Source {
    fn new() -> Self {
        Self(Catalog::new(here()))
    }

    /// The Service `default/web` on port 80, with more of a specification.
    fn web(spec: &Value) -> Self {
        let mut source = Self::new();
        source.service("web", spec);
        source
    }

    fn service(&mut self, name: &str, more: &Value) {
        let mut spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        merge(&mut spec, more);
        self.object(name, &json!({"spec": spec}));
    }

    fn object(&mut self, name: &str, service: &Value) {
        let service = serde_json::from_value(service.clone()).expect("a Service");
        let name = ObjectName::from_key(name);
        self.0.put_service(&name, Ok(&service));
        self.0.settle();
    }

    fn slice(&mut self, name: &str, service: &str, more: &Value) {
        let mut slice = json!({
            "metadata": {
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
        });
        merge(&mut slice, more);
        let slice = serde_json::from_value(slice).expect("a slice");
        let name = ObjectName::from_key(name);
        self.0.put_slice(&name, Ok(&slice));
        self.0.settle();
    }

    /// Endpoints of `web`, each an address or an object.
    fn endpoints(&mut self, endpoints: &[Value]) {
        let endpoints = endpoints.iter().map(|it| match it {
            Value::String(address) => json!({"addresses": [address]}),
            object => object.clone(),
        });
        self.slice(
            "web-1",
            "web",
            &json!({"endpoints": endpoints.collect::<Vec<_>>()}),
        );
    }

    /// The servers of a frontend such as `10.96.0.1:80/TCP`; `None` if the frontend is left to
    /// kube-proxy.
    fn servers(&self, frontend: &str) -> Option<Vec<String>> {
        let serving = self.serving(frontend)?;
        Some(serving.servers.iter().map(ToString::to_string).collect())
    }

    fn serving(&self, frontend: &str) -> Option<&Serving> {
        let mut table = self.0.table().iter();
        let found = table.find(|(known, _)| known.to_string() == frontend);
        found.map(|(_, serving)| serving.as_ref())
    }

    fn frontends(&self) -> Vec<String> {
        let frontends: BTreeSet<_> = self.0.table().iter().map(|(it, _)| *it).collect();
        frontends.iter().map(ToString::to_string).collect()
    }

    fn refused(&self) -> Vec<String> {
        let refused = self.0.refused().iter();
        let lines = refused.flat_map(|(subject, refusals)| {
            refusals.iter().map(move |it| format!("{subject}: {it}"))
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    }
}

fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().expect("an object") {
        into[key] = value.clone();
    }
}

fn some(servers: &[&str]) -> Option<Vec<String>> {
    Some(servers.iter().map(|it| (*it).to_owned()).collect())
}

const WEB: &str = "10.96.0.1:80/TCP";
