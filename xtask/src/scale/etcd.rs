//! Writes to etcd and counts its requests, by its JSON gateway and its metrics. etcd's own client
//! needs protoc, which may be missing when this program is built, and `etcdctl` takes a process for
//! every write.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use overlay_tests::{Lab, Namespace, http};
use serde_json::{Value, json};

use super::leases::{Invented, LeaseChange};
use super::metrics;

/// Most operations of one transaction (etcd's `--max-txn-ops`).
const MOST_OPERATIONS: usize = 128;
/// Calls that only this program makes during the measurement.
const OURS: [&str; 3] = ["Put", "DeleteRange", "Txn"];

/// The lab's etcd.
#[derive(Clone)]
pub struct Etcd {
    namespace: Namespace,
    address: SocketAddr,
}

impl Etcd {
    pub fn of(lab: &Lab) -> Result<Self> {
        let endpoint = lab.store_endpoint();
        let address = endpoint.strip_prefix("http://").unwrap_or(&endpoint);
        Ok(Self {
            namespace: lab.namespace("store")?,
            address: address
                .parse()
                .with_context(|| format!("etcd's address {address}"))?,
        })
    }

    /// Writes leases, many in one transaction.
    pub fn fill(&self, leases: &[Invented]) -> Result<()> {
        let entries = leases.iter().map(|lease| (lease.key(), lease.value()));
        self.put(entries)
    }

    /// Writes keys and values, many in one transaction.
    pub fn put(&self, entries: impl Iterator<Item = (String, String)>) -> Result<()> {
        let entries: Vec<_> = entries.collect();
        for some in entries.chunks(MOST_OPERATIONS) {
            let puts = some.iter().map(|(key, value)| {
                let put = json!({"key": encode(key), "value": encode(value)});
                json!({"requestPut": put})
            });
            self.call("txn", &json!({"success": puts.collect::<Value>()}))?;
        }
        Ok(())
    }

    /// Makes one change.
    pub fn write(&self, change: LeaseChange) -> Result<()> {
        match change {
            LeaseChange::Is(lease) => self.call("put", &put(lease)),
            LeaseChange::Gone(lease) => {
                self.call("deleterange", &json!({"key": encode(&lease.key())}))
            }
        }
    }

    /// Number of requests from other clients than this program since the start of etcd: calls, and
    /// messages on streams.
    pub fn requests(&self) -> Result<u64> {
        let answer = self
            .namespace
            .inside(|| http::get(self.address, "/metrics"))??;
        Ok(requests(&answer.body))
    }

    fn call(&self, method: &str, body: &Value) -> Result<()> {
        let path = format!("/v3/kv/{method}");
        let body = body.to_string();
        let answer = self
            .namespace
            .inside(|| http::post(self.address, &path, &body))??;
        ensure!(
            answer.status == 200,
            "etcd's {method}: {} {}",
            answer.status,
            answer.body
        );
        Ok(())
    }
}

fn put(lease: Invented) -> Value {
    json!({"key": encode(&lease.key()), "value": encode(&lease.value())})
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// The sum of `grpc_server_msg_received_total` in etcd's metrics, without the methods of this
/// program.
fn requests(metrics: &str) -> u64 {
    metrics::total(metrics, "grpc_server_msg_received_total", |labels| {
        let is = |method: &&str| labels.contains(&format!("grpc_method=\"{method}\""));
        !OURS.iter().any(is)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_writes_are_not_counted() {
        let metrics = "# TYPE grpc_server_msg_received_total counter\n\
             grpc_server_msg_received_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"} 900\n\
             grpc_server_msg_received_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"} 3\n\
             grpc_server_msg_received_total{grpc_method=\"LeaseKeepAlive\",\
             grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"} 1e+01\n\
             grpc_server_msg_sent_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"} 3\n";
        assert_eq!(requests(metrics), 13);
    }
}
