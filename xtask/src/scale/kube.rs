//! Nodes of a real API server, written and counted through `kubectl proxy`. Agents connect to the
//! API server themselves, over TLS.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use overlay_tests::http::{self, HttpAnswer};
use overlay_tests::kubernetes::{ApiServer, bin_dir};
use overlay_tests::{Lab, Namespace};
use serde_json::{Value, json};

use super::leases::{self, Invented, LeaseChange};
use super::metrics;

const NODES: &str = "/api/v1/nodes";
/// Requests for Nodes that only this program makes during the measurement.
const OURS: [&str; 3] = ["POST", "PUT", "DELETE"];
/// Number of images that a kubelet reports of its node, which are most of a Node's bytes.
const IMAGES: usize = 50;

/// The network configuration that the agent reads, in its node's `/run`.
const NETWORK: &str = "/run/net-conf.json";
const KUBECONFIG: &str = "/run/kubeconfig";

/// The API server.
#[derive(Clone)]
pub struct Kube {
    pub namespace: Namespace,
    /// An administrator's configuration.
    kubeconfig: PathBuf,
}

/// The server's own counts of what watches of Nodes were sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub events: u64,
    pub bytes: u64,
}

impl Kube {
    /// Starts the API server, and makes the Node of the lab's one node.
    pub fn start(lab: &Lab) -> Result<Self> {
        let kubeconfig = ApiServer::start(lab)?.kubeconfig();
        let configuration = fs::read_to_string(&kubeconfig)
            .with_context(|| format!("read {}", kubeconfig.display()))?;
        let node = lab.node(1).namespace();
        for (path, content) in [
            (NETWORK, leases::network().to_string()),
            (KUBECONFIG, configuration),
        ] {
            node.inside(|| fs::write(path, content))?
                .with_context(|| format!("write {path}"))?;
        }
        let kube = Self {
            namespace: lab.namespace("store")?,
            kubeconfig,
        };
        let real = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": lab.node(1).name()},
            "spec": leases::real_range(),
        });
        kube.expect(201, kube.ask("POST", NODES, &real.to_string())?)?;
        Ok(kube)
    }

    pub fn agent_flags() -> Vec<String> {
        vec![
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={KUBECONFIG}"),
            format!("--net-config-path={NETWORK}"),
        ]
    }

    pub fn fill(&self, leases: &[Invented]) -> Result<()> {
        for lease in leases {
            self.write(LeaseChange::Is(*lease))?;
        }
        Ok(())
    }

    pub fn write(&self, change: LeaseChange) -> Result<()> {
        match change {
            LeaseChange::Is(lease) => {
                let (one, node) = (path(lease), node(lease).to_string());
                let answer = self.ask("PUT", &one, &node)?;
                if answer.status != 404 {
                    return self.expect(200, answer);
                }
                self.expect(201, self.ask("POST", NODES, &node)?)
            }
            LeaseChange::Gone(lease) => self.expect(200, self.ask("DELETE", &path(lease), "")?),
        }
    }

    /// The server's own count of requests for Nodes and events. A watch is one request.
    pub fn requests(&self) -> Result<u64> {
        let answer = self.ask("GET", "/metrics", "")?;
        Ok(requests(&answer.body))
    }

    /// What watches of Nodes were sent since the start of the server.
    pub fn sent(&self) -> Result<Sent> {
        let metrics = self.ask("GET", "/metrics", "")?.body;
        let of_nodes =
            |counter| metrics::total(&metrics, counter, |labels| labels.contains("kind=\"Node\""));
        Ok(Sent {
            events: of_nodes("apiserver_watch_events_total"),
            bytes: of_nodes("apiserver_watch_events_sizes_sum"),
        })
    }

    /// The number of watches of Nodes.
    pub fn watches(&self) -> Result<u64> {
        let metrics = self.ask("GET", "/metrics", "")?.body;
        let is_watch = |labels: &str| {
            labels.contains("resource=\"nodes\"") && labels.contains("verb=\"WATCH\"")
        };
        Ok(metrics::total(
            &metrics,
            "apiserver_longrunning_gauge",
            is_watch,
        ))
    }

    /// A kubectl with an administrator's rights, to be started in the server's namespace.
    pub fn kubectl(&self) -> Command {
        let mut command = self.namespace.command(bin_dir().join("kubectl"));
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<HttpAnswer> {
        self.namespace
            .inside(|| http::send(ApiServer::PROXY, method, path, body))?
    }

    fn expect(&self, status: u16, answer: HttpAnswer) -> Result<()> {
        ensure!(
            answer.status == status,
            "the API server answers {}: {}",
            answer.status,
            answer.body
        );
        Ok(())
    }
}

fn path(lease: Invented) -> String {
    format!("{NODES}/{}", name(lease))
}

fn name(lease: Invented) -> String {
    format!("made-up-{}", lease.number)
}

/// A Node with the fields of a kubelet and of flannel, including a kubelet's usual report.
fn node(lease: Invented) -> Value {
    let images = (0..IMAGES).map(|number| {
        let name = format!("registry.example/some/image-{number}");
        json!({"names": [format!("{name}@sha256:{:064x}", number), format!("{name}:v1.2.{number}")],
               "sizeBytes": 12_345_678})
    });
    let annotation = |name: &str| format!("flannel.alpha.coreos.com/{name}");
    let range = format!("{}/24", lease.subnet());
    let backend = json!({"VNI": 1, "VtepMAC": leases::text(lease.mac())});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name(lease),
            "annotations": {
                annotation("backend-data"): backend.to_string(),
                annotation("backend-type"): "vxlan",
                annotation("kube-subnet-manager"): "true",
                annotation("public-ip"): lease.vtep(),
            },
        },
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": lease.vtep()}],
            "images": images.collect::<Value>(),
        },
    })
}

/// The sum of `apiserver_request_total` for Nodes and events, without this program's requests.
fn requests(metrics: &str) -> u64 {
    metrics::total(metrics, "apiserver_request_total", |labels| {
        let has = |name: &str, value: &str| labels.contains(&format!("{name}=\"{value}\""));
        let is_ours = has("resource", "nodes") && OURS.iter().any(|verb| has("verb", verb));
        !is_ours && (has("resource", "nodes") || has("resource", "events"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_ask_is_counted() {
        let metrics = "# TYPE apiserver_request_total counter\n\
             apiserver_request_total{code=\"201\",resource=\"nodes\",verb=\"POST\"} 900\n\
             apiserver_request_total{code=\"200\",resource=\"nodes\",subresource=\"status\",\
             verb=\"PATCH\"} 3\n\
             apiserver_request_total{code=\"0\",resource=\"nodes\",verb=\"WATCH\"} 1e+01\n\
             apiserver_request_total{code=\"201\",resource=\"events\",verb=\"POST\"} 1\n\
             apiserver_request_total{code=\"200\",resource=\"leases\",verb=\"GET\"} 77\n";
        assert_eq!(requests(metrics), 14);
    }

    #[test]
    fn a_node_is_as_large_as_a_real_one() {
        let size = node(Invented::new(1)).to_string().len();
        assert!((6000..20_000).contains(&size), "{size} bytes");
    }
}
