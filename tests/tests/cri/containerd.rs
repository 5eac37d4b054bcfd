//! containerd 2 in the namespaces of a node, with its CRI plugin.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StatusRequest, StopPodSandboxRequest,
};
use nix::sys::signal::Signal;
use overlay_tests::image::{self, Image};
use overlay_tests::process::Running;
use overlay_tests::{Node, wait_until};
use tempfile::TempDir;
use tokio::runtime;
use tonic::transport::{Channel, Endpoint};

/// Where setup unpacks containerd 2.
const PROGRAMS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/containerd/root/usr/bin"
);
const IMAGE: &str = "localhost/overlay-sandbox:lab";
const SLEEP: &[&str] = &["/bin/sleep", "600"];
/// Longest start of containerd.
const UP: Duration = Duration::from_secs(30);

/// A running containerd. Dropping this value removes its sandboxes, and ends it.
pub struct Containerd {
    tasks: runtime::Runtime,
    cri: RuntimeServiceClient<Channel>,
    sandboxes: Vec<String>,
    process: Option<Running>,
    _home: TempDir,
}

impl Containerd {
    /// Starts containerd on a node, and gives it the image of sandboxes.
    pub fn start(node: &Node) -> Result<Self> {
        let home = tempfile::tempdir().context("make a directory")?;
        let at = |name: &str| home.path().join(name).display().to_string();
        let config = format!(
            r#"version = 3
root = "{root}"
state = "{state}"
[debug]
level = "error"
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
"#,
            root = at("root"),
            state = at("state"),
            socket = at("socket"),
        );
        fs::write(at("config.toml"), config).context("write config.toml")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("PATH={PROGRAMS}:{path}:/usr/sbin:/sbin");
        let program = Path::new(PROGRAMS).join("containerd");
        let program = program.to_str().context("a path that is text")?;
        let process = node.spawn(["env", &path, program, "--config", &at("config.toml")])?;
        let ctr = Path::new(PROGRAMS).join("ctr");
        let ctr = ctr.to_str().context("a path that is text")?;
        let ctr = |words: &[&str]| {
            let socket = at("socket");
            let start = [ctr, "--address", &socket, "--namespace=k8s.io"];
            node.run(start.iter().chain(words))
        };
        wait_until("containerd 2 to answer", UP, || ctr(&["version"]).is_ok())
            .with_context(|| format!("{program}: `cargo xtask setup` unpacks it"))?;
        let archive = at("sandbox.tar");
        Image {
            name: IMAGE,
            tree: image::probe()?,
            entrypoint: SLEEP,
            arguments: &[],
            path: image::PATH,
            compression: 1,
        }
        .write(Path::new(&archive))?;
        ctr(&["image", "import", &archive])?;
        let tasks = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime for tasks")?;
        let endpoint = Endpoint::try_from(format!("unix:{}", at("socket")))?;
        let channel = tasks.block_on(endpoint.connect())?;
        Ok(Self {
            cri: RuntimeServiceClient::new(channel),
            tasks,
            sandboxes: Vec::new(),
            process: Some(process),
            _home: home,
        })
    }

    /// What is missing for pods to be added, as the runtime tells kubelets.
    pub fn network_complaint(&mut self) -> Result<Option<String>> {
        let answer = self.cri.status(StatusRequest { verbose: false });
        let answer = self.tasks.block_on(answer)?.into_inner();
        let conditions = answer.status.context("no status")?.conditions;
        let network = conditions
            .into_iter()
            .find(|condition| condition.r#type == "NetworkReady")
            .context("no condition about the network")?;
        Ok((!network.status).then_some(network.message))
    }

    /// Makes the sandbox of a pod; returns its id and its address.
    pub fn run_sandbox(&mut self, name: &str) -> Result<(String, String)> {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            ..Default::default()
        };
        let made = self.cri.run_pod_sandbox(RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        });
        let id = self.tasks.block_on(made)?.into_inner().pod_sandbox_id;
        self.sandboxes.push(id.clone());
        let status = self.cri.pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: false,
        });
        let status = self.tasks.block_on(status)?.into_inner().status;
        let network = status.and_then(|status| status.network);
        Ok((id, network.context("no address")?.ip))
    }

    /// Removes the sandbox of a pod.
    pub fn remove_sandbox(&mut self, id: &str) -> Result<()> {
        let stopped = self.cri.stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        });
        self.tasks.block_on(stopped)?;
        let removed = self.cri.remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        });
        self.tasks.block_on(removed)?;
        self.sandboxes.retain(|known| known != id);
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive containerd.
        for id in self.sandboxes.clone() {
            if let Err(error) = self.remove_sandbox(&id) {
                eprintln!("sandbox {id}: {error:#}");
            }
        }
        if let Some(process) = self.process.take() {
            let _ = process.stop(Signal::SIGTERM);
        }
    }
}
