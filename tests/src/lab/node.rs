//! A node of the lab.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::agent::{self, Agent};
use super::options::StoreKind;
use super::pod::{self, Pod};
use super::process::Process;
use super::state::{NodeRecord, Shared};
use super::{store, underlay};
use crate::{Namespace, command, wait_until};

/// flannel's CNI configuration, with the one plugin that is ours.
const CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    }
  ]
}
"#;
/// Where the CNI configuration of a node lies.
pub(super) const CONFLIST_PATH: &str = "/etc/cni/net.d/10-flannel.conflist";
/// Where the CNI plugins of a node lie.
pub(super) const PLUGINS: &str = "/opt/cni/bin";
/// Where distributions put the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// How long an HTTP answer may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// A node of the lab. A handle: cheap to clone, valid while the lab is up.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    index: usize,
}

/// An answer of the agent's HTTP server.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Everything after the header.
    pub body: String,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index }
    }

    fn record(&self) -> NodeRecord {
        self.shared.read(|state| state.nodes[self.index].clone())
    }

    /// `n1`, `n2`, …
    pub fn name(&self) -> String {
        self.record().name
    }

    /// Its number, from 1.
    pub fn number(&self) -> usize {
        self.index + 1
    }

    /// Its network and mount namespace.
    pub fn namespace(&self) -> Namespace {
        let record = self.record();
        Namespace::with_mount(record.namespace, record.mount)
    }

    /// Its address on the underlay, of its `eth0`.
    pub fn underlay_address(&self) -> Ipv4Addr {
        self.record().underlay
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Pod> {
        let mine = |record: &&super::state::PodRecord| record.node == self.number();
        let records = self
            .shared
            .read(|state| state.pods.iter().filter(mine).cloned().collect());
        let records: Vec<_> = records;
        records
            .into_iter()
            .map(|record| Pod::new(Arc::clone(&self.shared), record))
            .collect()
    }

    /// The pod subnet that its agent leased, from `/run/flannel/subnet.env`.
    ///
    /// # Errors
    /// Before the agent has a lease.
    pub fn subnet(&self) -> Result<Ipv4Net> {
        let text = self.read_file("/run/flannel/subnet.env")?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        let value = value.context("subnet.env has no FLANNEL_SUBNET")?;
        let gateway: Ipv4Net = value.parse().with_context(|| format!("subnet {value:?}"))?;
        Ok(gateway.trunc())
    }

    /// Reads a file as the node sees it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_file(&self, path: impl AsRef<Path> + Send) -> Result<String> {
        let path = path.as_ref().to_owned();
        let context = format!("read {} on {}", path.display(), self.name());
        self.namespace()
            .run(|| fs::read_to_string(path))?
            .context(context)
    }

    /// A command to be run on the node: our programs come first in its PATH.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command(&self.shared, program)
    }

    /// Runs a program on the node to its end. A bad exit status is the caller's to judge.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut words = line.into_iter();
        let program = words.next().context("nothing to run")?;
        self.namespace().output(self.command(program).args(words))
    }

    /// Runs a program on the node, demands success and returns its stdout.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = line.into_iter();
        let program = words.next().context("nothing to run")?;
        let mut command = self.command(program);
        command.args(words);
        let shown = format!("{}: {}", self.name(), command::show(&command));
        let output = command::require_success(&shown, self.namespace().output(&mut command)?)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program on the node and lets it run; it ends with the returned value.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Result<Running> {
        let mut words = line.into_iter();
        let program = words.next().context("nothing to run")?;
        Running::start(&self.namespace(), self.command(program).args(words))
    }

    /// What a program on the node writes as JSON, such as `overlayctl status --output json`.
    ///
    /// # Errors
    /// When the program fails or writes something else.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        line: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        let text = self.run(line)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Starts the agent with its usual flags, `extra` ones replacing those of the same name
    /// (`--name=value`), and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; its last log lines are part of the error.
    pub fn start_agent(&self, extra: &[&str]) -> Result<()> {
        self.start_agent_unready(extra)?;
        self.wait_ready(super::AGENT_READY)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_unready(&self, extra: &[&str]) -> Result<Agent> {
        let program = self
            .shared
            .read(|state| state.options.bin_dir.join("overlayd"));
        self.start_agent_from(&program, extra)
    }

    /// The same with another build of the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_from(&self, program: &Path, extra: &[&str]) -> Result<Agent> {
        agent::start(&self.shared, self.index, &self.namespace(), program, extra)
    }

    /// Ends the agent with `signal` and waits until it is gone. Fine where none runs.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_agent(&self, signal: Signal) -> Result<()> {
        agent::stop(&self.shared, self.index, signal)
    }

    /// The agent's process, running or not.
    pub fn agent(&self) -> Option<Process> {
        self.record().agent
    }

    /// Where the agent logs.
    pub fn agent_log(&self) -> PathBuf {
        agent::log_path(&self.shared, &self.name())
    }

    /// The agent's last log lines, with a headline, for error messages.
    pub fn agent_log_tail(&self) -> String {
        let log = self.agent_log();
        format!("last lines of {}:\n{}", log.display(), agent::tail(&log))
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// After `limit`, or when the agent has ended.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let alive = || self.agent().is_some_and(|process| process.is_alive());
        let ready = || {
            self.http_get("/readyz")
                .is_ok_and(|answer| answer.status == 200)
        };
        wait_until(&format!("{} to be ready", self.name()), limit, || {
            !alive() || ready()
        })
        .with_context(|| self.agent_log_tail())?;
        if !alive() {
            bail!(
                "the agent of {} has ended; {}",
                self.name(),
                self.agent_log_tail()
            );
        }
        Ok(())
    }

    /// Asks the agent's HTTP server.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn http_get(&self, path: &str) -> Result<HttpAnswer> {
        self.namespace().run(|| http_get(path))?
    }

    /// Number of routes that carry our protocol id: one per known peer.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn overlay_routes(&self) -> Result<usize> {
        let namespace = self.record().namespace;
        Ok(
            command::ip(&format!("-n {namespace} route show proto 111"))?
                .lines()
                .count(),
        )
    }

    /// Calls the CNI plugin as a runtime would: `verb` with the environment of an attachment, or without
    /// one (`STATUS`, `GC`, `VERSION`). `extra` keys are put into the configuration.
    ///
    /// # Errors
    /// When the plugin cannot be run; its failure is in the output.
    pub fn cni(
        &self,
        verb: &str,
        attachment: Option<(&str, &Path)>,
        extra: &[(&str, serde_json::Value)],
    ) -> Result<Output> {
        pod::call_plugin(self, verb, attachment, extra)
    }
}

