//! Adds one pod to the guard, for the CNI plugin, because the agent may not be running.

use std::net::Ipv4Addr;

use super::state::{Delta, Element, Elements, Set};
use super::{Error, netlink};

/// Makes the guard judge packets from `device`, whose only source may be `address`. Where the guard
/// judges no pods nothing is changed, because programs judge, or no agent has run.
///
/// # Errors
/// [`Error::Netlink`].
pub async fn admit(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    // A transaction on missing tables would fail as well, but waits for RCU before it fails.
    if !netlink::fingerprint().await?.judges_pods() {
        return Ok(());
    }
    let added = elements(device, address);
    let delta = Delta {
        added,
        ..Delta::default()
    };
    Ok(netlink::change(&delta, None).await?)
}

/// Undoes [`admit`]. A missing element is no error.
///
/// # Errors
/// [`Error::Netlink`].
pub async fn dismiss(device: &str, address: Ipv4Addr) -> Result<(), Error> {
    if netlink::fingerprint().await?.is_empty() {
        return Ok(());
    }
    let mut removed = Elements::new();
    for (set, mut elements) in elements(device, address) {
        let there = netlink::keys(set).await?;
        elements.retain(|element| there.contains(&element.key()));
        if !elements.is_empty() {
            removed.insert(set, elements);
        }
    }
    if removed.is_empty() {
        return Ok(());
    }
    let delta = Delta {
        removed,
        ..Delta::default()
    };
    Ok(netlink::change(&delta, None).await?)
}

/// A pod in the two sets of the family `bridge`.
fn elements(device: &str, address: Ipv4Addr) -> Elements {
    let port = Element::Device(device.to_owned());
    let pod = Element::Pod(device.to_owned(), address);
    [(Set::Ports, [port].into()), (Set::Pods, [pod].into())].into()
}
