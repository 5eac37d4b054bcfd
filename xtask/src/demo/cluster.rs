//! The demo on a Kubernetes cluster: from the manifest to the walk of one packet.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_tests::kubernetes::{Cluster, Node, PROBE_IMAGE};
use overlay_tests::status::Counts;
use overlay_tests::traffic::{self, Endpoint};
use overlay_tests::{Lab, Options};
use serde::Serialize;
use serde_json::{Value, json};

use super::walk::{self, End, Step};
use super::{Arguments, LEAST_HIT_RATIO};
use crate::lab::{Output, tell_how_to_ask};
use crate::{build, setup, shell};

/// Name of the deployment and its Service.
const WEB: &str = "web";
const CLIENT: &str = "client";
const NODES: usize = 2;
/// Number of the client's requests to the Service.
const REQUESTS: usize = 20;
/// Number of bytes that the client sends to each pod directly, and number of repetitions.
const STREAM: usize = 200_000;
const STREAMS: usize = 5;
/// Longest time until kube-proxy knows a Service, and until an agent knows a pod.
const PATIENCE: Duration = Duration::from_secs(30);

/// All findings.
#[derive(Debug, Serialize)]
struct Findings {
    held: bool,
    problems: Vec<String>,
    /// Pods of the deployment.
    pods: Vec<Replica>,
    /// Number of requests to the Service that each pod answered.
    answers: BTreeMap<String, usize>,
    walk: Vec<Step>,
    /// Share of the packets between pods that took the fast path, by node.
    hit_ratio: BTreeMap<String, f64>,
}

/// A pod of the deployment.
#[derive(Clone, Debug, Serialize)]
struct Replica {
    name: String,
    node: String,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = arguments.output == Output::Table;
    setup::ensure_kubernetes()?;
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(false)?;
    }
    let options = Options {
        nodes: NODES,
        ..Options::default()
    };
    if arguments.force {
        Lab::remove(&options.prefix)?;
    }
    shell::progress("a Kubernetes cluster of two nodes");
    let cluster = Cluster::up(options)?;
    let findings = find_out(&cluster, text)?;
    super::conclude(&findings, &findings.problems, text)?;
    if arguments.keep {
        shell::progress("the cluster stays up");
        tell_how_to_ask(&cluster.keep());
    } else {
        shell::progress("cleaning up");
        cluster.down()?;
    }
    Ok(super::exit_code(findings.held))
}

fn find_out(cluster: &Cluster, text: bool) -> Result<Findings> {
    let show = |words: &[&str]| -> Result<()> {
        if text {
            println!("\n{}", cluster.kubectl(words)?.trim_end());
        }
        Ok(())
    };
    shell::progress("kubectl apply --filename deploy/kube-overlay.yml");
    cluster.apply_overlay()?;
    cluster.wait_nodes_ready()?;
    cluster.wait_overlay_ready()?;
    show(&["get", "nodes", "--output=wide"])?;

    shell::progress("a deployment with a pod on each node, its Service, and a client");
    cluster.apply(&web().to_string())?;
    let rollout = ["rollout", "status", "deployment", WEB, "--timeout=90s"];
    cluster
        .kubectl(rollout)
        .with_context(|| cluster.last_words(WEB))?;
    let client = cluster.run_pod(CLIENT, 1, &json!([]))?;
    show(&["get", "pods,services", "--output=wide"])?;
    let pods = replicas(cluster)?;

    let mut problems = Vec::new();
    shell::progress("the client asks the Service");
    let answers = ask(cluster, &pods, &mut problems)?;
    if text {
        println!();
        for Replica { name, node } in &pods {
            let count = answers.get(name).copied().unwrap_or_default();
            println!("{count} of {REQUESTS} requests were answered by {name} on {node}");
        }
    }

    shell::progress("the client talks to each pod itself");
    let hit_ratio = talk(cluster, &client, &pods, text, &mut problems)?;

    let remote = pods.iter().find(|pod| pod.node != "n1");
    let remote = remote.context("no pod is on another node than the client")?;
    shell::progress(&format!("the walk of one packet to {}", remote.name));
    let [from, to] = [(client, 1), (cluster.endpoint(&remote.name)?, 2)].map(|(pod, number)| End {
        pod,
        node: cluster.node(number).below(),
    });
    let walk = walk::walk(cluster.lab(), &from, &to)?;
    if text {
        println!("{}", walk::render(&walk));
    }
    if !walk::has_arrived(&walk) {
        problems.push("the followed packet was not seen where it has to arrive".to_owned());
    }
    Ok(Findings {
        held: problems.is_empty(),
        problems,
        pods,
        answers,
        walk,
        hit_ratio,
    })
}

