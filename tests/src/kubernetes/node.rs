//! A node of the cluster: containerd, kubelet and kube-proxy in separate namespaces, and the files
//! that outlive a reboot.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::control_plane::{tail, write, write_client};
use super::images::PROBE_IMAGE;
use super::programs::bin_dir;
use super::{CLUSTER_DNS, CLUSTER_DOMAIN, Cluster, POD_NETWORK};
use crate::process::Process;
use crate::wait::wait_for;
use crate::{command, http, wait_until};

/// The script of a node's first process.
const INIT: &str = include_str!("node.sh");
/// Enters control groups and namespaces and becomes the parent of a node's first process, with
/// which this script ends.
const ENTER: &str = r#"set -eu
network=$1 home=$2 name=$3
shift 3
for group; do echo $$ > "$group/cgroup.procs"; done
exec nsenter --net="$network" unshare --mount --pid --uts --ipc --cgroup --fork --kill-child \
    bash "$home/node.sh" "$home" "$name""#;
/// The distribution's directory of the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
const PLUGINS: [&str; 4] = ["loopback", "portmap", "bridge", "host-local"];
/// Name of a directory of the node's.
const STATIC_PODS: &str = "manifests";
const UP: Duration = Duration::from_secs(60);
const GONE: Duration = Duration::from_secs(20);

/// A node of the cluster.
pub struct Node<'a> {
    cluster: &'a Cluster,
    number: usize,
}

impl<'a> Node<'a> {
    pub(super) fn new(cluster: &'a Cluster, number: usize) -> Self {
        Self { cluster, number }
    }

    /// `n1`, `n2`, …, which is also the name of the Node object.
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The lab's node below, with its network namespace and its address on the underlay.
    pub fn below(&self) -> crate::Node {
        self.cluster.lab.node(self.number)
    }

    /// The agent's answer about its readiness on this port, if the agent is ready.
    ///
    /// # Errors
    /// When the agent does not answer, or is not ready.
    pub fn readyz(&self, port: u16) -> Result<String> {
        let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let network = self.below().namespace();
        let answer = network.inside(|| http::get(agent, "/readyz"))??;
        ensure!(answer.status == 200, "not ready: {}", answer.body);
        Ok(answer.body)
    }

