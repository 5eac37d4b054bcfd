//! The properties of a network device that early refusal (XDP) depends on.

use std::fs;
use std::path::Path;

use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};

use super::attributes::link_name;
use super::{Error, Kernel};

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// The kind of a virtual device: `veth`, `bond`, …, as `ip -d link` shows it; absent for a
    /// device with hardware.
    pub kind: Option<String>,
    /// The driver of the device's hardware; absent where the device has none, or `/sys` shows
    /// another namespace's devices.
    pub driver: Option<String>,
    /// The features that a virtio device and its driver have negotiated, one bit each (virtio 1.2,
    /// section 5.1.3).
    pub virtio_features: Option<u128>,
    /// Whether VLAN devices stand on it.
    pub carries_vlans: bool,
    /// The XDP program on it, by the kernel's id.
    pub xdp_program: Option<u32>,
}

impl Kernel {
    /// Reads the properties of a device; `None` when there is none with this index.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn nic(&self, ifindex: u32) -> Result<Option<Nic>, Error> {
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| link.header.index == ifindex) else {
            return Ok(None);
        };
        let name = link_name(link).unwrap_or_default().to_owned();
        let sysfs = sysfs_of(&name, ifindex);
        Ok(Some(Nic {
            ifindex,
            kind: kind(link).map(ToString::to_string),
            driver: sysfs.as_deref().and_then(driver),
            virtio_features: sysfs.as_deref().and_then(virtio_features),
            carries_vlans: links.iter().any(|other| is_vlan_on(other, ifindex)),
            xdp_program: xdp_program(link),
            name,
        }))
    }
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link.attributes.iter().find_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn is_vlan_on(link: &LinkMessage, ifindex: u32) -> bool {
    matches!(kind(link), Some(InfoKind::Vlan))
        && link.attributes.contains(&LinkAttribute::Link(ifindex))
}

fn xdp_program(link: &LinkMessage) -> Option<u32> {
    let xdp = link.attributes.iter().find_map(|it| match it {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    })?;
    xdp.iter().find_map(|it| match it {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    })
}

/// The device's directory, if `/sys` shows the devices of this network namespace.
fn sysfs_of(name: &str, ifindex: u32) -> Option<std::path::PathBuf> {
    let dir = Path::new("/sys/class/net").join(name);
    let shown = fs::read_to_string(dir.join("ifindex")).ok()?;
    (shown.trim() == ifindex.to_string()).then_some(dir)
}

fn driver(dir: &Path) -> Option<String> {
    let target = fs::read_link(dir.join("device/driver")).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// `/sys/…/device/features` has a digit for each bit, the lowest first: 64, or 128 since Linux
/// 6.17.
fn virtio_features(dir: &Path) -> Option<u128> {
    parse_features(fs::read_to_string(dir.join("device/features")).ok()?.trim())
}

fn parse_features(digits: &str) -> Option<u128> {
    if digits.is_empty() || digits.len() > 128 {
        return None;
    }
    digits.bytes().rev().try_fold(0, |bits, digit| match digit {
        b'0' => Some(bits << 1),
        b'1' => Some(bits << 1 | 1),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_and_programs_are_seen() {
        let mut vlan = LinkMessage::default();
        vlan.attributes = vec![
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
            LinkAttribute::Link(7),
        ];
        assert!(is_vlan_on(&vlan, 7) && !is_vlan_on(&vlan, 8));
        let mut veth = vlan.clone();
        veth.attributes[0] = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
        assert!(!is_vlan_on(&veth, 7));
        assert_eq!(
            kind(&veth).map(ToString::to_string).as_deref(),
            Some("veth")
        );
        assert_eq!(xdp_program(&veth), None);
        veth.attributes
            .push(LinkAttribute::Xdp(vec![LinkXdp::ProgId(3)]));
        assert_eq!(xdp_program(&veth), Some(3));
    }

    #[test]
    fn the_lowest_feature_stands_first() {
        assert_eq!(parse_features("0100"), Some(0b10));
        assert_eq!(
            parse_features(&format!("{}1", "0".repeat(63))),
            Some(1 << 63)
        );
        assert_eq!(
            parse_features(&format!("01{}", "0".repeat(126))),
            Some(0b10)
        );
        for bad in ["", "012", &"0".repeat(129)] {
            assert_eq!(parse_features(bad), None, "{bad}");
        }
    }
}