/// A program that runs in a namespace until this value is dropped.
pub struct Running(Option<Child>);

impl Running {
    pub(super) fn start(namespace: &Namespace, command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Self(Some(namespace.spawn(command)?)))
    }

    /// Its process, to send signals to.
    ///
    /// # Errors
    /// When it is gone.
    pub fn process(&self) -> Result<Process> {
        Process::of(
            self.0
                .as_ref()
                .context("a program that was waited for")?
                .id(),
        )
    }

    /// Waits for its own end and returns what it wrote.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Result<Output> {
        let child = self.0.take().context("a program that was waited for")?;
        child.wait_with_output().context("wait for a program")
    }

    /// Ends it with `signal` and returns what it wrote.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn stop(self, signal: Signal) -> Result<Output> {
        self.process()?.signal(signal)?;
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended on its own, then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes node `number`: its namespaces, its cable to the underlay, its default route.
pub(super) fn create(shared: &Shared, number: usize) -> Result<()> {
    let name = format!("n{number}");
    let address = underlay::node_address(number);
    let namespace = super::add_namespace(shared, &name)?;
    let mount_file = shared.directory().join(format!("{name}.mnt"));
    create_mounts(shared, &name, &namespace, &mount_file)
        .with_context(|| format!("make the mount namespace of {name}"))?;
    underlay::plug(shared, &name, &namespace, address)?;
    command::ip_batch(
        &namespace,
        &format!("route add default via {}\n", underlay::OUTSIDE_GATEWAY),
    )?;
    shared.update(|state| {
        state.nodes.push(NodeRecord {
            name,
            namespace,
            mount: mount_file,
            underlay: address,
            agent: None,
        });
    })
}

