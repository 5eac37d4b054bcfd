//! A Kubernetes cluster on a lab's nodes: a real API server, controller manager and scheduler
//! beside the lab's etcd, and a real containerd, kubelet and kube-proxy in namespaces of each
//! node's own.
//!
//! The lab removes the whole cluster, because every started process is recorded with the lab's
//! other processes.

mod churn;
mod control_plane;
mod images;
mod manifest;
mod names;
mod node;
mod page;
mod pod;
mod programs;
mod upstream;
mod wait;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use churn::{CallTimes, reference_list};
pub use control_plane::{API_SERVER, ApiServer};
pub use images::{NEXT_FILE, OVERLAY_IMAGE, PROBE_IMAGE};
pub use names::Names;
pub use node::Node;
pub use pod::pod;
pub use programs::{BIN_DIR_ENV, NAMES as PROGRAMS, SUITE_DIR, bin_dir};
pub use upstream::{CONFORMANCE, Case, Outcome, SUITE};

use crate::{Lab, Namespace, Options, StoreKind, command, interrupt};

/// The pods' network, as in kubeadm's defaults and flannel's manifest.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// The Services' network.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// The address of the pods' DNS server; a server exists where a test starts one.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The domain of a cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Interval of the checks of the control plane while kubectl runs.
const LOOK: Duration = Duration::from_millis(100);
/// Commands of kubectl that send whole objects, which kubectl compares with the API server's
/// schema.
const VALIDATES: [&str; 3] = ["apply", "create", "replace"];
/// Flags of such commands that name the objects' source.
const SOURCES: [&str; 4] = ["-f", "--filename", "-k", "--kustomize"];

/// kubectl's arguments, with `--validate=false` where kubectl would refuse fields that this
/// Kubernetes (1.20) does not know: `appArmorProfile` is of 1.30. Later versions only warn of
/// unknown fields.
fn for_this_version<S: AsRef<OsStr>>(asked: impl IntoIterator<Item = S>) -> Vec<OsString> {
    let mut words: Vec<OsString> = asked.into_iter().map(|it| it.as_ref().to_owned()).collect();
    let own = words.iter().map(|word| word.to_string_lossy());
    let own: Vec<_> = own.take_while(|word| word != "--").collect();
    let verb = own.iter().position(|word| VALIDATES.contains(&&**word));
    let has = |flags: &[&str]| {
        own.iter()
            .any(|word| flags.iter().any(|flag| word.starts_with(flag)))
    };
    if has(&SOURCES)
        && !has(&["--validate"])
        && let Some(at) = verb
    {
        words.insert(at + 1, "--validate=false".into());
    }
    words
}

/// A cluster. Dropping this value takes its lab down, unless the lab is kept.
pub struct Cluster {
    lab: Lab,
}

impl Cluster {
    /// Starts a cluster on a lab without agents of its own, and gives every node the images. Nodes
    /// are not ready before a network is applied.
    ///
    /// # Errors
    /// When a program is missing or does not start. All parts made until then are removed.
    pub fn up(options: Options) -> Result<Self> {
        programs::check()?;
        let say = |text: &str| options.say(text);
        let options = Options {
            store: StoreKind::Etcd,
            start_agents: false,
            pods: 0,
            ..options.clone()
        };
        let nodes = options.nodes;
        let bin_dir = options.bin_dir.clone();
        let lab = Lab::up(options.clone())?;
        let cluster = Self { lab };
        let directory = cluster.directory();
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        say("images");
        let archives = images::write(&directory, &bin_dir)?;
        say("API server, controller manager, scheduler");
        control_plane::start(&cluster.lab, &directory)?;
        for number in 1..=nodes {
            interrupt::check()?;
            say(&format!("containerd, kubelet and kube-proxy of n{number}"));
            cluster.node(number).create(&archives)?;
        }
        cluster.wait_registered(nodes)?;
        Ok(cluster)
    }

    /// The cluster on a running lab; `None` where the lab has no cluster.
    pub fn attach(lab: Lab) -> Option<Self> {
        let cluster = Self { lab };
        cluster.directory().is_dir().then_some(cluster)
    }

    /// The lab below.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Leaves the cluster running when this value is dropped.
    pub fn keep(self) -> Self {
        Self {
            lab: self.lab.keep(),
        }
    }

