//! The parts of a Node object that matter here, and flannel's form of a lease in a Node's
//! annotations.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::objects::Object;
use crate::lease::{Attributes, BackendData, SubnetKey, excerpt};
use crate::per_family::PerFamily;
use crate::store::Error;
use crate::store::entry::{Entry, Term};
use crate::store::news::ThisNode;

/// Longest text of a backend's data, in bytes; no backend needs more. A longer text is not stored,
/// and its lease is therefore refused.
const LONGEST: usize = 4096;

/// The label with a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The needed parts of a Node, so that thousands of Nodes take little memory.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Node {
    pub metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// See the API's `ObjectMeta`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// RFC 3339 in UTC with whole seconds, so that the order of texts is the order of times.
    creation_timestamp: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

/// See the API's `NodeAddress`.
#[derive(Clone, Debug, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Object for Node {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// The names of flannel's annotations.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// Completes the prefix as flannel does: `a.b` is `a.b/`, `a.b/c` is `a.b/c-`.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        let mut full = prefix.to_owned();
        if !full.contains('/') {
            full.push('/');
        }
        if !full.ends_with(['/', '-']) {
            full.push('-');
        }
        let plain = |text: &str| {
            text.bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        let is_valid = full.split_once('/').is_some_and(|(domain, rest)| {
            domain.contains('.')
                && domain
                    .split('.')
                    .all(|part| !part.is_empty() && plain(part))
                && plain(rest)
        });
        if is_valid {
            return Ok(Self { prefix: full });
        }
        Err(Error::Options(format!(
            "--kube-annotation-prefix {prefix:?}: want a domain in lower case such as \
             flannel.alpha.coreos.com, perhaps with a slash and a word"
        )))
    }

    fn of(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The annotations that publish these attributes. A family that this node does not use is not
    /// named, so that its annotations stay unchanged.
    pub fn annotations(&self, attributes: &Attributes) -> Value {
        let data = attributes.backend_data.as_ref().and_then(PerFamily::v4);
        let mut map = Map::new();
        let mut add = |name: &str, text: String| {
            map.insert(self.of(name), text.into());
        };
        add(
            "backend-data",
            data.map_or("null", BackendData::as_str).to_owned(),
        );
        let kind = attributes.backend_type.clone();
        add("backend-type", kind.unwrap_or_default());
        add("kube-subnet-manager", "true".to_owned());
        if let Some(address) = attributes.public_ip.v4() {
            add("public-ip", address.to_string());
        }
        Value::Object(map)
    }
}

impl Node {
    /// The server's count at the last change of the Node. Zero where the server has no such count.
    pub fn revision(&self) -> u64 {
        self.metadata.resource_version.parse().unwrap_or_default()
    }

    /// The time of creation.
    pub fn created(&self) -> &str {
        self.metadata
            .creation_timestamp
            .as_deref()
            .unwrap_or_default()
    }

