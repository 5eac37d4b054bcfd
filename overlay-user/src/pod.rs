//! The note that the CNI plugin leaves on the host end of a pod's veth pair.
//!
//! The note is the device's alias (`IFLA_IFALIAS`, at most 255 bytes), so that it exists as long as
//! the device, survives every restart, and is shown by `ip link`. A pod made by flannel's plugin
//! has no note; the agent learns of such a pod by the pod's end of the pair
//! (`kernel/pods/ends.rs`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::mac::MacAddr;
use crate::marks::POD_NOTE_TAG;
use crate::per_family::PerFamily;

/// The note on the host end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodNote {
    /// The pod's addresses on the overlay.
    pub addresses: PerFamily<IpAddr>,
    /// The MAC address of the pod's end.
    pub mac: MacAddr,
    /// The runtime's identifier of the container (`CNI_CONTAINERID`).
    pub container: String,
    /// The name of the interface in the pod (`CNI_IFNAME`).
    pub interface: String,
    /// Whether the plugin masquerades the pod's packets, with rules of its own.
    pub masqueraded: bool,
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`), where Services are to be left to
    /// kube-proxy.
    pub by_kube_proxy: Option<u64>,
}

/// The error for an alias that is not a [`PodNote`], such as that of a foreign device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a pod's note: {0:?}")]
pub struct ParsePodNoteError(String);

/// A further word in the note of a pod that the plugin masquerades.
const MASQUERADED: &str = "masqueraded";
/// Prefix of the last word in the note of a pod whose Services are left to kube-proxy.
const BY_KUBE_PROXY: &str = "kube-proxy=";

impl fmt::Display for PodNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{POD_NOTE_TAG} {} {} {} {}",
            self.addresses, self.mac, self.interface, self.container
        )?;
        if self.masqueraded {
            write!(f, " {MASQUERADED}")?;
        }
        if let Some(cookie) = self.by_kube_proxy {
            write!(f, " {BY_KUBE_PROXY}{cookie}")?;
        }
        Ok(())
    }
}

impl FromStr for PodNote {
    type Err = ParsePodNoteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePodNoteError(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        let by_kube_proxy = |word: &str| word.strip_prefix(BY_KUBE_PROXY)?.parse().ok();
        let (words, by_kube_proxy) = match &words[..] {
            [words @ .., last] if words.len() >= 5 && by_kube_proxy(last).is_some() => {
                (words, by_kube_proxy(last))
            }
            words => (words, None),
        };
        let (words, masqueraded) = match words {
            [words @ .., MASQUERADED] if words.len() == 5 => (words, true),
            words => (words, false),
        };
        let [POD_NOTE_TAG, addresses, mac, interface, container] = *words else {
            return Err(bad());
        };
        Ok(Self {
            addresses: parse(addresses).ok_or_else(bad)?,
            mac: mac.parse().map_err(|_| bad())?,
            container: container.to_owned(),
            interface: interface.to_owned(),
            masqueraded,
            by_kube_proxy,
        })
    }
}

/// Reads an address, or an IPv4 address and an IPv6 address separated by a comma.
fn parse(addresses: &str) -> Option<PerFamily<IpAddr>> {
    Some(match addresses.split_once(',') {
        None => addresses.parse::<IpAddr>().ok()?.into(),
        Some((v4, v6)) => PerFamily::Both {
            v4: v4.parse::<Ipv4Addr>().ok()?.into(),
            v6: v6.parse::<Ipv6Addr>().ok()?.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_round_trips() {
        let note = PodNote {
            addresses: IpAddr::from([10, 244, 1, 5]).into(),
            mac: MacAddr([2, 0, 0, 0, 0, 5]),
            container: "c0ffee".into(),
            interface: "eth0".into(),
            masqueraded: false,
            by_kube_proxy: None,
        };
        assert_eq!(
            note.to_string(),
            "overlay/1 10.244.1.5 02:00:00:00:00:05 eth0 c0ffee"
        );
        assert_eq!(note.to_string().parse(), Ok(note.clone()));
        let masqueraded = PodNote {
            masqueraded: true,
            ..note.clone()
        };
        assert!(masqueraded.to_string().ends_with("c0ffee masqueraded"));
        assert_eq!(masqueraded.to_string().parse(), Ok(masqueraded.clone()));
        for note in [&note, &masqueraded] {
            let by_kube_proxy = Some(4711);
            let opted_out = PodNote {
                by_kube_proxy,
                ..note.clone()
            };
            assert!(opted_out.to_string().ends_with(" kube-proxy=4711"));
            assert_eq!(opted_out.to_string().parse(), Ok(opted_out));
        }
        let odd = "overlay/1 10.244.1.5 02:00:00:00:00:05 eth0 masqueraded";
        let note: PodNote = odd.parse().expect("a container of that name");
        assert_eq!((note.masqueraded, &*note.container), (false, MASQUERADED));
        let dual = "overlay/1 10.244.1.5,fd00::5 02:00:00:00:00:05 eth0 c0ffee";
        let note: PodNote = dual.parse().expect("a pod of both families");
        assert_eq!(note.addresses.v6(), "fd00::5".parse().ok().as_ref());
        assert_eq!(note.to_string(), dual);
    }

    #[test]
    fn aliases_of_others_are_not_notes() {
        for text in [
            "",
            "uplink",
            "overlay/2 10.0.0.1 02:00:00:00:00:05 eth0 x",
            "overlay/1 10.0.0.1",
            "overlay/1 fd00::5,10.0.0.1 02:00:00:00:00:05 eth0 x",
            "overlay/1 10.0.0.1,10.0.0.2 02:00:00:00:00:05 eth0 x",
            "overlay/1 10.0.0.1 02:00:00:00:00:05 eth0 x odd",
            "overlay/1 10.0.0.1 02:00:00:00:00:05 eth0 x masqueraded masqueraded",
            "overlay/1 10.0.0.1 02:00:00:00:00:05 eth0 x kube-proxy=odd",
            "overlay/1 10.0.0.1 02:00:00:00:00:05 eth0 x kube-proxy=1 masqueraded",
        ] {
            assert!(text.parse::<PodNote>().is_err(), "{text:?}");
        }
    }
}