/// Makes a mount namespace that looks like a host of its own and keeps it alive on `file`.
fn create_mounts(shared: &Shared, name: &str, namespace: &str, file: &Path) -> Result<()> {
    let options = shared.read(|state| state.options.clone());
    let run = shared.directory().join(format!("{name}.run"));
    fs::create_dir(&run).with_context(|| format!("create {}", run.display()))?;
    for directory in ["/var/lib/cni", "/etc/cni", "/opt/cni"] {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    let shared_store = (options.store == StoreKind::Dir).then(|| store::directory(shared));
    let made = Namespace::new(namespace).run(|| {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        become_host(&run, shared_store.as_deref(), &options.bin_dir)?;
        File::open("/proc/thread-self/ns/mnt").context("open /proc/thread-self/ns/mnt")
    })??;
    File::create(file).with_context(|| format!("create {}", file.display()))?;
    let handle = format!("/proc/self/fd/{}", made.as_raw_fd());
    mount(
        Some(handle.as_str()),
        file,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("bind a mount namespace to {}", file.display()))
}

/// Mounts over whatever a host has for itself. `run` becomes `/run`.
fn become_host(run: &Path, shared_store: Option<&Path>, bin_dir: &Path) -> Result<()> {
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / a slave")?;

    fresh("tmpfs", run)?;
    // Pods are made and removed by the machine later, and must appear here: bind what propagates.
    bind(Path::new(crate::netns::NETNS_DIR), &run.join("netns"))?;
    fs::create_dir(run.join("lock")).context("create /run/lock")?;
    if let Some(store) = shared_store {
        let target = Path::new(store::DIR_IN_NODE);
        bind(store, &run.join(target.file_name().unwrap_or_default()))?;
    }
    // A new sysfs shows this node's devices; control groups are the machine's.
    let cgroups = run.join("cgroup");
    bind(Path::new("/sys/fs/cgroup"), &cgroups)?;
    fresh("sysfs", Path::new("/sys"))?;
    bind(&cgroups, Path::new("/sys/fs/cgroup"))?;
    fresh("bpf", Path::new("/sys/fs/bpf"))?;

    for directory in ["/var/lib/cni", "/etc/cni", "/opt/cni"] {
        fresh("tmpfs", Path::new(directory))?;
    }
    mount(
        Some(run),
        "/run",
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .context("move /run")?;
    install_cni(bin_dir)
}

/// Puts the CNI configuration and the plugins where a runtime looks for them.
fn install_cni(bin_dir: &Path) -> Result<()> {
    let config = Path::new(CONFLIST_PATH);
    fs::create_dir_all(config.parent().unwrap_or(config)).context("create /etc/cni/net.d")?;
    fs::write(config, CONFLIST).with_context(|| format!("write {CONFLIST_PATH}"))?;
    let plugins = Path::new(PLUGINS);
    fs::create_dir_all(plugins).with_context(|| format!("create {PLUGINS}"))?;
    // Where a distribution has the reference plugins, other configurations can use them.
    for plugin in fs::read_dir(REFERENCE_PLUGINS)
        .into_iter()
        .flatten()
        .flatten()
    {
        link(&plugin.path(), &plugins.join(plugin.file_name()))?;
    }
    let ours = bin_dir.join("overlay-cni");
    for name in ["overlay-cni", "flannel"] {
        // A name of the distribution's flannel plugin may be there already.
        let _ = fs::remove_file(plugins.join(name));
        link(&ours, &plugins.join(name))?;
    }
    Ok(())
}

fn link(target: &Path, name: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, name).with_context(|| format!("link {}", name.display()))
}

fn fresh(kind: &str, target: &Path) -> Result<()> {
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount a {kind} on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

/// A command that finds our programs first in its PATH, and system tools last.
pub(super) fn command(shared: &Shared, program: impl AsRef<OsStr>) -> Command {
    let bin_dir = shared.read(|state| state.options.bin_dir.clone());
    let inherited = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env(
        "PATH",
        format!("{}:{inherited}:/usr/sbin:/sbin", bin_dir.display()),
    );
    command
}

/// One request over HTTP/1.0, so that the answer ends with the connection.
fn http_get(path: &str) -> Result<HttpAnswer> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, agent::HEALTH_PORT));
    let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.context("an HTTP answer without a status")?;
    Ok(HttpAnswer {
        status,
        body: body.to_owned(),
    })
}
