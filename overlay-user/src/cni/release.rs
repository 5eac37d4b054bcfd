//! DEL and GC: take an interface back from a pod.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::config::NetConf;
use super::guard::{self, Agent};
use super::{Error, masquerade, veth};
use crate::datapath::{self, pods};
use crate::deadline::Deadline;
use crate::files;
use crate::ipam::{AddressBook, Attachment, Holder};
use crate::kernel::Kernel;
use crate::kernel::netns::{Netns, NetnsError};
use crate::pod::PodNote;

/// Deletes `attachment`. Whatever of it is gone already is no error, and neither is a missing
/// namespace.
///
/// # Errors
///
/// [`Error::Kernel`] or [`Error::Ipam`] if something is there but cannot be removed; the runtime
/// tries again.
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
    let pod = Pod {
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
    // since the device was removed above; what it makes from now on, that ADD undoes itself.
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

/// Releases everything of this network that is not among the valid attachments. Goes on past errors
/// and returns the first.
///
/// # Errors
///
/// [`Error::Config`] if the runtime does not say what is valid; else as [`del`].
pub async fn gc(conf: &NetConf, agent: &Agent, deadline: Deadline) -> Result<(), Error> {
    let valid: BTreeSet<_> = conf
        .valid_attachments()
        .ok_or_else(|| Error::Config("GC needs cni.dev/valid-attachments".into()))?
        .iter()
        .map(|it| Attachment {
            container: it.container_id.clone(),
            interface: it.ifname.clone(),
        })
        .collect();
    let host = Kernel::connect_until(deadline)?;
    // Two networks cannot share a bridge, so every note on ours is of this network.
    let bridge = host
        .find_link(conf.bridge())
        .await?
        .map(|bridge| bridge.index);
    let mut links = host.all_links().await?;
    links.retain(|link| bridge.is_some() && link.master == bridge);
    let notes: Vec<_> = links.iter().filter_map(veth::note).collect();
    let entries = match open_book(conf, deadline)? {
        Some(book) => book.entries()?,
        None => Vec::new(),
    };
    let masquerading: BTreeSet<_> = notes
        .iter()
        .filter(|note| note.masqueraded)
        .flat_map(|note| note.addresses.iter().copied())
        .collect();
    let stale = Stale::new(&valid, notes, entries);

    let mut outcome = Ok(());
    for (attachment, address) in stale.attachments {
        let pod = Pod {
            attachment: &attachment,
            addresses: &[address],
            masqueraded: masquerades(conf) || masquerading.contains(&address),
        };
        // The address is released only if the device is gone, because a device that stays may
        // answer.
        let cut = pod.disconnect(&host, agent, deadline).await;
        outcome = outcome.and(cut.and_then(|()| release(conf, &attachment, deadline)));
    }
    if let Some(book) = open_book(conf, deadline)? {
        for address in stale.addresses {
            outcome = outcome.and(book.free(address).map_err(Error::from));
        }
    }
    outcome.and(remove_scratch_files(conf, &valid))
}

/// What garbage collection has to remove.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stale {
    /// Attachments with their addresses; an attachment with two addresses is there twice.
    attachments: BTreeSet<(Attachment, IpAddr)>,
    /// Addresses that no attachment is known for.
    addresses: BTreeSet<IpAddr>,
}

impl Stale {
    fn new(
        valid: &BTreeSet<Attachment>,
        notes: Vec<PodNote>,
        entries: Vec<(IpAddr, Holder)>,
    ) -> Self {
        let mut stale = Self::default();
        let addresses_of = |note: &PodNote| note.addresses.iter().copied().collect::<Vec<_>>();
        let noted: BTreeSet<_> = notes.iter().flat_map(addresses_of).collect();
        for PodNote {
            addresses,
            container,
            interface,
            ..
        } in notes
        {
            let attachment = Attachment {
                container,
                interface,
            };
            if !valid.contains(&attachment) {
                let each = addresses.iter().map(|it| (attachment.clone(), *it));
                stale.attachments.extend(each);
            }
        }
        for (address, holder) in entries {
            match holder {
                Holder::Attachment(attachment) if !valid.contains(&attachment) => {
                    stale.attachments.insert((attachment, address));
                }
                Holder::Container(container) if !is_alive(valid, &container) => {
                    stale.addresses.insert(address);
                }
                // A living holder of this address has a note, unless its ADD crashed before the
                // note.
                Holder::Unreadable if !noted.contains(&address) => {
                    tracing::warn!(%address, "freeing an address whose file names no holder");
                    stale.addresses.insert(address);
                }
                _ => {}
            }
        }
        stale
    }
}

fn is_alive(valid: &BTreeSet<Attachment>, container: &str) -> bool {
    valid.iter().any(|valid| valid.container == container)
}

/// A pod that goes.
struct Pod<'a> {
    attachment: &'a Attachment,
    addresses: &'a [IpAddr],
    /// Whether it may have packet-filter rules of its own.
    masqueraded: bool,
}

