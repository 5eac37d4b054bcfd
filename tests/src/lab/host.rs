//! Makes a node: namespaces that look like a separate host.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::options::StoreKind;
use super::state::{NodeRecord, Shared};
use super::{groups, store, underlay};
use crate::{Namespace, command, wait_until};

/// The file that lists the CPUs.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Longest time until the kernel has removed a network namespace.
const CABLE_GONE: Duration = Duration::from_secs(20);
/// flannel's CNI configuration, with the one plugin that is ours.
const LIST: &str = r#"{
  "name": "cbr0",
  "plugins": [
    {
      "type": "flannel",
      "capabilities": { "ips": true, "mac": true, "io.kubernetes.cri.pod-annotations": true },
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    }
  ]
}
"#;
/// The path of a node's CNI configuration.
pub(super) const CONFLIST_PATH: &str = "/etc/cni/net.d/10-flannel.conflist";
/// The directory of a node's CNI plugins.
pub(super) const PLUGINS: &str = "/opt/cni/bin";
/// The distribution's directory of the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// Makes node `number`: its namespaces, its cable to the underlay, its default route.
pub(super) fn create(shared: &Shared, number: usize) -> Result<()> {
    let name = format!("n{number}");
    let address = underlay::node_address(number);
    let namespace = super::add_namespace(shared, &name)?;
    let mount_file = shared.directory().join(format!("{name}.mnt"));
    create_mounts(shared, &name, &namespace, &mount_file)
        .with_context(|| format!("make the mount namespace of {name}"))?;
    plug(shared, number, &namespace)?;
    let group = match shared.read(|state| state.options.apart) {
        true => Some(create_group(shared, &name)?),
        false => None,
    };
    shared.update(|state| {
        state.nodes.push(NodeRecord {
            name,
            namespace,
            mount: mount_file,
            underlay: address,
            agent: None,
            group,
        });
    })
}

/// Makes the control group of the node's sockets.
fn create_group(shared: &Shared, name: &str) -> Result<PathBuf> {
    let group = groups::create_for_threads(&format!("{}{name}", shared.prefix()))?;
    let path = group.path.clone();
    shared.update(|state| state.control_groups.push(path.clone()))?;
    let mut held = shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
    held.push(group);
    Ok(path)
}

/// Replaces the network namespace of node `number` by a new one.
pub(super) fn renew_network(shared: &Shared, number: usize) -> Result<()> {
    let namespace = format!("{}n{number}", shared.prefix());
    command::ip(&format!("netns delete {namespace}"))?;
    // The kernel removes a namespace some time after its name, and with it the cable's other end.
    let wire = format!("{}{}", shared.prefix(), underlay::WIRE);
    wait_until("the old cable to be gone", CABLE_GONE, || {
        command::ip(&format!("-n {wire} link show n{number}")).is_err()
    })?;
    command::ip(&format!("netns add {namespace}"))?;
    command::ip(&format!("-n {namespace} link set lo up"))?;
    plug(shared, number, &namespace)
}

/// The cable to the underlay, and the default route.
fn plug(shared: &Shared, number: usize, namespace: &str) -> Result<()> {
    let address = underlay::node_address(number);
    underlay::plug(shared, &format!("n{number}"), namespace, address)?;
    let route = format!("route add default via {}\n", underlay::OUTSIDE_GATEWAY);
    command::ip_batch(namespace, &route)
}

/// Makes a mount namespace that looks like a separate host and keeps it alive on `file`.
fn create_mounts(shared: &Shared, name: &str, namespace: &str, file: &Path) -> Result<()> {
    let options = shared.read(|state| state.options.clone());
    let run = shared.directory().join(format!("{name}.run"));
    fs::create_dir(&run).with_context(|| format!("create {}", run.display()))?;
    for directory in ["/var/lib/cni", "/etc/cni", "/opt/cni"] {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    let shared_store = (options.store == StoreKind::Dir).then(|| store::directory(shared));
    File::create(file).with_context(|| format!("create {}", file.display()))?;
    let bind_new = |cpu: usize| -> Result<nix::Result<()>> {
        let made = Namespace::new(namespace).inside(|| {
            run_on(cpu)?;
            unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
            become_host(&run, shared_store.as_deref(), &options.bin_dir)?;
            File::open("/proc/thread-self/ns/mnt").context("open /proc/thread-self/ns/mnt")
        })??;
        let handle = format!("/proc/self/fd/{}", made.as_raw_fd());
        let (handle, flags) = (Some(handle.as_str()), MsFlags::MS_BIND);
        Ok(mount(handle, file, None::<&str>, flags, None::<&str>))
    };
    // A mount namespace can hold only namespaces with higher numbers, so that no two hold each
    // other. Since Linux 6.18 every CPU assigns numbers from a separate range, and some ranges may
    // be behind the number of this process's mount namespace; that of the CPU which assigned this
    // number is not.
    let mut bound = Err(Errno::ENODEV);
    for cpu in cpus()? {
        bound = bind_new(cpu)?;
        if bound != Err(Errno::EINVAL) {
            break;
        }
    }
    bound.with_context(|| format!("bind a mount namespace to {}", file.display()))
}

/// The CPUs that are online, whether or not this process may run there.
fn cpus() -> Result<Vec<usize>> {
    let text = fs::read_to_string(ONLINE).with_context(|| format!("read {ONLINE}"))?;
    parse_cpus(&text).with_context(|| format!("{ONLINE} has no list of CPUs: {text:?}"))
}

/// Parses lists such as `0-3,6`.
fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Binds this thread to one CPU.
fn run_on(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        .with_context(|| format!("move to CPU {cpu}"))
}

/// Mounts over the directories that a host does not share. `run` becomes `/run`.
fn become_host(run: &Path, shared_store: Option<&Path>, bin_dir: &Path) -> Result<()> {
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / a slave")?;

    fresh("tmpfs", run)?;
    // The machine creates and removes pods later, and the pods must appear here, so this is a bind
    // mount with propagation.
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

/// Writes the CNI configuration and the plugins to the directories of a runtime.
fn install_cni(bin_dir: &Path) -> Result<()> {
    let plugins = Path::new(PLUGINS);
    fs::create_dir_all(plugins).with_context(|| format!("create {PLUGINS}"))?;
    // Other configurations can use the distribution's reference plugins, where they are installed.
    for plugin in fs::read_dir(REFERENCE_PLUGINS)
        .into_iter()
        .flatten()
        .flatten()
    {
        link(&plugin.path(), &plugins.join(plugin.file_name()))?;
    }
    let ours = bin_dir.join("overlay-cni");
    for name in ["overlay-cni", "flannel"] {
        // The distribution's flannel plugin may have the name already.
        let _ = fs::remove_file(plugins.join(name));
        link(&ours, &plugins.join(name))?;
    }
    // Bare nodes need no programs.
    if !ours.exists() {
        return Ok(());
    }
    // A link, because the program finds its own path through it, and a copy on each of many nodes
    // would take much memory.
    let list = Path::new("/run/cni-conf.json");
    fs::write(list, LIST).with_context(|| format!("write {}", list.display()))?;
    let mut install = Command::new(&ours);
    install
        .args(["install", "--list"])
        .arg(list)
        .arg("--bin-dir")
        .arg(PLUGINS);
    let output = install.output().context("run overlay-cni install")?;
    command::require_success("overlay-cni install", output).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_cpus("0\n"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_cpus("\n"), None);
    }
}
