//! API server, controller manager and scheduler, beside the lab's etcd.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::programs::bin_dir;
use super::{POD_NETWORK, SERVICE_NETWORK};
use crate::process::Process;
use crate::{Lab, command, http, wait_until};

/// Where the API server is: the namespace of the lab's store.
pub const API_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 254);
const PORT: u16 = 6443;
/// How long it may take to answer, on a machine that starts everything else as well.
const UP: Duration = Duration::from_secs(90);
const GONE: Duration = Duration::from_secs(10);
/// The users of the API server beside the nodes, each with its name as its token: file name,
/// user, groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// Starts all three.
pub(super) fn start(lab: &Lab, directory: &Path) -> Result<()> {
    start_first_api_server(lab, directory)?;
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let manager = at("controller-manager.conf");
    launch(
        lab,
        directory,
        "kube-controller-manager",
        &[
            flag("kubeconfig", &manager),
            flag("authentication-kubeconfig", &manager),
            flag("authorization-kubeconfig", &manager),
            flag(
                "service-account-private-key-file",
                &at("service-accounts.key"),
            ),
            flag("root-ca-file", &at("tls/apiserver.crt")),
            flag("cluster-cidr", POD_NETWORK),
            flag("cert-dir", &at("tls")),
            "--use-service-account-credentials".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            "--leader-elect=false".to_owned(),
            // Notice within seconds, as tests wait for it.
            "--node-monitor-grace-period=16s".to_owned(),
        ],
    )?;
    launch(
        lab,
        directory,
        "kube-scheduler",
        &[
            flag("kubeconfig", &at("scheduler.conf")),
            flag("cert-dir", &at("tls")),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    Ok(())
}

/// Starts the API server for the first time, and writes what its clients need.
fn start_first_api_server(lab: &Lab, directory: &Path) -> Result<()> {
    let mut tokens = String::new();
    for (name, user, groups) in USERS {
        tokens += &format!("{name},{user},{name},{groups}\n");
    }
    for number in 1..=lab.options().nodes {
        tokens += &format!("n{number},system:node:n{number},n{number},system:nodes\n");
    }
    write(directory, "tokens", &tokens)?;
    let key = directory.join("service-accounts.key");
    command::run(
        "openssl",
        ["genrsa", "-out", &key.to_string_lossy(), "2048"],
    )?;
    launch_api_server(lab, directory)?;
    // The API server signs a certificate for itself at its first start.
    let certificate = directory.join("tls/apiserver.crt");
    wait_until("the API server's certificate", UP, || {
        fs::metadata(&certificate).is_ok_and(|file| file.len() > 0)
    })?;
    for (name, ..) in USERS {
        write_client(directory, name, directory)?;
    }
    wait_api_server(lab, directory)
}

/// Starts the API server and waits until it answers.
pub(super) fn start_api_server(lab: &Lab, directory: &Path) -> Result<()> {
    launch_api_server(lab, directory)?;
    wait_api_server(lab, directory)
}

fn launch_api_server(lab: &Lab, directory: &Path) -> Result<()> {
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let key = at("service-accounts.key");
    let process = launch(
        lab,
        directory,
        "kube-apiserver",
        &[
            flag("etcd-servers", &lab.store_endpoint()),
            flag("bind-address", &API_SERVER.to_string()),
            flag("secure-port", &PORT.to_string()),
            flag("cert-dir", &at("tls")),
            flag("token-auth-file", &at("tokens")),
            flag("service-cluster-ip-range", SERVICE_NETWORK),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-account-key-file", &key),
            flag("service-account-signing-key-file", &key),
            "--insecure-port=0".to_owned(),
            "--allow-privileged".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ],
    )?;
    let record = serde_json::to_string(&process).context("write a process as JSON")?;
    write(directory, "kube-apiserver.json", &record)
}

/// An API server alone beside a lab's etcd, for measurements that need Nodes and no kubelets. It
/// goes with the lab.
pub struct ApiServer {
    directory: PathBuf,
}

impl ApiServer {
    /// Where `kubectl proxy` takes plain HTTP for an administrator, in the namespace of the lab's
    /// store.
    pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it is missing, or does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        super::programs::check()?;
        let directory = lab.directory().join("kubernetes");
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        start_first_api_server(lab, &directory)?;
        let server = Self { directory };
        let flags = [
            format!("--kubeconfig={}", server.kubeconfig().display()),
            "proxy".to_owned(),
            format!("--port={}", Self::PROXY.port()),
        ];
        launch(lab, &server.directory, "kubectl", &flags)?;
        let place = lab.namespace("store")?;
        let ready = || {
            let asked = place.inside(|| http::get(Self::PROXY, "/readyz"));
            matches!(asked, Ok(Ok(answer)) if answer.status == 200)
        };
        wait_until("kubectl proxy", UP, ready)?;
        Ok(server)
    }

    /// What an administrator's clients need.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.conf")
    }
}

/// Ends the API server at once: this version takes a minute when asked politely.
pub(super) fn stop_api_server(directory: &Path) -> Result<()> {
    let path = directory.join("kube-apiserver.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let process: Process = serde_json::from_slice(&text).context("understand a process")?;
    process.signal(Signal::SIGKILL)?;
    process.wait_gone(GONE)
}

fn wait_api_server(lab: &Lab, directory: &Path) -> Result<()> {
    let place = lab.namespace("store")?;
    let config = format!("--kubeconfig={}", directory.join("admin.conf").display());
    let kubectl = bin_dir().join("kubectl").to_string_lossy().into_owned();
    let ready = || {
        place
            .run([&kubectl, &config, "get", "--raw=/readyz"])
            .is_ok()
    };
    wait_until("the API server to be ready", UP, ready)
        .with_context(|| format!("its log is {}", log(directory, "kube-apiserver")))
}

/// Writes a client's configuration to `NAME.conf` in `to`; its token is its name.
pub(super) fn write_client(directory: &Path, name: &str, to: &Path) -> Result<()> {
    let certificate = directory.join("tls/apiserver.crt");
    let encoded = command::run("base64", ["--wrap=0", &certificate.to_string_lossy()])?;
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{API_SERVER}:{PORT}"),
            "certificate-authority-data": encoded,
        }}],
        "users": [{"name": name, "user": {"token": name}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        "current-context": "lab",
    });
    write(to, &format!("{name}.conf"), &config.to_string())
}

/// Starts a program in the store's namespace.
fn launch(lab: &Lab, directory: &Path, name: &str, flags: &[String]) -> Result<Process> {
    let path = log(directory, name);
    let open = File::options().create(true).append(true).open(&path);
    let output = open.with_context(|| format!("open {path}"))?;
    let errors = output.try_clone().context("duplicate a file handle")?;
    let place = lab.namespace("store")?;
    let mut command = place.command(bin_dir().join(name));
    command
        .args(flags)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = place.start(&mut command)?;
    let process = Process::of(child.id())?;
    lab.adopt(process.clone())?;
    if !process.is_alive() {
        bail!("{name} has ended; its log is {path}");
    }
    Ok(process)
}

fn log(directory: &Path, name: &str) -> String {
    let log = directory.join(format!("{name}.log"));
    log.to_string_lossy().into_owned()
}

/// Writes a file of the cluster's.
pub(super) fn write(directory: &Path, name: &str, content: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).with_context(|| format!("write {}", path.display()))
}