impl Pod<'_> {
    /// Cuts a pod off: nothing may lead to it before its device goes, and its device goes before
    /// its address can be given to another.
    async fn disconnect(
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

/// Whether the plugin masquerades pods now: then it may have done so when a pod was made whose note
/// does not tell, because an earlier version has written it, or because ADD did not come to its
/// end.
fn masquerades(conf: &NetConf) -> bool {
    conf.network().is_ok_and(|network| network.ip_masq)
}

/// Takes pods out of the fast path's tables, because an entry must not point at a device that is
/// gone or not made yet.
pub fn forget(addresses: &[IpAddr], agent: &Agent) {
    for address in addresses {
        // A broken map must not keep a pod from being made or deleted; the agent repairs it.
        match pods::forget(&agent.pins, *address) {
            Ok(()) | Err(datapath::Error::Family(_)) => {}
            Err(error) => tracing::warn!(%address, %error, "the fast path still knows the pod"),
        }
    }
}

/// The network's directory; one that is not there holds nothing, and is not made.
fn open_book(conf: &NetConf, deadline: Deadline) -> Result<Option<AddressBook>, Error> {
    let dir = conf.ipam_dir();
    Ok(if dir.exists() {
        Some(AddressBook::lock(&dir, deadline)?)
    } else {
        None
    })
}

fn release(conf: &NetConf, attachment: &Attachment, deadline: Deadline) -> Result<(), Error> {
    match open_book(conf, deadline)? {
        Some(book) => Ok(book.release(attachment)?),
        None => Ok(()),
    }
}

/// flannel's plugin leaves a file per container, with what it told the `bridge` plugin.
#[derive(Deserialize)]
struct ScratchFile {
    name: String,
}

fn remove_scratch_files(conf: &NetConf, valid: &BTreeSet<Attachment>) -> Result<(), Error> {
    // Not there unless flannel's plugin ran on this node.
    let Ok(entries) = fs::read_dir(&conf.data_dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let dead = entry
            .file_name()
            .to_str()
            .is_some_and(|container| !is_alive(valid, container));
        // The directory is shared by all networks, and the valid attachments are those of one.
        let ours = fs::read(entry.path())
            .ok()
            .and_then(|text| serde_json::from_slice::<ScratchFile>(&text).ok())
            .is_some_and(|file| file.name == conf.name);
        if dead && ours {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), Error> {
    files::remove(path).map_err(|source| Error::File {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::MacAddr;

    fn attachment(container: &str) -> Attachment {
        Attachment {
            container: container.into(),
            interface: "eth0".into(),
        }
    }

    fn address(last: u8) -> IpAddr {
        [10, 244, 1, last].into()
    }

    fn note(container: &str, last: u8) -> PodNote {
        let Attachment {
            container,
            interface,
        } = attachment(container);
        PodNote {
            addresses: address(last).into(),
            mac: MacAddr::default(),
            container,
            interface,
            masqueraded: false,
        }
    }

    #[test]
    fn the_living_keep_what_they_have() {
        let valid = BTreeSet::from([attachment("a"), attachment("b"), attachment("c")]);
        let notes = vec![note("a", 2), note("c", 4)];
        let entries = vec![
            (address(2), Holder::Attachment(attachment("a"))),
            (address(3), Holder::Container("b".into())),
            (address(4), Holder::Unreadable),
        ];
        assert_eq!(Stale::new(&valid, notes, entries), Stale::default());
    }

    #[test]
    fn the_dead_lose_device_and_address() {
        let valid = BTreeSet::from([attachment("a")]);
        let other = Attachment {
            interface: "net1".into(),
            ..attachment("a")
        };
        let notes = vec![note("b", 2)];
        let entries = vec![
            (address(3), Holder::Attachment(other.clone())),
            (address(4), Holder::Container("c".into())),
            (address(5), Holder::Unreadable),
        ];
        assert_eq!(
            Stale::new(&valid, notes, entries),
            Stale {
                attachments: BTreeSet::from([(attachment("b"), address(2)), (other, address(3))]),
                addresses: BTreeSet::from([address(4), address(5)]),
            }
        );
    }

    #[test]
    fn scratch_files_of_others_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let conf = format!(r#"{{"name":"cbr0","dataDir":{:?}}}"#, dir.path());
        let conf: NetConf = serde_json::from_str(&conf).expect("a configuration");
        for (container, text) in [
            ("alive", r#"{"name":"cbr0"}"#),
            ("dead", r#"{"name":"cbr0"}"#),
            ("elsewhere", r#"{"name":"other"}"#),
            ("unknown", "not JSON"),
        ] {
            fs::write(dir.path().join(container), text).expect("written");
        }
        remove_scratch_files(&conf, &BTreeSet::from([attachment("alive")])).expect("removed");
        let left = |name: &&str| dir.path().join(name).exists();
        let names = ["alive", "dead", "elsewhere", "unknown"];
        assert_eq!(names.iter().filter(|name| left(name)).count(), 3);
        assert!(!left(&"dead"));
    }
}
