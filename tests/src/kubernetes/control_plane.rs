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
use crate::wait::wait_for;
use crate::{Lab, command, http, wait_until};

/// The address of the API server, in the namespace of the lab's store.
pub const API_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 254);
const PORT: u16 = 6443;
/// Longest time until the API server answers, on a machine that starts all other programs at the
/// same time.
const UP: Duration = Duration::from_secs(90);
const GONE: Duration = Duration::from_secs(10);
const API_SERVER_PROGRAM: &str = "kube-apiserver";
/// The programs without which a cluster does not work.
const CONTROL_PLANE: [&str; 3] = [
    API_SERVER_PROGRAM,
    "kube-controller-manager",
    "kube-scheduler",
];
/// The cure for one of them that has ended.
const CURE: &str = "Mend what these name, take the cluster down (`cargo xtask lab down`), and \
                    start it again. Where they name nothing, the kernel has perhaps ended the \
                    program because memory ran out (`dmesg`): a cluster of two nodes takes 2 GiB.";
/// Number of lines of a log in an error.
const LAST_WORDS: usize = 40;
/// The users of the API server beside the nodes, each with its name as its token: file name,
/// user, groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// Starts all three programs.
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
            // Failures must be noticed within seconds, because tests wait for that.
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
    )
}

/// Starts the API server for the first time, and writes the files that its clients need.
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
    wait_while_up(directory, "the API server's certificate", UP, || {
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
    launch(
        lab,
        directory,
        API_SERVER_PROGRAM,
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
    )
}

/// An API server alone beside a lab's etcd, for measurements that need Nodes and no kubelets. The
/// API server ends with the lab.
pub struct ApiServer {
    directory: PathBuf,
}

impl ApiServer {
    /// The address at which `kubectl proxy` accepts plain HTTP for an administrator, in the
    /// namespace of the lab's store.
    pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

    /// Starts the API server and waits until it answers.
    ///
    /// # Errors
    /// When the program is missing, or does not start.
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

    /// The configuration of an administrator's clients.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.conf")
    }
}

/// Ends a program that is recorded as required.
pub(super) fn end(directory: &Path, name: &str) -> Result<()> {
    let process = read_record(&record(directory, name))?;
    process.signal(Signal::SIGKILL)?;
    process.wait_gone(GONE)
}

/// Ends the API server at once, because this version takes a minute after SIGTERM. Until the next
/// start the API server is not a required program.
pub(super) fn stop_api_server(directory: &Path) -> Result<()> {
    end(directory, API_SERVER_PROGRAM)?;
    let path = record(directory, API_SERVER_PROGRAM);
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
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
    wait_while_up(directory, "the API server to be ready", UP, ready)
}

/// [`wait_until`], which ends at once where a program of the control plane does.
pub(super) fn wait_while_up(
    directory: &Path,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> bool,
) -> Result<()> {
    wait_for(what, limit, || match check(directory) {
        Ok(()) => look().then_some(Ok(())),
        Err(ended) => Some(Err(ended)),
    })?
}

/// Whether every required program of the control plane runs.
///
/// # Errors
/// Names a program that does not run, with its last log lines and the cure.
pub(super) fn check(directory: &Path) -> Result<()> {
    for name in CONTROL_PLANE {
        let path = record(directory, name);
        if path.exists() && !read_record(&path)?.is_alive() {
            let log = log(directory, name);
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!(
                "{name} has ended; its last words ({log}):\n{}\n{CURE}",
                tail(&said)
            );
        }
    }
    Ok(())
}

/// The end of a log.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}

/// Writes a client's configuration to `NAME.conf` in `to`; the client's token is its name.
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

/// Starts a program in the store's namespace, and records it as required.
fn launch(lab: &Lab, directory: &Path, name: &str, flags: &[String]) -> Result<()> {
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
    let text = serde_json::to_string(&process).context("write a process as JSON")?;
    write(directory, &format!("{name}.json"), &text)?;
    check(directory)
}

/// The file that records a program's process.
fn record(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

fn read_record(path: &Path) -> Result<Process> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_wait_ends_with_the_program_it_needs() {
        let place = std::env::temp_dir().join(format!("overlay-plane-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let text = serde_json::to_string(&process).unwrap();
        write(&place, "kube-scheduler.json", &text).unwrap();
        write(&place, "kube-scheduler.log", "first\nno leader\n").unwrap();
        let mut looks = 0;
        let wait = |look: &mut dyn FnMut() -> bool| wait_while_up(&place, "a pod", UP, look);
        wait(&mut || true).unwrap();
        let ended = wait(&mut || {
            looks += 1;
            child.kill().unwrap();
            child.wait().unwrap();
            false
        });
        let text = format!("{:#}", ended.unwrap_err());
        for word in ["kube-scheduler has ended", "no leader", "lab down"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(looks, 1);
        fs::remove_dir_all(&place).unwrap();
    }
}
