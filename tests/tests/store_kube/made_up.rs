//! An invented API server, for answers that a real one gives rarely.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use overlay_user::store::Location;
use overlay_user::store::kube::{Identity, Options};
use serde_json::{Value, json};

use super::server::{PREFIX, flannels};
use super::support::{self, run};
use super::{NETWORK, TTL};

/// The server's answer to a request: a status and a body. A body without end is a watch.
type Answers = fn(&str, usize) -> (u16, Vec<Value>);

/// Serves every request by `answers`, which gets the number of lists so far.
fn serve(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        let lists = AtomicUsize::new(0);
        thread::scope(|scope| {
            for stream in listener.incoming() {
                let lists = &lists;
                scope.spawn(move || answer(stream.expect("a client"), answers, lists));
            }
        });
    });
    url
}

/// Answers one request, and closes the connection unless it is a watch.
fn answer(mut stream: TcpStream, answers: Answers, lists: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let mut first = String::new();
    let mut length = 0;
    reader.read_line(&mut first).expect("a request");
    for line in reader.by_ref().lines() {
        let line = line.expect("a header").to_lowercase();
        if let Some(text) = line.strip_prefix("content-length: ") {
            length = text.parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let is_watch = first.contains("watch=true");
    if first.contains("/nodes?") && !is_watch {
        lists.fetch_add(1, Ordering::SeqCst);
    }
    let (status, values) = answers(&first, lists.load(Ordering::SeqCst));
    let text: String = values.iter().map(|it| format!("{it}\n")).collect();
    let head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    );
    // A client that has disconnected does not read.
    let _ = stream.write_all((head + &text).as_bytes());
    if is_watch && status == 200 {
        // This waits until the client disconnects.
        let _ = stream.read(&mut [0]);
    }
}

fn node(name: &str, number: u8) -> Value {
    let mac = format!("02:00:00:00:00:0{number}");
    let mut node = flannels(
        name,
        &format!("10.244.{number}.0/24"),
        &format!("192.168.0.{number}"),
        &mac,
    );
    node["metadata"]["resourceVersion"] = json!("5");
    node
}

fn failed(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
           "reason": "Expired", "message": "too old resource version"})
}

/// A server whose watches end because their position has expired: the first one in the middle, the
/// second one when it is opened. Each list has one more Node.
fn expires(request: &str, lists: usize) -> (u16, Vec<Value>) {
    if request.contains("/nodes/a") {
        return (200, vec![node("a", 1)]);
    }
    if request.contains("sendInitialEvents") {
        return (422, vec![failed(422)]);
    }
    if request.contains("watch=true") {
        return match lists {
            1 => (200, vec![json!({"type": "ERROR", "object": failed(410)})]),
            2 => (410, vec![failed(410)]),
            _ => (200, vec![]),
        };
    }
    let nodes = [node("a", 1), node("b", 2), node("c", 3), node("d", 4)];
    let page = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
                      "items": nodes[..=lists.min(3)]});
    (200, vec![page])
}

/// A recent server, which streams lists and has features that 1.20 lacks.
fn streams(request: &str, _: usize) -> (u16, Vec<Value>) {
    if !request.contains("watch=true") {
        return (200, vec![own()]);
    }
    let added = |object: Value| json!({"type": "ADDED", "object": object});
    let end = |kind: &str| {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let metadata = json!({"resourceVersion": "9", "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        json!({"type": "BOOKMARK", "object": object})
    };
    let meta = |name: &str| json!({"name": name, "namespace": "default", "resourceVersion": "5"});
    if request.contains("/nodes?") {
        return (200, vec![added(own()), end("Node")]);
    }
    if request.contains("/services?") {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let web = json!({"metadata": meta("web"), "spec": spec});
        return (200, vec![added(web), end("Service")]);
    }
    if !request.contains("/apis/discovery.k8s.io/v1/") {
        return (404, vec![failed(404)]);
    }
    let mut metadata = meta("web-1");
    metadata["labels"] = json!({"kubernetes.io/service-name": "web"});
    let hinted = |address: &str, zone: &str| -> Value {
        json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}})
    };
    let slice = json!({
        "metadata": metadata, "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
        "endpoints": [hinted("10.244.1.2", "east"), hinted("10.244.2.2", "west")],
    });
    let deleted = json!({"metadata": meta("x")});
    let gone = json!({"type": "DELETED", "object": deleted});
    (200, vec![added(slice), end("EndpointSlice"), gone])
}

fn own() -> Value {
    let mut own = node("a", 1);
    own["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "west"});
    own["status"] = json!({"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]});
    own
}

#[test]
fn services_are_streamed_and_seen_from_the_nodes_own_zone() {
    let directory = tempfile::tempdir().expect("a directory");
    let location = location(directory.path(), streams);
    run(async {
        let (a, _) = support::start(location, TTL, NETWORK, 1).await;
        let served = support::serve(&a);
        served.until_web(Some(&["10.244.2.2:8080"])).await;
    });
}

/// The store of the node `a` in an invented cluster.
fn location(directory: &Path, answers: Answers) -> Location {
    let config_path = directory.join("net-conf.json");
    std::fs::write(&config_path, NETWORK).expect("written");
    Location::Kube(Options {
        api_url: Some(serve(answers)),
        kubeconfig: None,
        annotation_prefix: PREFIX.into(),
        config_path,
        identity: Some(Identity::Node("a".into())),
        memory: None,
    })
}

#[test]
fn a_watch_whose_place_is_gone_begins_anew_with_a_list() {
    let directory = tempfile::tempdir().expect("a directory");
    let location = location(directory.path(), expires);
    run(async {
        let (a, _) = support::start(location, TTL, NETWORK, 1).await;
        let state = a
            .until("what the third list has", |state| state.leases.len() == 3)
            .await;
        assert!(state.own.is_some());
    });
}
