//! Connections between pods, Services and nodes, and kubectl's view of pods.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::conversation::{Conversation, Server, Transport};
use overlay_tests::kubernetes::Cluster;
use overlay_tests::traffic::Endpoint;
use overlay_tests::{Namespace, wait_until};
use serde_json::{Value, json};

use crate::{PATIENCE, cluster, golden, names, talk};

/// The pods' port, and the ports that lead to it.
const PORT: u16 = 8080;
const HOST_PORT: u16 = 31_500;
const NODE_PORT: u16 = 30_080;
const SERVICE_PORT: u16 = 80;

#[test]
fn pods_services_and_nodes_reach_each_other() -> Result<()> {
    let cluster = cluster("k8s-reach")?;
    let mapped = |protocol: &str| -> Value {
        json!({"containerPort": PORT, "hostPort": HOST_PORT, "protocol": protocol})
    };
    let ports = json!([mapped("TCP"), mapped("UDP")]);
    let one = cluster.run_pod("one", 1, &json!([]))?;
    let beside = cluster.run_pod("beside", 1, &json!([]))?;
    let other = cluster.run_pod("other", 2, &ports)?;

    talk(&one, &other).context("across nodes")?;
    talk(&one, &beside).context("on one node")?;
    services(&cluster, &one, &other)?;
    names::resolve(&cluster, &one).context("names")?;
    golden::compare(&cluster).context("flannel's rules")?;
    credentials(&cluster)?;
    kubectl(&cluster)?;
    image(&cluster)?;
    cluster.down()
}

/// ClusterIP, NodePort on either node, hostPort, and the Service from the server itself.
fn services(cluster: &Cluster, client: &Endpoint, server: &Endpoint) -> Result<()> {
    cluster.apply(&service(&server.name).to_string())?;
    let made = cluster.json(["get", "service", &server.name])?;
    let cluster_ip: Ipv4Addr = made["spec"]["clusterIP"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("no address: {made}"))?;
    let nodes = cluster.nodes();
    let [first, second] = [&nodes[0], &nodes[1]].map(|node| node.below().underlay_address());
    let outside = cluster.lab().namespace("outside")?;
    let ways: [(&str, &Namespace, Ipv4Addr, u16); 6] = [
        (
            "a pod, by ClusterIP",
            &client.namespace,
            cluster_ip,
            SERVICE_PORT,
        ),
        (
            "the server itself, by ClusterIP",
            &server.namespace,
            cluster_ip,
            SERVICE_PORT,
        ),
        (
            "a pod, by NodePort of the server's node",
            &client.namespace,
            second,
            NODE_PORT,
        ),
        (
            "outside, by NodePort of the other node",
            &outside,
            first,
            NODE_PORT,
        ),
        ("outside, by hostPort", &outside, second, HOST_PORT),
        (
            "a pod of another node, by hostPort",
            &client.namespace,
            second,
            HOST_PORT,
        ),
    ];
    for transport in Transport::ALL {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let servers = [Server::open(&server.namespace, transport, any)?];
        for (who, from, address, port) in ways {
            let target = SocketAddrV4::new(address, port);
            let open = || Conversation::open(from, transport, target, &servers);
            let what = format!("{who}, {transport}");
            // kube-proxy takes a moment until its rules are written.
            wait_until(&what, PATIENCE, || open().is_ok())
                .with_context(|| format!("{:?}", open().err()))?;
            let conversation = open().context(what.clone())?;
            conversation.server_speaks().context(what.clone())?;
            conversation.client_speaks().context(what)?;
        }
    }
    // The API server's own Service.
    let api = cluster.json(["get", "service", "kubernetes"])?;
    let api = api["spec"]["clusterIP"].as_str().context("no address")?;
    let target = SocketAddrV4::new(api.parse()?, 443);
    let connected = client
        .namespace
        .inside(|| std::net::TcpStream::connect_timeout(&target.into(), PATIENCE))?;
    connected
        .context("the API by its Service from a pod")
        .map(drop)
}

