//! Applies a difference to the kernel.

use std::collections::BTreeMap;

use super::route::IfPresent;
use super::{Error, Kernel, sysctl};
use crate::reconcile::{Action, KernelState, Route};

/// An action that failed; the next round tries again.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {error}")]
pub struct Failure {
    /// The action.
    pub action: Action,
    /// The cause.
    #[source]
    pub error: Error,
}

/// Whether no further action is to be tried after `error`. For a kernel that does not answer,
/// thousands of actions would only repeat the same error.
fn ends_the_round(action: &Action, error: &Error) -> bool {
    matches!(action, Action::DeleteDevice(_) | Action::CreateDevice(..))
        || matches!(error, Error::NoDevice(_) | Error::Deadline { .. })
}

impl Kernel {
    /// Applies `actions` in their order. A failed action does not stop those that do not depend on
    /// it, so that one bad peer cannot cut off the others. Without a device, however, or when the
    /// kernel does not answer, no further action is tried.
    pub async fn apply(&self, desired: &KernelState, actions: &[Action]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut known = Indices::new();
        for action in actions {
            tracing::debug!("{action}");
            let result = self.apply_one(desired, action, &mut known).await;
            if let Err(error) = result {
                let fatal = ends_the_round(action, &error);
                failures.push(Failure {
                    action: action.clone(),
                    error,
                });
                if fatal {
                    break;
                }
            }
        }
        failures
    }

    async fn apply_one(
        &self,
        desired: &KernelState,
        action: &Action,
        known: &mut Indices,
    ) -> Result<(), Error> {
        match action {
            Action::EnableForwarding => {
                let network = desired.network.unwrap_or_default();
                return sysctl::enable_forwarding(network.addr());
            }
            Action::CreateDevice(device, vxlan) => {
                known.clear();
                return self.create_vxlan(device, vxlan).await;
            }
            Action::AddRoute(route) => {
                let ifindex = self.ifindex_of(route, known).await?;
                return self.install_route(ifindex, route, IfPresent::Fail).await;
            }
            Action::ReplaceRoute(route) => {
                let ifindex = self.ifindex_of(route, known).await?;
                return self.install_route(ifindex, route, IfPresent::Replace).await;
            }
            Action::RemoveRoute(route) => return self.remove_route(None, route).await,
            _ => {}
        }
        let Some(device) = &desired.device else {
            return Ok(());
        };
        let (name, vxlan) = (&device.name, device.vxlan.as_ref());
        let ifindex = self.known_ifindex(name, known).await?;
        match action {
            Action::DeleteDevice(_) => self.delete_link(ifindex).await,
            Action::DisableLearning => {
                let vni = vxlan.map_or(0, |vxlan| vxlan.vni);
                self.disable_learning(ifindex, name, vni).await
            }
            Action::ForbidAutoconfiguration => sysctl::forbid_autoconfiguration(name),
            Action::SetMtu(mtu) => self.set_mtu(ifindex, *mtu).await,
            Action::AddAddress(address) => self.add_address(ifindex, *address).await,
            Action::RemoveAddress(address) => self.remove_address(ifindex, *address).await,
            Action::SetUp => match self.set_up(ifindex).await {
                // The socket is opened when the device is set up.
                Err(Error::Refused { source, .. })
                    if source.kind() == std::io::ErrorKind::AddrInUse =>
                {
                    let port = vxlan.map_or(0, |vxlan| vxlan.port);
                    Err(Error::PortTaken { port })
                }
                result => result,
            },
            Action::SetNeighbour(address, mac) => self.set_neighbour(ifindex, *address, *mac).await,
            Action::RemoveNeighbour(address) => self.remove_neighbour(ifindex, *address).await,
            Action::SetFdb(mac, vtep) => self.set_fdb(ifindex, *mac, *vtep).await,
            Action::RemoveFdb(mac, vtep) => self.remove_fdb(ifindex, *mac, *vtep).await,
            Action::EnableForwarding
            | Action::CreateDevice(..)
            | Action::AddRoute(_)
            | Action::ReplaceRoute(_)
            | Action::RemoveRoute(_) => Ok(()),
        }
    }

    /// Index of the device that a route of ours leads to.
    async fn ifindex_of(&self, route: &Route, known: &mut Indices) -> Result<u32, Error> {
        let device = route.device.as_deref().unwrap_or_default();
        self.known_ifindex(device, known).await
    }

    async fn known_ifindex(&self, name: &str, known: &mut Indices) -> Result<u32, Error> {
        if let Some(ifindex) = known.get(name) {
            return Ok(*ifindex);
        }
        let ifindex = self.ifindex(name).await?;
        known.insert(name.to_owned(), ifindex);
        Ok(ifindex)
    }
}

/// Devices by name, as read in this round.
type Indices = BTreeMap<String, u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_kernel_is_not_asked_again_in_the_same_round() {
        let silent = Error::Deadline {
            call: "RTM_SETLINK",
            object: "flannel.1".into(),
        };
        assert!(ends_the_round(&Action::SetUp, &silent));
        let refused = Error::Refused {
            call: "RTM_SETLINK",
            object: "flannel.1".into(),
            source: std::io::ErrorKind::InvalidInput.into(),
        };
        assert!(!ends_the_round(&Action::SetUp, &refused));
    }
}
