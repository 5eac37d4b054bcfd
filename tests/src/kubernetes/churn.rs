//! Pods that are created and deleted many at a time, and the duration of the plugin's calls.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, Node, POD_NETWORK, pod};
use crate::load::percentile;

/// A script in place of a plugin, which records the begin, end and result of each call, except a
/// DEL that a runtime repeats after the end of the namespace.
const TIMED: &str = r#"#!/bin/bash
begin=$EPOCHREALTIME
/opt/cni/bin/timed/NAME
code=$?
[ -z "$CNI_NETNS" ] || echo "$CNI_COMMAND $begin $EPOCHREALTIME $code" >> /run/node/calls
exit $code
"#;
/// The name of the record, in the node's directory.
const CALLS: &str = "calls";

/// Times of a plugin's calls, from its start to its end, in milliseconds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct CallTimes {
    /// Number of calls.
    pub count: usize,
    /// Half of the calls took at most this time.
    pub p50_ms: f64,
    /// 99 of 100 calls took at most this time.
    pub p99_ms: f64,
}

impl CallTimes {
    /// The statistics of these calls.
    ///
    /// # Errors
    /// When there are none.
    pub fn of(mut times: Vec<Duration>) -> Result<Self> {
        ensure!(!times.is_empty(), "no calls");
        times.sort_unstable();
        Ok(Self {
            count: times.len(),
            p50_ms: percentile(&times, 50) / 1e3,
            p99_ms: percentile(&times, 99) / 1e3,
        })
    }
}

impl Cluster {
    /// Creates `pods` pods on node `number`, `at_a_time`, and deletes each batch while the next is
    /// created. Returns when all are deleted.
    ///
    /// # Errors
    /// When pods do not become Ready, share an address, or are not deleted.
    pub fn churn(&self, number: usize, pods: usize, at_a_time: usize) -> Result<()> {
        for first in (0..pods).step_by(at_a_time) {
            let batch = format!("n{number}from{first}");
            let made: Vec<_> = (first..pods.min(first + at_a_time))
                .map(|pod_number| {
                    let name = format!("n{number}pod{pod_number}");
                    let mut pod = pod(&name, number, &json!([]));
                    pod["metadata"]["labels"]["batch"] = json!(batch);
                    pod
                })
                .collect();
            let count = made.len();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": made});
            self.apply(&list.to_string())?;
            let these = format!("--selector=batch={batch}");
            let ready = [
                "wait",
                "--for=condition=Ready",
                "pods",
                &these,
                "--timeout=90s",
            ];
            self.kubectl(ready)?;
            let pods = self.json(["get", "pods", &these])?;
            let pods = pods["items"].as_array().context("a list")?;
            let mut addresses: Vec<_> = pods
                .iter()
                .filter_map(|pod| pod["status"]["podIP"].as_str())
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            ensure!(addresses.len() == count, "addresses: {addresses:?}");
            // The next pods are created while these are deleted.
            self.kubectl(["delete", "pods", &these, "--grace-period=1", "--wait=false"])?;
        }
        self.kubectl(["wait", "--for=delete", "pods", "--all", "--timeout=120s"])
            .map(drop)
    }

    /// Lets node `number` create pods by the plugins that flannel's plugin calls, which need no
    /// agent.
    ///
    /// # Errors
    /// When the node has no podCIDR.
    pub fn use_reference_plugins(&self, number: usize) -> Result<()> {
        let node = self.node(number);
        let object = self.json(["get", "node", &node.name()])?;
        let subnet = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
        let list = reference_list(subnet);
        let write = format!("cd /etc/cni/net.d; echo '{list}' > .new; mv .new 10-flannel.conflist");
        node.run(["sh", "-ec", &write]).map(drop)
    }
}

impl Node<'_> {
    /// Measures the time of every further call of a plugin of this node.
    ///
    /// # Errors
    /// When the node has no such plugin.
    pub fn time_calls(&self, plugin: &str) -> Result<()> {
        let script = format!(
            "cd /opt/cni/bin; mkdir timed; cp {plugin} timed/
             cat > .timed; chmod 755 .timed; mv .timed {plugin}"
        );
        let wrapper = TIMED.replace("NAME", plugin);
        // This has the effect of a here-document, without its quoting.
        let line = format!("printf %s '{wrapper}' | (set -e; {script})");
        self.run(["bash", "-ec", &line]).map(drop)
    }

    /// The times of ADD or DEL since [`Node::time_calls`].
    ///
    /// # Errors
    /// When there are no calls, or one of the calls failed.
    pub fn call_times(&self, verb: &str) -> Result<CallTimes> {
        let path = self.home().join(CALLS);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let calls = text.lines().filter_map(|line| line.strip_prefix(verb));
        let times = calls.map(time).collect::<Result<_>>()?;
        CallTimes::of(times).with_context(|| format!("{verb} in {}", path.display()))
    }
}

/// The configuration that flannel's plugin gives `bridge` and `host-local` with its manifest's
/// list.
pub fn reference_list(subnet: &str) -> Value {
    json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "mtu": 1450,
                "hairpinMode": true,
                "isGateway": true,
                "isDefaultGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": subnet}]],
                    "routes": [{"dst": POD_NETWORK}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The duration of a call from a record's line, whose verb has been read.
fn time(line: &str) -> Result<Duration> {
    let bad = || format!("not two times and a code: {line:?}");
    let words: Vec<&str> = line.split_whitespace().collect();
    let [begin, end, code] = words[..] else {
        anyhow::bail!(bad());
    };
    ensure!(code == "0", "a call failed: {line}");
    let at = |word: &str| word.parse::<f64>().with_context(bad);
    Duration::try_from_secs_f64(at(end)? - at(begin)?).with_context(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_time() {
        let took = time(" 1764233000.250000 1764233000.258500 0").unwrap();
        assert!((took.as_secs_f64() * 1e3 - 8.5).abs() < 0.01, "{took:?}");
        assert!(time("1764233000.250000 1764233000.258500 1").is_err());
        assert!(time("1764233000.250000").is_err());
    }
}