/// A web server on each node, which answers with its name, and a Service for both.
fn web() -> Value {
    let labels = json!({"app": WEB});
    let serve = "echo $HOSTNAME > /www/index.html; exec httpd -f -p 80 -h /www";
    let apart = json!([{
        "labelSelector": {"matchLabels": labels},
        "topologyKey": "kubernetes.io/hostname",
    }]);
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": WEB},
        "spec": {
            "replicas": NODES,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "affinity": {"podAntiAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": apart,
                    }},
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": WEB,
                        "image": PROBE_IMAGE,
                        "imagePullPolicy": "Never",
                        "command": ["sh", "-c", serve],
                    }],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": WEB},
        "spec": {"selector": labels, "ports": [{"port": 80}]},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [deployment, service]})
}

fn replicas(cluster: &Cluster) -> Result<Vec<Replica>> {
    let selector = format!("--selector=app={WEB}");
    let list = cluster.json(["get", "pods", &selector])?;
    let items = list["items"].as_array().context("a list")?;
    let replica = |pod: &Value| {
        Some(Replica {
            name: pod["metadata"]["name"].as_str()?.to_owned(),
            node: pod["spec"]["nodeName"].as_str()?.to_owned(),
        })
    };
    let replicas = items.iter().map(replica).collect::<Option<_>>();
    replicas.context("a pod without a node")
}

/// Number of answers of each pod.
fn ask(
    cluster: &Cluster,
    pods: &[Replica],
    problems: &mut Vec<String>,
) -> Result<BTreeMap<String, usize>> {
    let service = cluster.json(["get", "service", WEB])?;
    let address = service["spec"]["clusterIP"].as_str();
    let address: Ipv4Addr = address.context("no address")?.parse()?;
    let get = format!("timeout 5 wget -q -O - http://{address}/");
    let asked = |script: &str| cluster.kubectl(["exec", CLIENT, "--", "sh", "-c", script]);
    // kube-proxy takes a moment until its rules are written.
    cluster.wait_until("an answer of the Service", PATIENCE, || asked(&get).is_ok())?;
    let many = format!("i=0; while [ $i -lt {REQUESTS} ]; do {get}; i=$((i + 1)); done; true");
    let mut answers = BTreeMap::new();
    for name in asked(&many)?.lines() {
        *answers.entry(name.to_owned()).or_default() += 1;
    }
    let sum: usize = answers.values().sum();
    if sum != REQUESTS
        || answers
            .keys()
            .any(|name| !pods.iter().any(|pod| pod.name == *name))
    {
        problems.push(format!(
            "{REQUESTS} requests to the Service were answered by {answers:?}"
        ));
    }
    Ok(answers)
}

/// Sends TCP streams from the client to each pod. Returns the share of packets on the fast path.
fn talk(
    cluster: &Cluster,
    client: &Endpoint,
    pods: &[Replica],
    text: bool,
    problems: &mut Vec<String>,
) -> Result<BTreeMap<String, f64>> {
    let nodes = cluster.nodes();
    let count = |node: &Node| -> Result<Counts> {
        let status = cluster.exec_overlay(node, ["overlayctl", "status", "--output=json"])?;
        Counts::told(&serde_json::from_str(&status).context("the status as JSON")?)
    };
    let before = nodes.iter().map(count).collect::<Result<Vec<_>>>()?;
    for pod in pods {
        let pod = cluster.endpoint(&pod.name)?;
        for _ in 0..STREAMS {
            if let Err(error) = traffic::tcp(client, &pod, STREAM) {
                problems.push(format!("{CLIENT} to {}: {error:#}", pod.name));
            }
        }
    }
    let mut ratios = BTreeMap::new();
    for (node, before) in nodes.iter().zip(before) {
        let counts = &count(node)? - &before;
        let (name, ratio) = (node.name(), counts.hit_ratio_without(&[]));
        if ratio < LEAST_HIT_RATIO {
            problems.push(format!(
                "only {:.1} % on the fast path of {name}",
                ratio * 100.0
            ));
        }
        if text {
            let percent = ratio * 100.0;
            println!(
                "fast-path hit ratio of {name}: {percent:.1} %; left to the kernel: {}",
                counts.left_to_kernel()
            );
        }
        ratios.insert(name, ratio);
    }
    Ok(ratios)
}
