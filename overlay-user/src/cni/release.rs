//! DEL: remove a pod's interface and release its address.

use std::net::IpAddr;
use std::path::Path;

use super::config::NetConf;
use super::guard::{self, Agent};
use super::{Error, masquerade, veth};
use crate::datapath::{self, pods};
use crate::deadline::Deadline;
use crate::files;
use crate::ipam::{AddressBook, Attachment, Holder};
use crate::kernel::Kernel;
use crate::kernel::netns::{Netns, NetnsError};

/// Deletes `attachment`. A part of the attachment that does not exist any more is no error, and
/// neither is a missing namespace.
///
/// # Errors
///
/// [`Error::Kernel`] or [`Error::Ipam`] if a device or an address exists but cannot be removed; the
/// runtime tries again.
pub async fn del(
    conf: &NetConf,
    attachment: &Attachment,
    path: Option<&Path>,
    agent: &Agent,
    deadline: Deadline,
) -> Result<(), Error> {
    let netns = match path.map(Netns::open) {
        Some(Ok(netns)) => Some(netns),
        Some(Err(error @ NetnsError::Own(_))) => return Err(error.into()),
        Some(Err(_)) | None => None,
    };
    let host = Kernel::connect_until(deadline)?;
    let mut addresses = match open_book(conf, deadline)? {
        Some(book) => book.held_by(attachment)?,
        None => Vec::new(),
    };
    // The note on the device tells the address as well, in case the file is damaged.
    let noted = host
        .all_links()
        .await?
        .iter()
        .filter_map(veth::note)
        .find(|note| {
            (&note.container, &note.interface) == (&attachment.container, &attachment.interface)
        });
    let masqueraded = masquerades(conf) || noted.as_ref().is_some_and(|note| note.masqueraded);
    let noted: Vec<IpAddr> = (noted.iter())
        .flat_map(|note| note.addresses.iter().copied())
        .collect();
    for address in &noted {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    let pod = LeavingPod {
        attachment,
        addresses: &addresses,
        masqueraded,
    };
    pod.disconnect(&host, agent, deadline).await?;
    if let Some(netns) = netns {
        remove_foreign_end(&netns, attachment, &addresses, deadline).await?;
    }
    remove_file(&conf.data_dir.join(&attachment.container))?;
    release(conf, attachment, deadline)?;
    // An ADD that its runtime has given up may still be at work. Remove what that ADD has made
    // since the device was removed above; what is made from now on, that ADD undoes itself.
    veth::remove(&host, attachment).await?;
    if noted.is_empty() {
        return Ok(());
    }
    if let Some(book) = open_book(conf, deadline)? {
        for (address, holder) in book.entries()? {
            if holder == Holder::Unreadable && noted.contains(&address) {
                book.free(address)?;
            }
        }
    }
    Ok(())
}

/// Removes the interface of a pod that flannel's own plugin added, from inside the pod, because the
/// name of its host end cannot be derived. The interface must have one of `addresses`, because the
/// namespace may belong to another pod by now.
async fn remove_foreign_end(
    netns: &Netns,
    attachment: &Attachment,
    addresses: &[IpAddr],
    deadline: Deadline,
) -> Result<(), Error> {
    let pod = Kernel::connect_in(netns, deadline)?;
    let Some(link) = pod.find_link(&attachment.interface).await? else {
        return Ok(());
    };
    let found = pod.addresses_of(link.index).await?;
    if link.is_veth && found.iter().any(|found| addresses.contains(&found.addr())) {
        pod.delete_link(link.index).await?;
    }
    Ok(())
}

/// A pod that is being removed.
pub(super) struct LeavingPod<'a> {
    pub attachment: &'a Attachment,
    pub addresses: &'a [IpAddr],
    /// Whether the pod may have packet-filter rules of its own.
    pub masqueraded: bool,
}

impl LeavingPod<'_> {
    /// Disconnects a pod: map entries are removed before the device, and the device before the
    /// address is released for another pod.
    pub async fn disconnect(
        &self,
        host: &Kernel,
        agent: &Agent,
        deadline: Deadline,
    ) -> Result<(), Error> {
        forget(self.addresses, agent);
        if let Some(port) = veth::remove(host, self.attachment).await? {
            for address in self.addresses {
                guard::lower(agent, &port, *address, deadline).await;
            }
        }
        // iptables is last, because others may hold its lock for long.
        if self.masqueraded {
            for address in self.addresses {
                masquerade::remove(self.attachment, *address, deadline).await?;
            }
        }
        Ok(())
    }
}

/// Whether the plugin masquerades pods now. If so, a pod without this detail in its note may be
/// masqueraded too: an earlier version has written the note, or ADD was interrupted.
pub(super) fn masquerades(conf: &NetConf) -> bool {
    conf.network().is_ok_and(|network| network.ip_masq)
}

/// Takes pods out of the fast path's tables, because an entry must not point at a device that does
/// not exist.
pub fn forget(addresses: &[IpAddr], agent: &Agent) {
    for address in addresses {
        // A broken map must not keep a pod from being made or deleted; the agent repairs it.
        match pods::forget(&agent.pins, *address) {
            Ok(()) | Err(datapath::Error::Family(_)) => {}
            Err(error) => tracing::warn!(%address, %error, "the fast path still knows the pod"),
        }
    }
}

/// The network's directory of addresses; `None` if the directory does not exist, because it then
/// holds nothing.
pub(super) fn open_book(conf: &NetConf, deadline: Deadline) -> Result<Option<AddressBook>, Error> {
    let dir = conf.ipam_dir();
    Ok(if dir.exists() {
        Some(AddressBook::lock(&dir, deadline)?)
    } else {
        None
    })
}

pub(super) fn release(
    conf: &NetConf,
    attachment: &Attachment,
    deadline: Deadline,
) -> Result<(), Error> {
    match open_book(conf, deadline)? {
        Some(book) => Ok(book.release(attachment)?),
        None => Ok(()),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    files::remove(path).map_err(|source| Error::File {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}
