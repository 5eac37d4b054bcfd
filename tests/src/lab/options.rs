//! The options of a lab.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Environment variable with the directory of `overlayd`, `overlay-cni` and `overlayctl`.
pub const BIN_DIR_ENV: &str = "OVERLAY_BIN_DIR";
/// Environment variable with a prefix for every namespace's name.
pub const PREFIX_ENV: &str = "OVERLAY_LAB_PREFIX";

/// Where the nodes keep their leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A real etcd in a namespace of its own.
    Etcd,
    /// A directory that all nodes see.
    Dir,
}

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// In VXLAN.
    Vxlan,
    /// In VXLAN, but for nodes on one link.
    DirectRouting,
    /// As they are; all nodes are on one link.
    HostGw,
}

impl BackendKind {
    /// `Backend` of the network configuration.
    fn json(self) -> serde_json::Value {
        match self {
            Self::Vxlan => json!({"Type": "vxlan"}),
            Self::DirectRouting => json!({"Type": "vxlan", "DirectRouting": true}),
            Self::HostGw => json!({"Type": "host-gw"}),
        }
    }
}

/// The options of a lab. Take [`Options::default`] and change fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Prefix of the name of every namespace, so that several labs can exist at a time. Empty for
    /// the lab of people.
    pub prefix: String,
    /// Number of nodes, 1 to [`Options::MAX_NODES`].
    pub nodes: usize,
    /// Pods per node.
    pub pods: usize,
    /// Where leases are kept.
    pub store: StoreKind,
    /// Members of the etcd cluster; each has a process of its own.
    pub store_members: usize,
    /// The agents' `--fast-path`: `auto`, `force` or `off`.
    pub fast_path: String,
    /// MTU of every link of the underlay, in bytes.
    pub underlay_mtu: u32,
    /// The network configuration, flannel's JSON.
    pub network: serde_json::Value,
    /// Flags for every agent besides the usual ones; a flag given here replaces the usual one.
    pub agent_args: Vec<String>,
    /// Whether each node has a separate control group (version 2), and therefore separate sockets.
    /// Otherwise agents leave Services to kube-proxy, because their programs would apply to the
    /// sockets of all nodes.
    pub apart: bool,
    /// Whether agents are started and pods made; otherwise there are only bare nodes and the store.
    pub start_agents: bool,
    /// Directory of the programs.
    pub bin_dir: PathBuf,
    /// Whether the lab belongs to this process and may be removed when the process has ended.
    pub ephemeral: bool,
    /// Whether progress is printed to stderr.
    pub verbose: bool,
}

impl Options {
    /// Most nodes, because node addresses on the underlay end in the node's number, and the highest
    /// numbers are in use.
    pub const MAX_NODES: usize = 200;
    /// Kubernetes does not start with a smaller MTU, and IPv6 requires this one.
    const MIN_MTU: u32 = 1280;

    /// The lab of one test: two nodes with two pods each, named after the test, removed with the
    /// test.
    pub fn for_test(name: &str) -> Self {
        Self {
            prefix: format!("{}{name}-", prefix_from_env()),
            nodes: 2,
            ephemeral: true,
            verbose: false,
            ..Self::default()
        }
    }

    /// The options with another backend.
    #[must_use]
    pub fn with_backend(mut self, kind: BackendKind) -> Self {
        self.network["Backend"] = kind.json();
        self
    }

    /// Whether the network configuration demands VXLAN between nodes on one link, as all nodes of a
    /// lab are.
    pub fn has_tunnels(&self) -> bool {
        let backend = &self.network["Backend"];
        backend["Type"] != "host-gw" && backend["DirectRouting"] != true
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self {
            prefix,
            nodes,
            underlay_mtu,
            fast_path,
            bin_dir,
            start_agents,
            ..
        } = self;
        ensure!(
            (1..=Self::MAX_NODES).contains(nodes),
            "{nodes} nodes: a lab has 1 to {} nodes",
            Self::MAX_NODES
        );
        ensure!(
            (Self::MIN_MTU..=65535).contains(underlay_mtu),
            "underlay MTU {underlay_mtu}: must be {} to 65535",
            Self::MIN_MTU
        );
        ensure!(
            matches!(fast_path.as_str(), "auto" | "force" | "off"),
            "fast path {fast_path:?}: say auto, force or off"
        );
        ensure!(
            prefix
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-'),
            "prefix {prefix:?}: letters, digits and dashes only"
        );
        for program in ["overlayd", "overlay-cni"] {
            let path = bin_dir.join(program);
            ensure!(
                !start_agents || path.is_file(),
                "{} is missing: build it with `cargo xtask build`",
                path.display()
            );
        }
        Ok(())
    }

    pub(crate) fn say(&self, text: &str) {
        if self.verbose {
            eprintln!("lab: {text}");
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: prefix_from_env(),
            nodes: 3,
            pods: 2,
            store: StoreKind::Etcd,
            store_members: 1,
            fast_path: "auto".to_owned(),
            underlay_mtu: 1500,
            network: json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}),
            agent_args: Vec::new(),
            apart: false,
            start_agents: true,
            bin_dir: default_bin_dir(),
            ephemeral: false,
            verbose: true,
        }
    }
}

/// The prefix that the user asked for with [`PREFIX_ENV`]; usually none.
pub fn prefix_from_env() -> String {
    std::env::var(PREFIX_ENV).unwrap_or_default()
}

/// The directory to which `cargo xtask build` writes the programs, unless [`BIN_DIR_ENV`] names
/// another.
fn default_bin_dir() -> PathBuf {
    let from_env = |name| std::env::var_os(name).map(PathBuf::from);
    from_env(BIN_DIR_ENV).unwrap_or_else(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("."));
        from_env("CARGO_TARGET_DIR")
            .unwrap_or_else(|| workspace.join("target"))
            .join("debug")
    })
}
