//! Names of a cluster's Services and pods, as in Kubernetes' specification of DNS (1.1.0), served
//! by dnsmasq behind a Service. The test gives dnsmasq the API server's data, because the usual DNS
//! server of clusters is not in Debian.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{CLUSTER_DNS, CLUSTER_DOMAIN, Cluster, pod};

/// The server's pod and its Service, which has a web page too.
const SERVER: &str = "names";
/// The command of the pod: dnsmasq restarts whenever its data changes.
const SERVE: &str = "echo names > /www/index.html; httpd -p 80 -h /www; touch /tmp/records
    while :; do
        dnsmasq --keep-in-foreground --user=root --group=root --pid-file --no-resolv --no-hosts \
            --log-facility=- --conf-file=/tmp/records || sleep 1
    done";
const TELL: &str = "cat > /tmp/new && mv /tmp/new /tmp/records \
    && { busybox killall -q dnsmasq || true; }";
/// Interval of the requests to the API server while its changes are followed.
const PERIOD: Duration = Duration::from_millis(500);
/// Type of a CNAME record (RFC 1035, section 3.2.2).
const CNAME: u16 = 5;

/// A DNS server for the cluster's pods, at [`CLUSTER_DNS`].
pub struct Names<'a> {
    cluster: &'a Cluster,
    /// The data that the server was given last.
    told: String,
}

impl<'a> Names<'a> {
    /// Starts the server on node `number`, with the present data.
    ///
    /// # Errors
    /// When the server's pod does not become Ready.
    pub fn serve(cluster: &'a Cluster, number: usize) -> Result<Self> {
        let mut server = pod(SERVER, number, &json!([]));
        server["spec"]["containers"][0]["command"] = json!(["sh", "-c", SERVE]);
        let port = |name: &str, protocol: &str, port: u16| -> Value {
            json!({"name": name, "protocol": protocol, "port": port})
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVER},
            "spec": {
                "clusterIP": CLUSTER_DNS,
                "selector": {"app": SERVER},
                "ports": [
                    port("dns", "UDP", 53), port("dns-tcp", "TCP", 53), port("web", "TCP", 80),
                ],
            },
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [server, service]});
        cluster.apply(&list.to_string())?;
        cluster.wait_pod_ready(SERVER)?;
        let mut names = Self {
            cluster,
            told: String::new(),
        };
        names.update()?;
        Ok(names)
    }

    /// Gives the server the API server's present data.
    ///
    /// # Errors
    /// When one of the two does not answer.
    pub fn update(&mut self) -> Result<()> {
        let kinds = "services,endpoints,pods";
        let known = self
            .cluster
            .json(["get", kinds, "--all-namespaces"])
            .context("what has a name")?;
        let now = records(&known);
        if now != self.told {
            let words = ["exec", "--stdin", SERVER, "--", "sh", "-c", TELL];
            self.cluster.kubectl_with(words, &now)?;
            self.told = now;
        }
        Ok(())
    }

    /// Updates the server until `done`.
    ///
    /// # Errors
    /// When the last update fails.
    pub fn follow(&mut self, done: &AtomicBool) -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            // The next update may succeed.
            let _ = self.update();
            thread::sleep(PERIOD);
        }
        self.update()
    }
}

/// The lines of dnsmasq's configuration for a list of Services, Endpoints and pods.
fn records(known: &Value) -> String {
    let mut lines = format!("local=/{CLUSTER_DOMAIN}/\n");
    let mut add = |line: String| {
        lines += &line;
        lines.push('\n');
    };
    let items = list(&known["items"]);
    for item in items {
        let meta = &item["metadata"];
        let (Some(name), Some(space)) = (meta["name"].as_str(), meta["namespace"].as_str()) else {
            continue;
        };
        let service = format!("{name}.{space}.svc.{CLUSTER_DOMAIN}");
        match item["kind"].as_str() {
            Some("Service") => of_service(item, &service, &mut add),
            Some("Endpoints") if is_headless(items, name, space) => {
                of_endpoints(item, &service, &mut add);
            }
            Some("Pod") => {
                if let Some(address) = item["status"]["podIP"].as_str() {
                    let dashed = address.replace('.', "-");
                    add(format!(
                        "host-record={dashed}.{space}.pod.{CLUSTER_DOMAIN},{address}"
                    ));
                }
            }
            _ => {}
        }
    }
    lines
}

