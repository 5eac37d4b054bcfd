//! The store of the invented leases, with the operations that every kind of store has.

use anyhow::Result;
use clap::ValueEnum;
use overlay_tests::Lab;
use serde::Serialize;

use super::etcd::Etcd;
use super::kube::Kube;
use super::leases::{Invented, LeaseChange};

/// Which store the agent is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A real etcd.
    Etcd,
    /// The Nodes of a real Kubernetes API server.
    Kube,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kube => "the API server of Kubernetes",
        }
    }
}

/// The store.
#[derive(Clone)]
pub enum Store {
    Etcd(Etcd),
    Kube(Kube),
}

impl Store {
    /// The store of a lab, where the one real node has no lease yet.
    pub fn of(kind: Kind, lab: &Lab) -> Result<Self> {
        Ok(match kind {
            Kind::Etcd => Self::Etcd(Etcd::of(lab)?),
            Kind::Kube => Self::Kube(Kube::start(lab)?),
        })
    }

    /// The agent's flags for the store, besides the lab's.
    pub fn agent_flags(&self) -> Vec<String> {
        match self {
            Self::Etcd(_) => Vec::new(),
            Self::Kube(_) => Kube::agent_flags(),
        }
    }

    /// Writes many leases.
    pub fn fill(&self, leases: impl Iterator<Item = Invented>) -> Result<()> {
        let leases: Vec<_> = leases.collect();
        match self {
            Self::Etcd(etcd) => etcd.fill(&leases),
            Self::Kube(kube) => kube.fill(&leases),
        }
    }

    /// Makes one change.
    pub fn write(&self, change: LeaseChange) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.write(change),
            Self::Kube(kube) => kube.write(change),
        }
    }

    /// Number of requests from other clients than this program since the start of the store.
    pub fn requests(&self) -> Result<u64> {
        match self {
            Self::Etcd(etcd) => etcd.requests(),
            Self::Kube(kube) => kube.requests(),
        }
    }
}
