//! Applying a difference.

use super::route::IfPresent;
use super::{Error, Kernel, sysctl};
use crate::reconcile::{Action, Desired};

/// An action that did not work; the next round tries again.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {error}")]
pub struct Failure {
    /// What was to be done.
    pub action: Action,
    /// Why it was not.
    #[source]
    pub error: Error,
}

/// Whether nothing more is to be tried after `error`. Of a kernel that does not answer, thousands
/// of actions would only say the same again.
fn ends_the_round(action: &Action, error: &Error) -> bool {
    matches!(action, Action::DeleteDevice(_) | Action::CreateDevice(_))
        || matches!(error, Error::NoDevice(_) | Error::Deadline { .. })
}

impl Kernel {
    /// Applies `actions` in their order. One that fails does not stop those that do not depend on
    /// it, so that one bad peer cannot cut off the others; without a device, however, or when the
    /// kernel does not answer, nothing more is tried.
    pub async fn apply(&self, desired: &Desired, actions: &[Action]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut ifindex = None;
        for action in actions {
            tracing::debug!(device = desired.device.name, "{action}");
            let result = self.apply_one(desired, action, &mut ifindex).await;
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
        desired: &Desired,
        action: &Action,
        known: &mut Option<u32>,
    ) -> Result<(), Error> {
        let device = &desired.device;
        match action {
            Action::EnableForwarding => return sysctl::enable_forwarding(desired.network.addr()),
            Action::CreateDevice(device) => {
                *known = None;
                return self.create_vxlan(device).await;
            }
            Action::RemoveRoute(route) => return self.remove_route(None, route).await,
            _ => {}
        }
        let ifindex = match *known {
            Some(ifindex) => ifindex,
            None => *known.insert(self.ifindex(&device.name).await?),
        };
        match action {
            Action::DeleteDevice(_) => self.delete_link(ifindex).await,
            Action::DisableLearning => {
                self.disable_learning(ifindex, &device.name, device.vni)
                    .await
            }
            Action::ForbidAutoconfiguration => sysctl::forbid_autoconfiguration(&device.name),
            Action::SetMtu(mtu) => self.set_mtu(ifindex, *mtu).await,
            Action::AddAddress(address) => self.add_address(ifindex, *address).await,
            Action::RemoveAddress(address) => self.remove_address(ifindex, *address).await,
            Action::SetUp => match self.set_up(ifindex).await {
                // The socket is opened with the device.
                Err(Error::Refused { source, .. })
                    if source.kind() == std::io::ErrorKind::AddrInUse =>
                {
                    Err(Error::PortTaken { port: device.port })
                }
                result => result,
            },
            Action::SetNeighbour(address, mac) => self.set_neighbour(ifindex, *address, *mac).await,
            Action::RemoveNeighbour(address) => self.remove_neighbour(ifindex, *address).await,
            Action::SetFdb(mac, vtep) => self.set_fdb(ifindex, *mac, *vtep).await,
            Action::RemoveFdb(mac, vtep) => self.remove_fdb(ifindex, *mac, *vtep).await,
            Action::AddRoute(route) => self.install_route(ifindex, route, IfPresent::Fail).await,
            Action::ReplaceRoute(route) => {
                self.install_route(ifindex, route, IfPresent::Replace).await
            }
            Action::EnableForwarding | Action::CreateDevice(_) | Action::RemoveRoute(_) => Ok(()),
        }
    }
}

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
