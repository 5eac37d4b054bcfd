//! GC: delete the attachments that the runtime does not list as valid.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use serde::Deserialize;

use super::config::NetConf;
use super::guard::Agent;
use super::release::{LeavingPod, masquerades, open_book, release, remove_file};
use super::{Error, veth};
use crate::deadline::Deadline;
use crate::ipam::{Attachment, Holder};
use crate::kernel::Kernel;
use crate::pod::PodNote;

/// Releases everything of this network that is not among the valid attachments. Continues after an
/// error, and returns the first one.
///
/// # Errors
///
/// [`Error::Config`] if the runtime does not list the valid attachments; else as
/// [`del`](super::release::del).
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
    let notes = veth::notes(&host, conf.bridge()).await?;
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
        let pod = LeavingPod {
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
            by_kube_proxy: None,
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
