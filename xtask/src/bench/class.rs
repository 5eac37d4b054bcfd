//! The two ends that are measured.

use clap::ValueEnum;
use serde::Serialize;

/// A class of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// From a pod to a pod of the other node.
    Direct,
    /// From a pod to a Service that a pod of the other node serves.
    Service,
    /// From a node itself to a pod of the other node.
    Node,
    /// From outside to a NodePort, whose Service a pod of another node serves.
    NodePort,
    /// From a pod to a pod of the same node.
    Local,
    /// From a pod to a Service that a pod of the same node serves.
    LocalService,
}

impl Class {
    /// The title for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Direct => "across nodes",
            Self::Service => "Service, across nodes",
            Self::Node => "node to pod, across nodes",
            Self::NodePort => "NodePort, across nodes",
            Self::Local => "same node",
            Self::LocalService => "Service, same node",
        }
    }

    /// Whether the class has a cable on the path, so that two hosts without pods can be measured
    /// too.
    pub fn is_across(self) -> bool {
        !matches!(self, Self::Local | Self::LocalService)
    }

    /// Whether the class needs kube-proxy's rules.
    pub fn needs_services(self) -> bool {
        matches!(self, Self::Service | Self::NodePort | Self::LocalService)
    }
}