    /// Pod subnets of the Node: one of IPv4, and perhaps one of IPv6. `None` where none is assigned
    /// yet.
    ///
    /// # Errors
    /// The fault of the subnets.
    pub fn subnet(&self) -> Result<Option<SubnetKey>, String> {
        let Spec {
            pod_cidr,
            pod_cidrs,
        } = &self.spec;
        let texts = match pod_cidrs.as_deref() {
            Some(texts) if !texts.is_empty() => texts,
            _ => pod_cidr.as_slice(),
        };
        let (mut v4, mut v6) = (None, None);
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let net: IpNet = text
                .parse()
                .map_err(|_| format!("podCIDR {} is not a subnet", excerpt(text)))?;
            let place = if net.addr().is_ipv4() {
                &mut v4
            } else {
                &mut v6
            };
            if place.replace(net.trunc()).is_some() {
                return Err("it has two podCIDRs of one address family".to_owned());
            }
        }
        match (v4, v6) {
            (None, Some(v6)) => Err(format!("podCIDR {v6} is IPv6 alone; the overlay is IPv4")),
            (v4, v6) => Ok(PerFamily::new(v4, v6).map(SubnetKey)),
        }
    }

    /// Whether the Node takes part in the overlay.
    pub fn is_member(&self, names: &Names) -> bool {
        self.annotation(names, "kube-subnet-manager") == Some("true")
    }

    /// The address that an operator sets as this node's own (`node-public-ip`), if it is a valid
    /// one.
    pub fn node_public_ip(&self, names: &Names) -> Option<IpAddr> {
        self.annotation(names, "node-public-ip")?.parse().ok()
    }

    /// The address that an operator sets for other nodes to send to (`public-ip-overwrite`), if it
    /// is a valid one.
    fn overwrite(&self, names: &Names) -> Option<Ipv4Addr> {
        self.annotation(names, "public-ip-overwrite")?.parse().ok()
    }

    /// The node as an entry under `key`, whose value is the JSON that etcd would hold. Malformed
    /// text is passed on unchanged, because the judge of leases names it. With `v4_only` the node's
    /// attributes for IPv6 are left out.
    pub fn entry(&self, names: &Names, key: String, v4_only: bool) -> Entry {
        let text = |name| self.annotation(names, name);
        let data = |text: &str| match serde_json::from_str(text) {
            Ok(value) if text.len() <= LONGEST => value,
            _ => Value::String(excerpt(text)),
        };
        let mut value = Map::new();
        let mut add = |name: &str, field: Option<Value>| {
            if let Some(field) = field {
                value.insert(name.to_owned(), field);
            }
        };
        let short = |text: &str| Value::String(excerpt(text));
        let v6 = |name| text(name).filter(|_| !v4_only);
        add("PublicIP", text("public-ip").map(short));
        add(
            "PublicIPv6",
            Some(v6("public-ipv6").map_or(json!(null), short)),
        );
        add("BackendType", text("backend-type").map(short));
        add("BackendData", text("backend-data").map(data));
        add("BackendV6Data", v6("backend-v6-data").map(data));
        Entry {
            node: Some(self.metadata.name.clone()),
            public_ip: self.overwrite(names),
            ..Entry::new(
                key,
                Value::Object(value).to_string(),
                self.revision(),
                Term::Reserved,
            )
        }
    }

    /// The node's place, and the addresses at which its node ports are served: kube-proxy uses the
    /// addresses of one type, and in its nftables mode no others.
    pub fn this_node(&self) -> ThisNode {
        let zone = self.metadata.labels.as_ref().and_then(|it| it.get(ZONE));
        let of = |kind: &str| -> Vec<IpAddr> {
            let addresses = self.status.addresses.iter().flatten();
            let addresses = addresses.filter(|it| it.kind == kind);
            addresses.filter_map(|it| it.address.parse().ok()).collect()
        };
        let internal = of("InternalIP");
        let is_inside = !internal.is_empty();
        ThisNode {
            node: self.metadata.name.clone(),
            zone: zone.filter(|zone| !zone.is_empty()).cloned(),
            addresses: Some(if is_inside {
                internal
            } else {
                of("ExternalIP")
            }),
        }
    }

    fn annotation(&self, names: &Names, name: &str) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        annotations.get(&names.of(name)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("flannel.alpha.coreos.com").expect("flannel's own prefix")
    }

    fn node(json: &Value) -> Node {
        serde_json::from_value(json.clone()).expect("a Node")
    }

    const DATA: &str = r#"{"VNI":1,"VtepMAC":"02:56:7c:28:3e:59"}"#;

    /// One of flannel's Nodes, as `kubectl get node -o json` shows it.
    fn flannels() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "n1", "uid": "u", "resourceVersion": "77",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "annotations": {
                    "flannel.alpha.coreos.com/backend-data": DATA,
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/public-ip": "192.168.1.26",
                },
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
            "status": {"conditions": []},
        })
    }

    #[test]
    fn flannels_annotations_are_read_and_written_to_the_byte() {
        let node = node(&flannels());
        assert!(node.is_member(&names()));
        let key = node.subnet().expect("subnets").expect("assigned");
        let entry = node.entry(&names(), key.to_string(), false);
        let lease = entry.lease().expect("a lease");
        assert_eq!(lease.key(), key);
        assert_eq!(
            lease.attributes.to_json().expect("JSON").as_bytes(),
            entry.value
        );
        let written = names().annotations(&lease.attributes);
        assert_eq!(written, flannels()["metadata"]["annotations"]);
    }

    #[test]
    fn both_families_are_read() {
        let mut json = flannels();
        json["spec"]["podCIDRs"] = json!(["fd00:1::/64", "10.244.1.0/24"]);
        let annotations = &mut json["metadata"]["annotations"];
        annotations["flannel.alpha.coreos.com/public-ipv6"] = json!("fd01::1");
        annotations["flannel.alpha.coreos.com/backend-v6-data"] = json!(DATA);
        let node = node(&json);
        let key = node.subnet().expect("subnets").expect("assigned");
        assert_eq!(key.to_string(), "10.244.1.0-24&fd00:1::-64");
        let entry = node.entry(&names(), key.to_string(), false);
        let attributes = entry.lease().expect("a lease").attributes;
        assert_eq!(attributes.public_ip.v6().copied(), "fd01::1".parse().ok());
        assert!(attributes.backend_data.expect("data").v6().is_some());
        let own = node.entry(&names(), key.to_string(), true);
        let attributes = own.lease().expect("a lease").attributes;
        assert_eq!(attributes.public_ip.v6(), None);
        assert_eq!(attributes.backend_data.expect("data").v6(), None);
    }

    #[test]
    fn pod_cidrs_come_late_alone_or_wrong() {
        let subnet = |spec: Value| node(&json!({"metadata": {}, "spec": spec})).subnet();
        assert_eq!(subnet(json!({})), Ok(None));
        assert_eq!(subnet(json!({"podCIDR": "", "podCIDRs": null})), Ok(None));
        let v4 = subnet(json!({"podCIDR": "10.1.2.0/24"})).expect("subnets");
        assert_eq!(
            v4.map(|key| key.to_string()).as_deref(),
            Some("10.1.2.0-24")
        );
        for wrong in [
            json!(["fd00::/64"]),
            json!(["10.1.2.0/24", "10.1.3.0/24"]),
            json!(["10.1.2.0"]),
        ] {
            assert!(subnet(json!({"podCIDRs": wrong})).is_err());
        }
    }

    #[test]
    fn nonsense_is_refused_by_whoever_judges_leases() {
        let deep = "[".repeat(10_000);
        let long = format!("[{}0]", "0,".repeat(LONGEST));
        for (name, text) in [
            ("public-ip", "nonsense"),
            ("public-ip", "fd00::1"),
            ("public-ip", ""),
        ] {
            let mut json = flannels();
            json["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] =
                json!(text);
            let entry = node(&json).entry(&names(), "10.244.1.0-24".into(), false);
            assert!(entry.lease().is_err(), "{name}: {text}");
        }
        for text in ["", "{", &deep, &long] {
            let mut json = flannels();
            json["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = json!(text);
            let entry = node(&json).entry(&names(), "10.244.1.0-24".into(), false);
            assert!(entry.value.len() < 1000);
            let data = entry.lease().expect("readable").attributes.backend_data;
            assert!(
                data.is_some_and(|data| data.first().value().is_string()),
                "{text:.10}"
            );
        }
    }

    #[test]
    fn the_prefix_is_completed_and_checked_as_flannel_does() {
        for (given, full) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/x"),
            ("org.com/foo", "org.com/foo-x"),
            ("org.com/foo-", "org.com/foo-x"),
            ("org.com/", "org.com/x"),
        ] {
            assert_eq!(Names::new(given).expect(given).of("x"), full);
        }
        for wrong in ["", "com", "a.b/c/d", "A.com", "a.b/C", "a..b", "a b.c"] {
            assert!(Names::new(wrong).is_err(), "{wrong}");
        }
    }
}
