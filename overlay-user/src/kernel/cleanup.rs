//! Removes everything of ours from a node.

use std::fmt;

use ipnet::IpNet;

use super::{Error, Kernel, ToolError, guard, rules};
use crate::marks::ROUTE_PROTOCOL;

/// Something that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Leftover {
    /// A device or route.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Packet-filter rules.
    #[error("remove packet-filter rules: {0}")]
    Rules(#[from] ToolError),
    /// The guard.
    #[error("remove the guard: {0}")]
    Guard(#[from] guard::Error),
}

/// Everything that could not be removed.
#[derive(Debug, thiserror::Error)]
pub struct Leftovers(pub Vec<Leftover>);

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, leftover) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{leftover}")?;
        }
        Ok(())
    }
}

/// Removes what the agent put into this network namespace: routes of ours in the family of
/// `network`, the VXLAN device called `device` if there may be one, the packet-filter rules of both
/// drivers, and the guard. The bridge and the pods stay, and so does what others made. Continues
/// after errors; a missing object is no error.
///
/// # Errors
/// Everything that could not be removed.
pub async fn cleanup(device: Option<&str>, network: IpNet) -> Result<(), Leftovers> {
    let mut leftovers = Vec::new();
    match Kernel::connect() {
        Ok(kernel) => kernel.cleanup(device, network, &mut leftovers).await,
        Err(error) => leftovers.push(error.into()),
    }
    leftovers.extend(rules::remove_all().await.into_iter().map(Leftover::from));
    match guard::cleanup().await {
        // Where there is no nft there is no guard to remove.
        Ok(()) | Err(guard::Error::Unavailable(_)) => {}
        Err(error) => leftovers.push(error.into()),
    }
    if leftovers.is_empty() {
        Ok(())
    } else {
        Err(Leftovers(leftovers))
    }
}

impl Kernel {
    async fn cleanup(&self, device: Option<&str>, network: IpNet, leftovers: &mut Vec<Leftover>) {
        match self.observe(device, network).await {
            Ok(observed) => {
                for route in observed
                    .routes
                    .iter()
                    .filter(|r| r.protocol == ROUTE_PROTOCOL)
                {
                    leftovers.extend(self.remove_route(None, route).await.err().map(Into::into));
                }
                // A device of another kind with this name is somebody else's.
                if let Some(found) = observed.device.filter(|found| found.vxlan.is_some()) {
                    leftovers.extend(self.delete_link(found.ifindex).await.err().map(Into::into));
                }
            }
            Err(error) => leftovers.push(error.into()),
        }
    }
}