    /// Runs a program in all namespaces of the node. The caller judges a bad exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut command = self.command(line)?;
        let shown = command::show(&command);
        command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start `{shown}`"))
    }

    /// Runs a program that must succeed; returns its output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        let line: Vec<S> = line.into_iter().collect();
        let words: Vec<_> = line
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        let shown = format!("{}: {}", self.name(), words.join(" "));
        let output = command::require_success(&shown, self.exec(&line)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A program to be started in all namespaces of the node.
    ///
    /// # Errors
    /// When the node is down.
    pub fn command<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Command> {
        let init = self.init()?;
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &init.pid.to_string(), "--"]);
        command.args(line);
        Ok(command)
    }

    /// Creates the files that outlive reboots, starts the node, and gives the node images.
    pub(super) fn create(&self, archives: &[PathBuf]) -> Result<()> {
        let home = self.home();
        let plugins = home.join("disk/opt/cni/bin");
        fs::create_dir_all(&plugins).with_context(|| format!("create {}", plugins.display()))?;
        for name in PLUGINS {
            let from = Path::new(REFERENCE_PLUGINS).join(name);
            fs::copy(&from, plugins.join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        let directory = self.cluster.directory();
        write_client(&directory, &self.name(), &home)?;
        write_client(&directory, "proxy", &home)?;
        write(&home, "containerd.toml", &containerd_config())?;
        write(&home, "kubelet.json", &kubelet_config().to_string())?;
        write(&home, "proxy.json", &proxy_config(&self.name()).to_string())?;
        write(&home, "node.sh", INIT)?;
        let manifests = self.static_pods();
        fs::create_dir(&manifests).with_context(|| format!("create {}", manifests.display()))?;
        let groups = self.cluster.lab.add_control_groups(self.number)?;
        let groups = serde_json::to_string(&groups).context("write paths as JSON")?;
        write(&home, "groups.json", &groups)?;
        self.start()?;
        archives.iter().try_for_each(|archive| self.import(archive))
    }

    /// Gives the node the image in an archive, which is below the lab's directory.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub(super) fn import(&self, archive: &Path) -> Result<()> {
        // The node sees its own directory, and no other directory of the lab.
        let name = archive.file_name().unwrap_or_default();
        let archive_in_node = self.home().join(name);
        fs::hard_link(archive, &archive_in_node)
            .with_context(|| format!("link {}", archive_in_node.display()))?;
        let path = format!("/run/node/{}", name.to_string_lossy());
        self.run(["ctr", "--namespace=k8s.io", "image", "import", &path])?;
        fs::remove_file(&archive_in_node)
            .with_context(|| format!("remove {}", archive_in_node.display()))
    }

    /// Starts the node's processes and waits for containerd.
    ///
    /// # Errors
    /// When a process does not start.
    pub fn start(&self) -> Result<()> {
        let home = self.home();
        let groups = fs::read(home.join("groups.json")).context("read groups.json")?;
        let groups: Vec<PathBuf> =
            serde_json::from_slice(&groups).context("understand groups.json")?;
        let log = home.join("node.log");
        let open = File::options().create(true).append(true).open(&log);
        let output = open.with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate a file handle")?;
        let network = self.below().namespace().path();
        let inherited = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .env(
                "PATH",
                format!("{}:{inherited}:/usr/sbin:/sbin", bin_dir().display()),
            )
            .args(["-c", ENTER, "enter"])
            .args([&network, &home])
            .arg(self.name())
            .args(groups)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context("start bash")?;
        let parent = Process::of(child.id())?;
        self.cluster.lab.adopt(parent.clone())?;
        let pid = parent.pid;
        let init = wait_for("a node's first process", UP, || {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(path).ok()?;
            Process::of(children.split_whitespace().next()?.parse().ok()?).ok()
        })?;
        self.cluster.lab.adopt(init.clone())?;
        let record = serde_json::to_string(&init).context("write a process as JSON")?;
        write(&home, "init.json", &record)?;
        let up = || {
            let ask = [
                "ctr",
                "--address=/run/containerd/containerd.sock",
                "version",
            ];
            self.exec(ask).is_ok_and(|output| output.status.success())
        };
        let what = format!("containerd of {}", self.name());
        wait_until(&what, UP, || !init.is_alive() || up())?;
        if !init.is_alive() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("{} has ended: {said}", self.name());
        }
        Ok(())
    }

    /// Ends every process of the node at once, like a loss of power. `/run` disappears with the
    /// mount namespace, and the network namespaces of the node's pods with the last process and
    /// mount that held them.
    ///
    /// # Errors
    /// When they do not end.
    pub fn power_off(&self) -> Result<()> {
        let init = self.init()?;
        init.signal(Signal::SIGKILL)?;
        init.wait_gone(GONE)
    }

    /// Powers the node off, and starts it with a network that has only its cable.
    ///
    /// # Errors
    /// When the node does not start.
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.cluster.lab.renew_network(self.number)?;
        self.start()
    }

    /// The log file of a program of the node: `kubelet`, `containerd`, `proxy`.
    pub fn log(&self, program: &str) -> PathBuf {
        self.home().join(format!("{program}.log"))
    }

    /// The last log lines of the kubelet, containerd and the agent, for the message of a failure.
    pub fn last_words(&self) -> String {
        let programs = ["kubelet", "containerd"].map(|program| {
            let text = fs::read_to_string(self.log(program)).unwrap_or_default();
            format!("{program} of {}:\n{}", self.name(), tail(&text))
        });
        let agent =
            "cat /var/log/pods/kube-*/overlayd/*.log /var/log/pods/kube-*/kube-flannel/*.log";
        let agent = self.run(["sh", "-c", agent]).unwrap_or_default();
        format!("{}\nagent:\n{}", programs.join("\n"), tail(&agent))
    }

    /// The directory of the kubelet's static pods, which need no API server.
    pub(super) fn static_pods(&self) -> PathBuf {
        self.home().join(STATIC_PODS)
    }

    /// The file of a static pod.
    pub(super) fn static_pod(&self, name: &str) -> PathBuf {
        self.static_pods().join(format!("{name}.json"))
    }

    fn init(&self) -> Result<Process> {
        let path = self.home().join("init.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
    }

    pub(super) fn home(&self) -> PathBuf {
        self.cluster.directory().join(self.name())
    }
}

/// A container's OOM score is not lowered, because that needs a privilege (CAP_SYS_RESOURCE).
fn containerd_config() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PROBE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
"#
    )
}

fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Only the lab can reach the address.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "readOnlyPort": 0,
        "resolvConf": "",
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": CLUSTER_DOMAIN,
        // The machine below is shared, so no node may evict pods because another one needs memory
        // or disk.
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "10Mi"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "serializeImagePulls": false,
        // The defaults since Kubernetes 1.27; with the older ones, 5 and 10, a kubelet waits before
        // it says that a pod is Ready.
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "eventRecordQPS": 50,
        "eventBurst": 100,
        // The interval at which a kubelet notices the end of a container whose event it missed; by
        // default a minute.
        "syncFrequency": "10s",
        "staticPodPath": format!("/run/node/{STATIC_PODS}"),
    })
}

fn proxy_config(name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/run/node/proxy.conf"},
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": name,
        "oomScoreAdj": 0,
        // These are settings of the whole machine.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpCloseWaitTimeout": "0s",
            "tcpEstablishedTimeout": "0s",
        },
    })
}