    /// Takes the cluster and its lab down.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn down(self) -> Result<()> {
        self.lab.down()
    }

    /// Node `number`, counted from 1.
    pub fn node(&self, number: usize) -> Node<'_> {
        Node::new(self, number)
    }

    /// Every node, in order.
    pub fn nodes(&self) -> Vec<Node<'_>> {
        (1..=self.lab.options().nodes)
            .map(|number| self.node(number))
            .collect()
    }

    /// A kubectl with an administrator's rights and the arguments that this Kubernetes needs
    /// ([`for_this_version`]), to be started by [`Namespace::start`] of [`Cluster::place`].
    ///
    /// # Errors
    /// When the lab has lost its parts.
    pub fn kubectl_command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let mut command = self.place()?.command(bin_dir().join("kubectl"));
        command
            .env("KUBECONFIG", self.directory().join("admin.conf"))
            .args(for_this_version(arguments));
        Ok(command)
    }

    /// The namespace of the control plane.
    ///
    /// # Errors
    /// When the lab has lost its parts.
    pub fn place(&self) -> Result<Namespace> {
        self.lab.namespace("store")
    }

    /// Runs kubectl and returns its output.
    ///
    /// # Errors
    /// When kubectl fails; its output is part of the error.
    pub fn kubectl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl and returns its output as JSON.
    ///
    /// # Errors
    /// When kubectl fails, or its output is not JSON.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        let mut command = self.kubectl_command(arguments)?;
        command.arg("--output=json");
        let shown = command::show(&command);
        let text = self.run(&mut command, "")?;
        serde_json::from_str(&text).with_context(|| format!("`{shown}` answers {text}"))
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.kubectl_with(["apply", "--filename=-"], manifest)
            .map(drop)
    }

    /// Runs a kubectl that reads `input`.
    ///
    /// # Errors
    /// When kubectl fails; its output is part of the error.
    pub fn kubectl_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        self.run(&mut self.kubectl_command(arguments)?, input)
    }

    fn run(&self, command: &mut Command, input: &str) -> Result<String> {
        let shown = command::show(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut child = self.place()?.start(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that reads nothing has ended, and its output has the reason.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = self
            .output(child)
            .with_context(|| format!("wait for `{shown}`"))?;
        match command::require_success(&shown, output) {
            Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            // The cause may be that the control plane does not answer.
            Err(failure) => match self.check_control_plane() {
                Ok(()) => Err(failure),
                Err(ended) => Err(ended.context(failure)),
            },
        }
    }

    /// The output of a kubectl until its end. kubectl is ended at once when a program of the
    /// control plane ends, because kubectl would wait for ever.
    fn output(&self, child: Child) -> Result<Output> {
        // Child processes of kubectl are ended with it.
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id beyond 2^31")?);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                // The receiver no longer exists where the control plane has ended.
                let _ = sender.send(child.wait_with_output());
            });
            loop {
                match receiver.recv_timeout(LOOK) {
                    Ok(output) => return Ok(output?),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for it"),
                }
                let state = interrupt::check().and_then(|()| self.check_control_plane());
                if let Err(ended) = state {
                    // kubectl may have ended meanwhile.
                    let _ = killpg(group, Signal::SIGKILL);
                    return Err(ended);
                }
            }
        })
    }

    /// Whether the control plane runs.
    ///
    /// # Errors
    /// Names a program of the control plane that has ended, its last log lines, and the cure.
    pub fn check_control_plane(&self) -> Result<()> {
        control_plane::check(&self.directory())
    }

    /// Ends a program of the control plane, as a lack of memory would.
    ///
    /// # Errors
    /// When the program does not run.
    pub fn end_of_control_plane(&self, program: &str) -> Result<()> {
        control_plane::end(&self.directory(), program)
    }

    /// Stops the API server at once; see [`Cluster::start_api_server`].
    ///
    /// # Errors
    /// When the API server does not end.
    pub fn stop_api_server(&self) -> Result<()> {
        control_plane::stop_api_server(&self.directory())
    }

    /// Starts the API server again and waits until it answers.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.lab, &self.directory())
    }

    /// The directory of configuration, keys and logs.
    fn directory(&self) -> PathBuf {
        self.lab.directory().join("kubernetes")
    }
}

#[cfg(test)]
mod tests {
    use super::for_this_version;

    fn asked(line: &str) -> String {
        let words = for_this_version(line.split(' '));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn what_sends_objects_is_not_held_to_an_old_description() {
        assert_eq!(asked("apply -f a.yml"), "apply --validate=false -f a.yml");
        assert_eq!(
            asked("-n x create -f a.yml"),
            "-n x create --validate=false -f a.yml"
        );
        assert_eq!(
            asked("apply --validate=true -k ."),
            "apply --validate=true -k ."
        );
        for line in [
            "get pods",
            "create namespace a",
            "exec p -- apply -f a",
            "delete -f a.yml",
        ] {
            assert_eq!(asked(line), line);
        }
    }
}