/// The Service's address under its name, or the name that the Service stands for; and its ports.
fn of_service(item: &Value, name: &str, add: &mut impl FnMut(String)) {
    let spec = &item["spec"];
    // A Service that was of this type before may still have the name.
    if spec["type"] == "ExternalName"
        && let Some(target) = spec["externalName"].as_str()
    {
        // dnsmasq follows a CNAME only to names that it serves itself.
        add(if target.ends_with(CLUSTER_DOMAIN) {
            format!("cname={name},{target}")
        } else {
            format!("dns-rr={name},{CNAME},{}", in_hex(target))
        });
        return;
    }
    let address = spec["clusterIP"].as_str();
    let Some(address) = address.and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
        return;
    };
    add(format!("host-record={name},{address}"));
    for port in list(&spec["ports"]) {
        of_port(port, name, name, add);
    }
}

/// Every server of a Service without a cluster address.
fn of_endpoints(item: &Value, name: &str, add: &mut impl FnMut(String)) {
    for subset in list(&item["subsets"]) {
        for server in list(&subset["addresses"]) {
            let Some(address) = server["ip"].as_str() else {
                continue;
            };
            let own = server["hostname"]
                .as_str()
                .map_or_else(|| address.replace('.', "-"), ToOwned::to_owned);
            add(format!("host-record={own}.{name},{name},{address}"));
            for port in list(&subset["ports"]) {
                of_port(port, name, &format!("{own}.{name}"), add);
            }
        }
    }
}

/// The records of a named port.
fn of_port(port: &Value, name: &str, target: &str, add: &mut impl FnMut(String)) {
    let (Some(port_name), Some(number)) = (port["name"].as_str(), port["port"].as_u64()) else {
        return;
    };
    let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
    add(format!(
        "srv-host=_{port_name}._{protocol}.{name},{target},{number}"
    ));
}

fn is_headless(items: &[Value], name: &str, space: &str) -> bool {
    items.iter().any(|item| {
        item["kind"] == "Service"
            && item["metadata"]["name"] == name
            && item["metadata"]["namespace"] == space
            && item["spec"]["clusterIP"] == "None"
    })
}

/// A name in its form in a packet (RFC 1035, section 3.1), in hexadecimal digits.
fn in_hex(name: &str) -> String {
    let mut hex = String::new();
    for label in name.trim_end_matches('.').split('.') {
        // Writing to a string does not fail.
        let _ = write!(hex, "{:02x}", label.len());
        for byte in label.bytes() {
            let _ = write!(hex, "{byte:02x}");
        }
    }
    hex + "00"
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, more: &Value) -> Value {
        let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": "ns"}});
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    }

    #[test]
    fn services_endpoints_and_pods_have_names() {
        let port = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
        let known = json!({"items": [
            object("Service", "plain", &json!({"spec": {"clusterIP": "10.96.0.7", "ports": port}})),
            object("Service", "bare", &json!({"spec": {"clusterIP": "None", "ports": port}})),
            object("Service", "far", &json!({
                "spec": {"type": "ExternalName", "externalName": "a.bc"},
            })),
            object("Service", "back", &json!({
                "spec": {"clusterIP": "10.96.0.8", "externalName": "a.bc"},
            })),
            object("Endpoints", "plain", &json!({"subsets": [
                {"addresses": [{"ip": "10.244.1.2"}], "ports": port},
            ]})),
            object("Endpoints", "bare", &json!({"subsets": [
                {
                    "addresses": [{"ip": "10.244.1.2"}, {"ip": "10.244.2.3", "hostname": "own"}],
                    "ports": port,
                },
            ]})),
            object("Pod", "one", &json!({"status": {"podIP": "10.244.1.2"}})),
            object("Pod", "waiting", &json!({"status": {}})),
        ]});
        let expected = "\
local=/cluster.local/
host-record=plain.ns.svc.cluster.local,10.96.0.7
srv-host=_http._tcp.plain.ns.svc.cluster.local,plain.ns.svc.cluster.local,80
dns-rr=far.ns.svc.cluster.local,5,016102626300
host-record=back.ns.svc.cluster.local,10.96.0.8
host-record=10-244-1-2.bare.ns.svc.cluster.local,bare.ns.svc.cluster.local,10.244.1.2
srv-host=_http._tcp.bare.ns.svc.cluster.local,10-244-1-2.bare.ns.svc.cluster.local,80
host-record=own.bare.ns.svc.cluster.local,bare.ns.svc.cluster.local,10.244.2.3
srv-host=_http._tcp.bare.ns.svc.cluster.local,own.bare.ns.svc.cluster.local,80
host-record=10-244-1-2.ns.pod.cluster.local,10.244.1.2
";
        assert_eq!(records(&known), expected);
    }
}
