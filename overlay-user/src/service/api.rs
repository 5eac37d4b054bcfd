//! Services and EndpointSlices as the Kubernetes API writes them, in every store: only the fields
//! that are needed, and nothing judged yet.
//!
//! Numbers and addresses are taken as they come, so that one object that makes no sense is refused
//! by name, and does not end a watch of all others.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The label of an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Labels of objects that kube-proxy leaves to others, whatever their values.
pub const LEFT_TO_OTHERS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];

/// What both kinds begin with; see the API's `ObjectMeta`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name, unique in its namespace.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Namespace.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// The API server's count at the last change.
    #[serde(deserialize_with = "or_default")]
    pub resource_version: String,
    /// RFC 3339 in UTC with whole seconds: the order of texts is that of moments.
    #[serde(deserialize_with = "or_default")]
    pub creation_timestamp: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// See the API's `Service` (v1).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name and labels.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// The specification by the owner.
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    /// The state that controllers have written.
    #[serde(deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// See the API's `ServiceSpec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` where nothing is said.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// The first of `cluster_ips`; `None` is the word for a headless Service.
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: String,
    /// One address of each family in use.
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// Addresses that other systems route to nodes.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    /// `ClientIP` or `None`.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity: String,
    /// How long affinity lasts.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: SessionAffinityConfig,
    /// `Local` or `Cluster`; absent before Kubernetes 1.21.
    #[serde(deserialize_with = "or_default")]
    pub internal_traffic_policy: String,
    /// Sources from which a load balancer's address accepts packets; any where there is none.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// See the API's `ServicePort`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name, by which EndpointSlices know the port.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `TCP` where nothing is said.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    /// The Service's port.
    #[serde(deserialize_with = "or_default")]
    pub port: i64,
    /// The port of every node; zero for none.
    #[serde(deserialize_with = "or_default")]
    pub node_port: i64,
}

/// See the API's `SessionAffinityConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// The one kind there is.
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: ClientIp,
}

/// See the API's `ClientIPConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    /// Seconds; three hours where nothing is said.
    pub timeout_seconds: Option<i64>,
}

/// See the API's `ServiceStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What a load balancer's controller wrote.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancer,
}

/// See the API's `LoadBalancerStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// The addresses of the load balancer.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// See the API's `LoadBalancerIngress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// An address; empty where it is known by a name.
    #[serde(deserialize_with = "or_default")]
    pub ip: String,
    /// `Proxy` where packets from inside must pass the load balancer as well; else `VIP`.
    #[serde(deserialize_with = "or_default")]
    pub ip_mode: String,
}

/// See the API's `EndpointSlice`, `discovery.k8s.io/v1` and `v1beta1` in one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name and labels, one of which names the Service.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(deserialize_with = "or_default")]
    pub address_type: String,
    /// Endpoints, each of which has all ports of the slice.
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort>,
}

/// See the API's `Endpoint`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses, of which kube-proxy uses the first.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// The state of the endpoint.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Conditions,
    /// The node that it is on.
    pub node_name: Option<String>,
    /// Labels of its node (v1beta1, before there was `node_name`).
    #[serde(deserialize_with = "or_default")]
    pub topology: BTreeMap<String, String>,
    /// The consumers that the endpoint is meant for.
    #[serde(deserialize_with = "or_default")]
    pub hints: Hints,
}

/// See the API's `EndpointConditions`. What is absent is not known.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Whether the endpoint takes new connections.
    pub ready: Option<bool>,
    /// Whether the endpoint would take new connections if it were not about to end.
    pub serving: Option<bool>,
    /// Whether the endpoint is about to end.
    pub terminating: Option<bool>,
}

/// See the API's `EndpointHints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Zones whose nodes should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<Named>,
    /// Nodes that should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<Named>,
}

/// See the API's `ForZone` and `ForNode`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// The name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}

/// See the API's `EndpointPort`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The name of the Service's port.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `TCP` where nothing is said.
    #[serde(deserialize_with = "or_default")]
    pub protocol: String,
    /// The number. Without one it stands for all ports, which kube-proxy does not serve.
    pub port: Option<i64>,
}

/// Go writes an absent list as null, and takes null for what is absent, whatever the type.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The object with null in the place of each member.
    fn nothing(object: &Value) -> Value {
        let members = object.as_object().expect("an object").iter();
        members
            .map(|(key, _)| (key.clone(), Value::Null))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    #[test]
    fn null_is_taken_as_absent() {
        let metadata = json!({
            "name": "", "namespace": "", "resourceVersion": "", "creationTimestamp": "",
            "labels": {},
        });
        let port = json!({"name": "", "protocol": "", "port": 0, "nodePort": 0});
        let spec = json!({
            "type": "", "clusterIP": "", "clusterIPs": [], "externalIPs": [], "ports": [],
            "sessionAffinity": "", "sessionAffinityConfig": {}, "internalTrafficPolicy": "",
            "loadBalancerSourceRanges": [],
        });
        let service = |metadata, spec, status| {
            let object = json!({"metadata": metadata, "spec": spec, "status": status});
            serde_json::from_value::<Service>(object).map(drop)
        };
        let ports = json!({"ports": [nothing(&port)]});
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": null, "ipMode": null}]}});
        let client = json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": null}}});
        for (metadata, spec, status) in [
            (Value::Null, Value::Null, Value::Null),
            (
                nothing(&metadata),
                nothing(&spec),
                json!({"loadBalancer": null}),
            ),
            (json!({}), ports, ingress),
            (json!({}), client, json!({})),
        ] {
            service(metadata, spec, status).expect("a Service");
        }
        let endpoint = json!({
            "addresses": null, "conditions": null, "nodeName": null, "topology": null,
            "hints": {"forZones": [{"name": null}], "forNodes": null},
        });
        let conditions = json!({"conditions": {"ready": null, "serving": null}});
        let slice = json!({
            "metadata": null, "addressType": null, "endpoints": [endpoint, conditions],
            "ports": [{"name": null, "protocol": null, "port": null}],
        });
        serde_json::from_value::<EndpointSlice>(slice).expect("an EndpointSlice");
    }
}
