//! The veth pair of a pod: one end in the pod, the other a port of the bridge.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc::EXFULL;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkBridgePort, LinkUnspec, LinkVeth};

use super::Error;
use super::config::Network;
use super::sysctl;
use crate::ipam::Attachment;
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::kernel::netns::Netns;
use crate::mac::MacAddr;
use crate::pod::PodNote;

/// Longest wait until a new port carries packets; the `bridge` plugin waits as long.
const PORT_UP_TIMEOUT: Duration = Duration::from_millis(2550);
/// Interval between two looks at the state of the port.
const PORT_UP_INTERVAL: Duration = Duration::from_millis(5);

/// Name of the host end: `veth` and a hash, so that whoever knows the attachment finds it again.
#[must_use]
pub fn host_name(attachment: &Attachment) -> String {
    // FNV-1a, because its values never change. A collision gains nobody anything: `make` reports
    // it.
    let hash = attachment
        .file_content()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
    format!("veth{hash:08x}")
}

/// Makes the pair: the host end a port of `bridge` and up, the pod's end in `netns` with the name
/// that the attachment has for it, and still down. `mac` is the pod's end's; the kernel chooses one
/// otherwise. Returns the host end.
///
/// A host end that a crashed ADD left is replaced.
///
/// # Errors
///
/// [`Error::Conflict`] if the pod has such an interface already or the host end's name is another
/// pod's, [`Error::Kernel`] if the kernel refuses.
pub async fn make(
    host: &Kernel,
    network: &Network,
    bridge: &Link,
    attachment: &Attachment,
    netns: &Netns,
    mac: Option<MacAddr>,
) -> Result<Link, Error> {
    let name = host_name(attachment);
    if let Some(old) = host.find_link(&name).await? {
        if !is_of(&old, attachment) {
            return Err(Error::Conflict(format!(
                "{name}, the name for {attachment}, is taken by another device ({}); start the pod \
                again under another identifier",
                old.alias.as_deref().unwrap_or("without an alias")
            )));
        }
        tracing::warn!(link = name, "replacing what an ADD before left");
        host.delete_link(old.index).await?;
    }
    let mut peer = LinkUnspec::new_with_name(&attachment.interface)
        .mtu(network.mtu)
        .setns_by_fd(netns.as_fd().as_raw_fd());
    if let Some(mac) = mac {
        peer = peer.address(mac.0.to_vec());
    }
    let peer = peer.build();
    let pair = LinkVeth::new(&name, &attachment.interface)
        .mtu(network.mtu)
        .controller(bridge.index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up()
        .build();
    host.add_link(pair, &format!("veth pair {name}"))
        .await
        .map_err(|error| match error.errno() {
            Some(EXFULL) => Error::Conflict(format!(
                "{} has 1023 ports, and Linux allows no more",
                bridge.name
            )),
            _ => error.into(),
        })?;
    let port = host.find_link(&name).await?.ok_or_else(|| {
        Error::Conflict(format!(
            "{name} vanished while it was set up; is the pod being deleted?"
        ))
    })?;
    // Pods advertise no routes, as on the bridge.
    sysctl::try_set(&format!("ipv6/conf/{name}/accept_ra"), "0");
    if network.hairpin {
        let hairpin = LinkBridgePort::new(port.index).hairpin(true).build();
        host.change_port(hairpin, &format!("{name} hairpin on"))
            .await?;
    }
    Ok(port)
}

/// Waits until the host end carries packets, because the pod's first packets would be lost before.
///
/// # Errors
///
/// [`Error::Conflict`] if the host end does not carry packets in time.
pub async fn wait_for_port(host: &Kernel, port: &Link) -> Result<(), Error> {
    let running = async {
        while !host
            .find_link(&port.name)
            .await?
            .is_some_and(|link| link.is_running)
        {
            tokio::time::sleep(PORT_UP_INTERVAL).await;
        }
        Ok(())
    };
    tokio::time::timeout(PORT_UP_TIMEOUT, running)
        .await
        .unwrap_or_else(|_| {
            Err(Error::Conflict(format!(
                "port {} does not come up",
                port.name
            )))
        })
}

/// Writes the note that tells the agent of the pod.
///
/// # Errors
///
/// [`Error::Kernel`].
pub async fn announce(host: &Kernel, port: &Link, note: &PodNote) -> Result<(), Error> {
    let message = LinkUnspec::new_with_index(port.index)
        .alias(note.to_string())
        .build();
    Ok(host
        .change_link(message, &format!("{} alias", port.name))
        .await?)
}

/// Deletes the host end of an attachment, and so the pod's; returns it, unless it was not there.
///
/// # Errors
///
/// [`Error::Kernel`].
pub async fn remove(host: &Kernel, attachment: &Attachment) -> Result<Option<Link>, Error> {
    match host.find_link(&host_name(attachment)).await? {
        Some(link) if is_of(&link, attachment) => {
            host.delete_link(link.index).await?;
            Ok(Some(link))
        }
        _ => Ok(None),
    }
}

/// The note in the alias of a device, if the device is a pod's.
#[must_use]
pub fn note(link: &Link) -> Option<PodNote> {
    link.alias.as_ref()?.parse().ok()
}

/// The notes of the pods whose host ends are ports of `bridge`. Two networks cannot share a bridge,
/// so the pods are of one network.
///
/// # Errors
///
/// What netlink says.
pub async fn notes(host: &Kernel, bridge: &str) -> Result<Vec<PodNote>, Error> {
    let Some(bridge) = host.find_link(bridge).await? else {
        return Ok(Vec::new());
    };
    let links = host.all_links().await?;
    let ports = links
        .iter()
        .filter(|link| link.master == Some(bridge.index));
    Ok(ports.filter_map(note).collect())
}

/// Whether a device with the right name is the host end of `attachment`: a veth whose note says so,
/// or that has none because its ADD did not come to an end.
fn is_of(link: &Link, attachment: &Attachment) -> bool {
    let owner = note(link).map(|note| Attachment {
        container: note.container,
        interface: note.interface,
    });
    link.is_veth && (link.alias.is_none() || owner.as_ref() == Some(attachment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        };
        // With other names, the plugin would not find the pods that were made before an upgrade.
        assert_eq!(host_name(&attachment), "veth24295bae");
        let second = Attachment {
            interface: "net1".into(),
            ..attachment.clone()
        };
        assert_ne!(host_name(&attachment), host_name(&second));
    }
}
