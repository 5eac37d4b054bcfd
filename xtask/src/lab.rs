//! `cargo xtask lab`: the lab for people.

pub mod table;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
pub use overlay_tests::flags::Output;
use overlay_tests::kubernetes::Cluster;
use overlay_tests::lab::{PREFIX_ENV, prefix_from_env};
use overlay_tests::{BackendKind, Lab, Options, StoreKind};

use crate::{build, setup, shell};

/// Nodes, pods and a store on this machine, to play with.
///
/// Nodes are network namespaces n1, n2, …, pods are n1p1, n1p2, …; `ip netns exec n1p1 ping …`
/// works on them. `lab exec` enters a node with its own /run, /etc/cni and bpffs, so that
/// overlayctl, ctr and bpftool see what they would see on a host. Two labs can live side by side
/// with OVERLAY_LAB_PREFIX=x- in the environment, which is put before every namespace's name.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask lab up --nodes 3 --pods 2
  cargo xtask lab up --backend host-gw
  cargo xtask lab exec n1p1 -- ping -c3 10.244.9.2
  cargo xtask lab exec n1 -- overlayctl status
  cargo xtask lab exec n2 -- tcpdump -ni eth0 udp port 8472
  cargo xtask lab status --output json
  cargo xtask lab up --kubernetes --nodes 2
  cargo xtask lab kubectl get nodes -o wide
  cargo xtask lab down")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build what has changed and start a lab.
    Up(Up),
    /// Run a command in a node (n1), a pod (n1p1), `underlay`, `store` or `outside`.
    Exec {
        /// Where.
        name: String,
        /// What; put `--` before it.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Run kubectl against the cluster of `lab up --kubernetes`.
    Kubectl {
        /// What kubectl is asked.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Show nodes, pods and store with their namespaces and addresses.
    Status {
        /// A table for people, or JSON for scripts.
        #[arg(long, short, value_enum, default_value = "table")]
        output: Output,
    },
    /// Stop the agents and the store and remove every namespace. Fine if there is no lab.
    Down,
}

#[derive(clap::Args)]
struct Up {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: usize,
    /// Pods on each node.
    #[arg(long, default_value_t = 2, value_name = "M")]
    pods: usize,
    /// Where leases are kept: a real etcd, or a directory that all nodes see.
    #[arg(long, value_enum, default_value = "etcd")]
    store: StoreKind,
    /// How packets get from node to node: in VXLAN; in VXLAN but for nodes on one link, which here
    /// all are; or as they are.
    #[arg(long, value_enum, default_value = "vxlan")]
    backend: BackendKind,
    /// The agents' --fast-path: auto takes the eBPF path where the kernel can and passes by no
    /// rules of others, force passes by them as well, off leaves all to the kernel.
    #[arg(long, value_enum, default_value = "auto")]
    fast_path: FastPathFlag,
    /// MTU of every link between the nodes, in bytes.
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    underlay_mtu: u32,
    /// A real Kubernetes: API server, controllers and scheduler beside etcd, and on every node
    /// containerd, kubelet and kube-proxy, with the overlay applied by its manifest. Pods are then
    /// made by `lab kubectl`.
    #[arg(long, conflicts_with_all = ["pods", "store", "fast_path"])]
    kubernetes: bool,
    /// Replace a lab that is up.
    #[arg(long)]
    force: bool,
    /// Do not build first; take the programs in target/debug as they are.
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FastPathFlag {
    Auto,
    Force,
    Off,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let prefix = prefix_from_env();
    match arguments.command {
        Command::Up(arguments) => up(&arguments)?,
        Command::Exec { name, command } => return exec(&prefix, &name, &command),
        Command::Kubectl { arguments } => return kubectl(&prefix, &arguments),
        Command::Status { output } => status(&Lab::attach(&prefix)?, output)?,
        Command::Down => {
            let was_up = Lab::remove(&prefix)?;
            println!(
                "{}",
                if was_up {
                    "the lab is down"
                } else {
                    "no lab was up"
                }
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(arguments: &Up) -> Result<()> {
    if arguments.kubernetes {
        setup::ensure_kubernetes()?;
    } else {
        setup::ensure_lab(arguments.store)?;
    }
    if !arguments.no_build {
        build::programs(build::Warnings::Shown)?;
        build::binaries(false)?;
    }
    let options = Options {
        nodes: arguments.nodes,
        pods: arguments.pods,
        store: arguments.store,
        fast_path: match arguments.fast_path {
            FastPathFlag::Auto => "auto".to_owned(),
            FastPathFlag::Force => "force".to_owned(),
            FastPathFlag::Off => "off".to_owned(),
        },
        underlay_mtu: arguments.underlay_mtu,
        ..Options::default()
    }
    .with_backend(arguments.backend);
    if arguments.force {
        Lab::remove(&options.prefix)?;
    }
    if arguments.kubernetes {
        return up_kubernetes(options);
    }
    let lab = Lab::up(options)?.keep();
    status(&lab, Output::Table)?;
    tell_how_to_enter(&lab);
    Ok(())
}

/// Starts a cluster with the overlay as its network.
fn up_kubernetes(options: Options) -> Result<()> {
    let cluster = Cluster::up(options)?;
    shell::progress("the overlay's manifest");
    cluster.apply_overlay()?;
    cluster.wait_nodes_ready()?;
    let cluster = cluster.keep();
    print!("{}", cluster.kubectl(["get", "nodes", "--output=wide"])?);
    tell_how_to_ask(&cluster);
    Ok(())
}

/// Prints what one can do with a cluster that stays up.
pub fn tell_how_to_ask(cluster: &Cluster) {
    let prefix = match cluster.lab().options().prefix.as_str() {
        "" => String::new(),
        prefix => format!("{PREFIX_ENV}={prefix} "),
    };
    eprintln!(
        "\nask the cluster: {prefix}cargo xtask lab kubectl get pods --all-namespaces\n\
         enter a node:    {prefix}cargo xtask lab exec n1 -- bash\n\
         take it down:    {prefix}cargo xtask lab down"
    );
}

fn kubectl(prefix: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let cluster = Cluster::attach(Lab::attach(prefix)?)
        .context("this lab has no Kubernetes: start one with `cargo xtask lab up --kubernetes`")?;
    let mut command = cluster.kubectl_command(arguments)?;
    let status = cluster
        .place()?
        .start(&mut command)?
        .wait()
        .context("wait for kubectl")?;
    if !status.success() {
        // The cause of kubectl's error may be that the control plane does not answer.
        cluster.check_control_plane()?;
    }
    Ok(exit_code(status))
}

/// Prints what one can do with a lab that stays up.
pub fn tell_how_to_enter(lab: &Lab) {
    let prefix = lab.options().prefix;
    let set = if prefix.is_empty() {
        prefix
    } else {
        format!("{PREFIX_ENV}={prefix} ")
    };
    eprintln!(
        "\nenter a node:  {set}cargo xtask lab exec n1 -- bash\n\
         enter a pod:   {set}cargo xtask lab exec n1p1 -- bash\n\
         take it down:  {set}cargo xtask lab down"
    );
}

/// Shows a lab.
pub fn status(lab: &Lab, output: Output) -> Result<()> {
    let report = lab.report();
    match output {
        Output::Table => println!("{}", table::render(&report)),
        Output::Json => {
            let text = serde_json::to_string_pretty(&report).context("write the status as JSON")?;
            println!("{text}");
        }
    }
    Ok(())
}

fn exec(prefix: &str, name: &str, line: &[OsString]) -> Result<ExitCode> {
    let lab = Lab::attach(prefix)?;
    let namespace = lab.namespace(name)?;
    // A node of a cluster has further namespaces, in which its processes run.
    if let Some(cluster) = Cluster::attach(Lab::attach(prefix)?)
        && let Some(node) = cluster.nodes().into_iter().find(|node| node.name() == name)
    {
        let status = node.command(line)?.status().context("start nsenter")?;
        return Ok(exit_code(status));
    }
    let (program, arguments) = line.split_first().context("nothing to run")?;
    let mut command = namespace.command(program);
    let status = namespace
        .start(command.args(arguments))?
        .wait()
        .with_context(|| format!("wait for {}", program.to_string_lossy()))?;
    Ok(exit_code(status))
}

/// A program's exit code in the form of shells.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
