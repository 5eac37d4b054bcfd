//! A real API server over a real etcd, and the tests' changes of its objects.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use overlay_tests::Namespace;
use overlay_tests::kubernetes::bin_dir;
use overlay_user::store::Location;
use overlay_user::store::kube::{Identity, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

/// flannel's prefix.
pub const PREFIX: &str = "flannel.alpha.coreos.com";
/// Longest time from the server's start to its first answer.
const UP: Duration = Duration::from_secs(90);
/// The user with all permissions, and the service account of the manifest; each has its name as
/// token.
const USERS: &str = "admin,admin,admin,system:masters\n\
                     agent,system:serviceaccount:kube-overlay:overlay,agent,\n";

fn program(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo xtask setup --kubernetes`",
        path.display()
    );
    path
}

/// The place of a cluster.
pub struct Place {
    /// A namespace of a lab; `None` for the namespace of the test.
    pub namespace: Option<Namespace>,
    pub address: &'static str,
}

impl Place {
    fn spawn(&self, command: &mut Command) -> Child {
        match &self.namespace {
            Some(namespace) => namespace.start(command).expect("started"),
            None => command.spawn().expect("started"),
        }
    }
}

/// The cluster of one test.
pub struct Server {
    place: Place,
    etcd: Child,
    api: Child,
    etcd_port: u16,
    port: u16,
    pub directory: TempDir,
}

impl Server {
    pub fn start() -> Self {
        Self::start_at(Place {
            namespace: None,
            address: "127.0.0.1",
        })
    }

    pub fn start_at(place: Place) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        fs::write(at.join("tokens"), USERS).expect("written");
        fs::write(at.join("net-conf.json"), super::NETWORK).expect("written");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(at.join("key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl runs").success());
        let (port, etcd_port, peer_port) = (free_port(), free_port(), free_port());
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir")
            .arg(at.join("etcd"))
            .args(["--listen-client-urls", &url(etcd_port)])
            .args(["--advertise-client-urls", &url(etcd_port)])
            .args(["--listen-peer-urls", &url(peer_port)])
            .args(["--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("default={}", url(peer_port))])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let etcd = place.spawn(&mut etcd);
        let api = spawn_api(&place, at, etcd_port, port);
        let server = Self {
            place,
            etcd,
            api,
            etcd_port,
            port,
            directory,
        };
        server.wait_ready();
        for user in ["admin", "agent"] {
            server.write_kubeconfig(user);
        }
        server
    }

    fn wait_ready(&self) {
        let deadline = Instant::now() + UP;
        // Rules of authorization are effective a moment after the first answer.
        while self.try_kubectl(&["get", "--raw=/readyz"], "").is_err() {
            let log = fs::read_to_string(self.directory.path().join("api.log"));
            assert!(
                Instant::now() < deadline,
                "the API server is not up: {}",
                log.unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the API server at once, as a crash would; etcd keeps running.
    pub fn stop_api(&mut self) {
        self.api.kill().expect("killed");
        self.api.wait().expect("waited for");
    }

    pub fn start_api(&mut self) {
        self.api = spawn_api(
            &self.place,
            self.directory.path(),
            self.etcd_port,
            self.port,
        );
        self.wait_ready();
    }

    /// The file with a user's credentials.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.conf"))
    }

    fn write_kubeconfig(&self, user: &str) {
        let certificate = self.directory.path().join("tls/apiserver.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}:{}", self.place.address, self.port),
                "certificate-authority": certificate,
            }}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": user}}],
        });
        fs::write(self.kubeconfig(user), config.to_string()).expect("written");
    }

    /// The store of the node `name`, with the rights of the manifest.
    pub fn location(&self, name: &str) -> Location {
        self.location_as(name, "agent")
    }

    pub fn location_as(&self, name: &str, user: &str) -> Location {
        Location::Kube(self.options(name, user))
    }

    fn options(&self, name: &str, user: &str) -> Options {
        Options {
            api_url: None,
            kubeconfig: Some(self.kubeconfig(user)),
            annotation_prefix: PREFIX.into(),
            config_path: self.directory.path().join("net-conf.json"),
            identity: Some(Identity::Node(name.into())),
            memory: Some(self.memory(name)),
        }
    }

    /// The file in which an agent of the node `name` remembers the Nodes.
    pub fn memory(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.nodes.json"))
    }

    fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write as _;
        let mut kubectl = Command::new(program("kubectl"));
        kubectl
            .arg(format!(
                "--server=https://{}:{}",
                self.place.address, self.port
            ))
            .args(["--insecure-skip-tls-verify", "--token=admin"])
            .args(["--cache-dir", "/dev/null"])
            .args(arguments)
            .env("HOME", self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.place.spawn(&mut kubectl);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("written");
        drop(stdin);
        let output = child.wait_with_output().expect("waited for");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.feed(arguments, "")
    }

    pub fn feed(&self, arguments: &[&str], input: &str) -> String {
        self.try_kubectl(arguments, input)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// The permissions of the manifest's service account: resources with their verbs, as listed by
    /// the API server.
    pub fn allowed(&self) -> Vec<(String, String)> {
        // The last token has precedence.
        let list = self.kubectl(&["auth", "can-i", "--list", "--token=agent"]);
        let line = |line: &str| {
            let verbs = &line[line.rfind('[')?..];
            let resource = line.split_whitespace().next()?;
            // The others are URLs: for versions, and for the health of the server.
            let is_resource = !resource.starts_with('[');
            is_resource.then(|| (resource.to_owned(), verbs.trim().to_owned()))
        };
        list.lines().skip(1).filter_map(line).collect()
    }

    /// Makes Nodes like a kubelet and the controller manager.
    pub fn add_nodes(&self, nodes: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
        self.feed(&["create", "-f", "-"], &list.to_string());
    }

    pub fn set_cidr(&self, name: &str, cidr: &str) {
        let patch = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}).to_string();
        self.kubectl(&["patch", "node", name, "-p", &patch]);
    }

    pub fn delete_node(&self, name: &str) {
        self.kubectl(&["delete", "node", name]);
    }

    /// Sets flannel's annotations, or removes them with `NAME-`.
    pub fn annotate(&self, name: &str, annotations: &[&str]) {
        let full: Vec<_> = annotations
            .iter()
            .map(|text| format!("{PREFIX}/{text}"))
            .collect();
        let full = full.iter().map(String::as_str);
        let line: Vec<_> = ["annotate", "--overwrite", "node", name]
            .into_iter()
            .chain(full)
            .collect();
        self.kubectl(&line);
    }

    pub fn node(&self, name: &str) -> Value {
        let text = self.kubectl(&["get", "node", name, "-o", "json"]);
        serde_json::from_str(&text).expect("JSON")
    }

    /// One of flannel's annotations of a node.
    pub fn annotation(&self, node: &str, name: &str) -> Option<String> {
        let value = &self.node(node)["metadata"]["annotations"][format!("{PREFIX}/{name}")];
        value.as_str().map(str::to_owned)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [&mut self.api, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A Node that no agent has written to yet.
pub fn bare(name: &str, cidr: &str) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    if !cidr.is_empty() {
        node["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    }
    node
}

/// A Node with flannel's annotations.
pub fn flannels(name: &str, cidr: &str, public_ip: &str, mac: &str) -> Value {
    let mut node = bare(name, cidr);
    node["metadata"]["annotations"] = json!({
        format!("{PREFIX}/backend-data"): format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
        format!("{PREFIX}/backend-type"): "vxlan",
        format!("{PREFIX}/kube-subnet-manager"): "true",
        format!("{PREFIX}/public-ip"): public_ip,
    });
    node
}

fn spawn_api(place: &Place, at: &Path, etcd_port: u16, port: u16) -> Child {
    let address = place.address;
    let path = |name: &str| at.join(name).display().to_string();
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(at.join("api.log"))
        .expect("a log");
    let mut api = Command::new(program("kube-apiserver"));
    api.arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg(format!("--bind-address={address}"))
        .arg(format!("--advertise-address={address}"))
        .arg(format!("--secure-port={port}"))
        .arg(format!("--cert-dir={}", path("tls")))
        .arg(format!("--token-auth-file={}", path("tokens")))
        .arg(format!("--service-account-key-file={}", path("key")))
        .arg(format!(
            "--service-account-signing-key-file={}",
            path("key")
        ))
        .args([
            "--insecure-port=0",
            "--authorization-mode=RBAC",
            "--allow-privileged",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            // This plugin is useless without a controller manager.
            "--disable-admission-plugins=ServiceAccount",
        ])
        .stdout(log.try_clone().expect("a handle"))
        .stderr(log);
    place.spawn(&mut api)
}

/// A port without a listener; each is returned once.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