fn service(name: &str) -> Value {
    let port = |protocol: &str| {
        json!({
            "name": protocol.to_lowercase(),
            "protocol": protocol,
            "port": SERVICE_PORT,
            "targetPort": PORT,
            "nodePort": NODE_PORT,
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": "NodePort",
            "selector": {"app": name},
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

/// The agents' service account has the permissions of the manifest's ClusterRole, and no others.
fn credentials(cluster: &Cluster) -> Result<()> {
    let agent = |line: &str| {
        let who = "--as=system:serviceaccount:kube-overlay:overlay";
        cluster.kubectl([who].into_iter().chain(line.split(' ')))
    };
    agent("get nodes").context("what it needs")?;
    for line in [
        "get pods --all-namespaces",
        "get secrets --namespace kube-overlay",
        "get configmaps --namespace kube-overlay",
        "delete --raw /api/v1/namespaces/default/services/kubernetes",
        "get events",
        "label node n1 from=agent",
        "delete --raw /api/v1/nodes/n2",
        "delete --raw /apis/apps/v1/namespaces/kube-overlay/daemonsets/kube-overlay-ds",
        "delete --raw /api/v1/namespaces/kube-overlay/configmaps/kube-overlay-cfg",
        "create --raw /api/v1/namespaces/default/pods --filename=/dev/null",
    ] {
        let refused = agent(line).err().map(|error| format!("{error:#}"));
        ensure!(
            refused
                .as_ref()
                .is_some_and(|said| said.contains("forbidden")),
            "{line}: {refused:?}"
        );
    }
    // All permissions on the server, except those of every user about itself.
    let list = agent("auth can-i --list --no-headers --namespace kube-overlay")?;
    let mut allowed: Vec<(&str, &str)> = list
        .lines()
        .filter(|line| !line.starts_with(' ') && !line.starts_with("selfsubject"))
        .filter_map(|line| Some((line.split_once(' ')?.0, line.rsplit_once('[')?.1)))
        .collect();
    allowed.sort_unstable();
    let wanted = [
        ("endpointslices.discovery.k8s.io", "get list watch]"),
        ("events", "create]"),
        ("nodes", "get list watch]"),
        ("nodes/status", "patch]"),
        ("services", "get list watch]"),
    ];
    ensure!(allowed == wanted, "{list}");
    Ok(())
}

/// Commands that go through the kubelet, and commands of operators.
fn kubectl(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl([
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "echo word > /proc/1/fd/1; cat /etc/hostname",
    ])?;
    ensure!(said.trim() == "one", "exec: {said}");
    wait_until("the word in the log", PATIENCE, || {
        cluster
            .kubectl(["logs", "one"])
            .is_ok_and(|log| log.trim() == "word")
    })?;
    for node in cluster.nodes() {
        let status = cluster.exec_overlay(&node, ["overlayctl", "status", "--output=json"])?;
        let status: Value = serde_json::from_str(&status).context("the status as JSON")?;
        ensure!(status["fast_path"]["state"] == "active", "{status}");
        ensure!(status["problems"] == json!([]), "{status}");
    }
    Ok(())
}

/// Every program that flannel's manifest and flannel's tests call in the images runs in ours.
fn image(cluster: &Cluster) -> Result<()> {
    let script = r#"
        set -e
        # The container's own files are read-only.
        try=/run/flannel/try
        mkdir $try
        /opt/bin/flanneld --version
        /opt/bin/mk-docker-opts.sh -f /run/flannel/subnet.env -d $try/options -c
        cat $try/options
        /opt/bin/install-conf $try/options $try/installed
        [ "$(cat $try/options)" = "$(cat $try/installed)" ]
        cp -f /flannel $try/flannel
        CNI_COMMAND=VERSION $try/flannel < /dev/null
        rm -r $try
        ip link show flannel.1
        iptables --version
        nft --version"#;
    let said = cluster.exec_overlay(&cluster.node(1), ["sh", "-c", script])?;
    for word in [
        "overlayd ",
        "DOCKER_OPTS=",
        "supportedVersions",
        "flannel.1",
        "iptables v",
        "nftables v",
    ] {
        ensure!(said.contains(word), "no {word} in {said}");
    }
    Ok(())
}
