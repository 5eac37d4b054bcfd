//! DEL and GC: take an interface back from a pod.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::config::NetConf;
use super::netlink::Netlink;
use super::netns::Netns;
use super::{Error, masquerade, veth};
use crate::ipam::{Attachment, Holder, Store};

/// Deletes `attachment`. Whatever of it is gone already is no error, and neither is a missing namespace.
///
/// # Errors
///
/// [`Error::Netlink`] or [`Error::Ipam`] if something is there but cannot be removed; the runtime tries again.
pub async fn del(
    conf: &NetConf,
    attachment: &Attachment,
    path: Option<&Path>,
) -> Result<(), Error> {
    let netns = match path.map(Netns::open) {
        Some(Ok(netns)) => Some(netns),
        Some(Err(error @ Error::OwnNetns(_))) => return Err(error),
        Some(Err(_)) | None => None,
    };
    let host = Netlink::open()?;
    let addresses = held_by(conf, attachment)?;
    disconnect(&host, attachment, &addresses).await?;
    if let Some(netns) = netns {
        // A pod of flannel's own plugin: its host end has a name that nobody can guess.
        let pod = Netlink::open_in(&netns)?;
        if let Some(link) = pod
            .link(&attachment.interface)
            .await?
            .filter(|link| link.is_veth)
        {
            pod.delete(&link).await?;
        }
    }
    remove_file(&conf.data_dir.join(&attachment.container))?;
    free(conf, addresses)
}

/// Releases everything of this network that is not among the valid attachments. Goes on past errors and
/// returns the first.
///
/// # Errors
///
/// [`Error::Config`] if the runtime does not say what is valid; else as [`del`].
pub async fn gc(conf: &NetConf) -> Result<(), Error> {
    let valid: BTreeSet<_> = conf
        .valid_attachments
        .as_ref()
        .ok_or_else(|| Error::Config("GC needs cni.dev/valid-attachments".into()))?
        .iter()
        .map(|it| Attachment {
            container: it.container_id.clone(),
            interface: it.ifname.clone(),
        })
        .collect();
    let alive = |container: &str| valid.iter().any(|valid| valid.container == container);

    let host = Netlink::open()?;
    // Two networks cannot share a bridge, so every note on ours is of this network.
    let bridge = host.link(conf.bridge()).await?.map(|bridge| bridge.index);
    let links = host.links().await?;
    let notes: Vec<_> = links
        .iter()
        .filter(|link| bridge.is_some() && link.master == bridge)
        .filter_map(veth::note)
        .collect();
    let mut stale: Vec<(Attachment, IpAddr)> = Vec::new();
    for note in &notes {
        let attachment = Attachment {
            container: note.container.clone(),
            interface: note.interface.clone(),
        };
        if !valid.contains(&attachment) {
            stale.push((attachment, note.address));
        }
    }
    let mut unused = BTreeSet::new();
    for (address, holder) in entries(conf)? {
        match holder {
            Holder::Attachment(attachment) if !valid.contains(&attachment) => {
                stale.push((attachment, address));
            }
            Holder::Container(container) if !alive(&container) => {
                unused.insert(address);
            }
            Holder::Unreadable if !notes.iter().any(|note| note.address == address) => {
                tracing::warn!(%address, "freeing an address whose file names no holder");
                unused.insert(address);
            }
            _ => {}
        }
    }

    let mut outcome = Ok(());
    for (attachment, address) in stale {
        match disconnect(&host, &attachment, &[address]).await {
            Ok(()) => {
                unused.insert(address);
            }
            // Its address stays taken: it may still answer.
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    let freed = free(conf, unused);
    outcome.and(freed).and(remove_scratch_files(conf, alive))
}

/// Cuts a pod off: nothing may lead to it before its device goes, and its device goes before its address can
/// be given to another.
async fn disconnect(
    host: &Netlink,
    attachment: &Attachment,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    veth::remove(host, attachment).await?;
    for address in addresses {
        masquerade::remove(attachment, *address);
    }
    Ok(())
}

/// The network's directory; one that is not there holds nothing, and is not made.
fn open_store(conf: &NetConf) -> Result<Option<Store>, Error> {
    let dir = conf.ipam_dir();
    Ok(if dir.exists() {
        Some(Store::lock(&dir)?)
    } else {
        None
    })
}

fn entries(conf: &NetConf) -> Result<Vec<(IpAddr, Holder)>, Error> {
    Ok(open_store(conf)?.map_or(Ok(Vec::new()), |store| store.entries())?)
}

fn held_by(conf: &NetConf, attachment: &Attachment) -> Result<Vec<IpAddr>, Error> {
    Ok(open_store(conf)?.map_or(Ok(Vec::new()), |store| store.held_by(attachment))?)
}

fn free(conf: &NetConf, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
    if let Some(store) = open_store(conf)? {
        for address in addresses {
            store.free(address)?;
        }
    }
    Ok(())
}

/// flannel's plugin leaves a file per container, with what it told the `bridge` plugin.
#[derive(Deserialize)]
struct ScratchFile {
    name: String,
}

fn remove_scratch_files(conf: &NetConf, alive: impl Fn(&str) -> bool) -> Result<(), Error> {
    // Not there unless flannel's plugin ran on this node.
    let Ok(entries) = fs::read_dir(&conf.data_dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let dead = entry
            .file_name()
            .to_str()
            .is_some_and(|container| !alive(container));
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
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
