//! Real containers: containerd and runc inside a node, with an image made by the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::process::Running;
use crate::wait::wait_for;
use crate::{Namespace, Node, command, wait_until};

/// The directory of a node's containerd; `/run` is the node's own.
const HOME: &str = "/run/containerd-lab";
/// The image's name.
const IMAGE: &str = "localhost/overlay-busybox:lab";
/// Longest start of containerd, and longest start and end of a container.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds after which a container ends by itself.
const LIFETIME: &str = "120";
/// A static busybox; Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// A containerd in the namespaces of a node. Dropping this value ends every container, then
/// containerd.
pub struct Containerd {
    place: Namespace,
    name: String,
    process: Option<Running>,
}

/// A container with a separate network, started by `ctr run --cni` in the foreground.
pub struct Container {
    id: String,
    run: Running,
}

impl Containerd {
    /// Starts containerd on a node and gives it the image that is in `archive` (see [`image`]).
    ///
    /// # Errors
    /// When containerd is missing or does not start.
    pub fn start(node: &Node, archive: &Path) -> Result<Self> {
        let place = node.namespace();
        let config = format!(
            "version = 2\nroot = \"{HOME}/root\"\nstate = \"{HOME}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{HOME}/socket\"\n"
        );
        let file = PathBuf::from(HOME).join("config.toml");
        place.inside(|| fs::create_dir_all(HOME).and_then(|()| fs::write(&file, config)))??;
        let process = place.spawn(["containerd", "--config", &format!("{HOME}/config.toml")])?;
        let containerd = Self {
            place,
            name: node.name(),
            process: Some(process),
        };
        wait_until("containerd to answer", PATIENCE, || {
            containerd.ctr(["version"]).is_ok()
        })?;
        let archive = archive.to_str().context("a path that is text")?;
        containerd.ctr(["image", "import", "--snapshotter=native", archive])?;
        Ok(containerd)
    }

    /// Runs `ctr`.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.place.run(ctr(arguments))
    }

    /// Starts a container that runs `program` in a separate network.
    ///
    /// # Errors
    /// When the container is not running in time; the output of `ctr` is part of the error.
    pub fn run(&self, id: &str, program: &[&str]) -> Result<Container> {
        let flags = ["run", "--cni", "--rm", "--snapshotter=native", IMAGE, id];
        let line = ctr(flags.into_iter().chain(program.iter().copied()));
        let bounded = ["timeout", LIFETIME].map(str::to_owned);
        let run = self.place.spawn(bounded.into_iter().chain(line))?;
        let running = || {
            self.ctr(["task", "list"])
                .is_ok_and(|tasks| tasks.lines().any(|line| is_running(line, id)))
        };
        let what = format!("container {id} to run on {}", self.name);
        if let Err(error) = wait_until(&what, PATIENCE, running) {
            let said = run.stop(Signal::SIGTERM)?;
            return Err(error).with_context(|| String::from_utf8_lossy(&said.stderr).into_owned());
        }
        Ok(Container {
            id: id.to_owned(),
            run,
        })
    }

    /// Runs a program in a container to its end and returns its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, container: &Container, program: &[&str]) -> Result<String> {
        let before = ["task", "exec", "--exec-id", "probe", &container.id];
        self.ctr(before.into_iter().chain(program.iter().copied()))
    }

    /// The address of a container, as its own `ip` shows it.
    ///
    /// # Errors
    /// When it has none in time.
    pub fn address(&self, container: &Container) -> Result<String> {
        let look = || {
            let shown = self
                .exec(container, &["ip", "-o", "-4", "addr", "show", "eth0"])
                .ok()?;
            let mut words = shown.split_whitespace();
            words.find(|word| *word == "inet")?;
            Some(words.next()?.split('/').next()?.to_owned())
        };
        wait_for(&format!("the address of {}", container.id), PATIENCE, look)
    }

    /// Kills the container's processes and waits until `ctr run` has cleaned up.
    ///
    /// # Errors
    /// When the clean-up fails.
    pub fn end(&self, container: Container) -> Result<()> {
        self.ctr(["task", "kill", "--signal", "SIGKILL", &container.id])?;
        let said = container.run.wait()?;
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        anyhow::ensure!(
            complaint.is_empty(),
            "ctr run {}: {complaint}",
            container.id
        );
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive containerd, so containers that still run are ended by their names first.
        let left = self.ctr(["task", "list", "--quiet"]).unwrap_or_default();
        for id in left.lines() {
            if let Err(error) = self.ctr(["task", "rm", "--force", id]) {
                eprintln!("container {id} on {}: {error:#}", self.name);
            }
        }
        if let Some(process) = self.process.take() {
            let _ = process.stop(Signal::SIGTERM);
        }
    }
}

fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let start = ["ctr", "--address"].map(str::to_owned);
    let socket = format!("{HOME}/socket");
    let rest = arguments.into_iter().map(str::to_owned);
    start.into_iter().chain([socket]).chain(rest).collect()
}

/// Whether a line of `ctr task list` (task, pid, status) says that a task runs.
fn is_running(line: &str, id: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next() == Some(id) && words.last() == Some("RUNNING")
}

/// Makes an image that contains only busybox and returns the archive, in Docker's format.
///
/// # Errors
/// When busybox, `tar` or `sha256sum` is missing.
pub fn image(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    fs::create_dir_all(root.join("bin")).context("create the image's directories")?;
    fs::create_dir_all(root.join("www")).context("create the image's directories")?;
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("copy {BUSYBOX}: install busybox-static"))?;
    for applet in ["sh", "httpd", "nc", "ip"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
            .with_context(|| format!("link {applet}"))?;
    }
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    command::run("tar", ["-C", &at("root"), "-cf", &at("layer.tar"), "."])?;
    let sum = command::run("sha256sum", [at("layer.tar")])?;
    let digest = sum.split_whitespace().next().context("a digest")?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}
    ]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(directory.join(name), content.to_string())
            .with_context(|| format!("write {name}"))?;
    }
    let archive = directory.join("image.tar");
    let files = ["manifest.json", "config.json", "layer.tar"].map(str::to_owned);
    let start = ["-C", &at(""), "-cf", &archive.to_string_lossy()].map(str::to_owned);
    command::run("tar", start.into_iter().chain(files))?;
    Ok(archive)
}
