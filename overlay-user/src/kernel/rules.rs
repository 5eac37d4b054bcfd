//! flannel's packet-filter rules: masquerading of traffic that leaves the overlay, and forwarding
//! of traffic inside it.

mod iptables;
mod nftables;
mod witness;

use ipnet::IpNet;

use super::ToolError;

pub use witness::Witness;

/// The input of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The whole overlay.
    pub network: IpNet,
    /// The subnet of this node.
    pub subnet: IpNet,
    /// Whether traffic from the overlay to elsewhere is masqueraded (`--ip-masq`).
    pub masquerade: bool,
    /// Whether forwarding of the overlay's traffic is accepted (`--iptables-forward-rules`).
    pub forward: bool,
    /// Whether masquerading picks source ports at random, all through the range.
    pub random_fully: bool,
}

/// The interface to netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `iptables-restore`, flannel's chains.
    Iptables,
    /// `nft`, flannel's tables (`EnableNFTables`).
    Nftables,
    /// None: the rules are not ours to manage.
    None,
}

impl Driver {
    /// Makes the kernel hold exactly `rules`, in one transaction and only where rules are missing
    /// or different. Returns whether anything was changed.
    ///
    /// # Errors
    /// The program that failed.
    pub async fn ensure(self, rules: &RuleSet) -> Result<bool, ToolError> {
        match self {
            Self::Iptables => iptables::ensure(rules).await,
            Self::Nftables => nftables::ensure(rules).await,
            Self::None => Ok(false),
        }
    }

    /// Removes every rule of ours, of both families. A missing rule is no error.
    ///
    /// # Errors
    /// The program that failed.
    pub async fn remove(self) -> Result<(), ToolError> {
        match self {
            Self::Iptables => iptables::remove().await,
            Self::Nftables => nftables::remove().await,
            Self::None => Ok(()),
        }
    }
}

/// Removes the rules of every driver, as when switching between them or leaving the node. Returns
/// the errors; that a program is not installed is none, because the program has made no rules then.
pub async fn remove_all() -> Vec<ToolError> {
    let mut errors = Vec::new();
    for driver in [Driver::Iptables, Driver::Nftables] {
        match driver.remove().await {
            Ok(()) | Err(ToolError::Missing(_)) => {}
            Err(error) => errors.push(error),
        }
    }
    errors
}
