//! Flags about Kubernetes as the store, all of them flanneld's.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::config::go_flags::go_bool;

/// How to reach the API server, and what to say there.
#[derive(Args, Clone, Debug)]
pub struct KubeFlags {
    /// The same as --store kube: this node's subnet is its podCIDR
    #[arg(
        long, env = "FLANNELD_KUBE_SUBNET_MGR", default_value = "false", value_parser = go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = ArgAction::Set, value_name = "BOOL"
    )]
    pub kube_subnet_mgr: bool,
    /// URL of the Kubernetes API server [default: the kubeconfig's, or a pod's own]
    #[arg(
        long,
        env = "FLANNELD_KUBE_API_URL",
        default_value = "",
        hide_default_value = true,
        value_name = "URL"
    )]
    pub kube_api_url: String,
    /// Kubeconfig with the API server and who asks it [default: a pod's own service account]
    #[arg(
        long,
        env = "FLANNELD_KUBECONFIG_FILE",
        default_value = "",
        hide_default_value = true,
        value_name = "FILE"
    )]
    pub kubeconfig_file: String,
    /// What the names of the Nodes' annotations begin with
    #[arg(
        long,
        env = "FLANNELD_KUBE_ANNOTATION_PREFIX",
        default_value = "flannel.alpha.coreos.com",
        value_name = "PREFIX"
    )]
    pub kube_annotation_prefix: String,
    /// File with the network configuration, where the store is Kubernetes
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        default_value = "/etc/kube-flannel/net-conf.json",
        value_name = "FILE"
    )]
    pub net_config_path: PathBuf,
    /// Say on the Node whether its network can be used, by the condition NetworkUnavailable
    #[arg(
        long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", default_value = "true",
        value_parser = go_bool, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, value_name = "BOOL"
    )]
    pub set_node_network_unavailable: bool,
}
