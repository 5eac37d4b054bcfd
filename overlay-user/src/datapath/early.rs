//! Decides by the driver whether early refusal at the NIC (`ov_net_xdp`) is switched on.
//!
//! Native XDP costs offloads with some drivers; those are worth more than a cheaper refusal.
//! Generic XDP is never used: it comes after the socket buffer has been made, where `ov_net_in`
//! refuses as well.

use crate::config::flags::Xdp as Wanted;
use crate::kernel::nic::Nic;

/// What a virtio NIC's device does for its driver on receive (virtio 1.2, section 5.1.3: checksums,
/// and super-packets of TCP and UDP; for those in UDP tunnels `VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO`
/// and its neighbour of linux/virtio_net.h). Linux switches all of it off while an XDP program is
/// attached (`virtnet_xdp_set()` of drivers/net/virtio_net.c).
const VIRTIO_RECEIVE_OFFLOADS: u128 =
    1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 54 | 1 << 55 | 1 << 65 | 1 << 66;

/// Whether to attach the XDP program to a device; an error is the reason not to.
///
/// # Errors
/// A sentence for the operator.
pub fn wanted_on(wanted: Wanted, nic: &Nic) -> Result<(), String> {
    if wanted == Wanted::Off {
        return Err("switched off by --xdp off".to_owned());
    }
    if nic.carries_vlans {
        // Not even when asked to: it would refuse what `ov_net_in` would not.
        return Err(format!(
            "{} carries VLANs: a tag that a NIC takes off does not show at XDP",
            nic.name
        ));
    }
    if wanted == Wanted::On {
        return Ok(());
    }
    helps(nic).map_err(|why| format!("{}: {why}; --xdp on attaches all the same", nic.name))
}

/// Whether the driver is known to keep all offloads with XDP attached.
fn helps(nic: &Nic) -> Result<(), String> {
    match (nic.kind.as_deref(), nic.driver.as_deref()) {
        (Some("veth"), _) => Err(
            "native XDP on one end of a veth pair switches segmentation offload off at the other"
                .to_owned(),
        ),
        (_, Some("virtio_net")) => match nic.virtio_features {
            Some(features) if features & VIRTIO_RECEIVE_OFFLOADS == 0 => Ok(()),
            Some(_) => Err(
                "virtio_net would switch its receive offloads off (checksums, super-packets)"
                    .to_owned(),
            ),
            None => Err("virtio_net does not tell its receive offloads".to_owned()),
        },
        (_, Some(driver)) => Err(format!("nobody has measured it with the driver {driver}")),
        (Some(kind), None) => Err(format!("nobody has measured it on a device of kind {kind}")),
        (None, None) => Err("its driver is not known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(kind: Option<&str>, driver: Option<&str>, features: Option<u128>) -> Nic {
        Nic {
            name: "eth0".to_owned(),
            kind: kind.map(str::to_owned),
            driver: driver.map(str::to_owned),
            virtio_features: features,
            ..Nic::default()
        }
    }

    #[test]
    fn by_itself_only_where_nothing_is_given_up() {
        let plain = nic(None, Some("virtio_net"), Some(1 << 5 | 1 << 32));
        assert_eq!(wanted_on(Wanted::Auto, &plain), Ok(()));
        for (nic, word) in [
            (nic(Some("veth"), None, None), "segmentation"),
            (nic(Some("bond"), None, None), "bond"),
            (nic(None, Some("virtio_net"), Some(1 << 7)), "offloads"),
            (nic(None, Some("virtio_net"), Some(1 << 1)), "offloads"),
            (nic(None, Some("virtio_net"), Some(1 << 65)), "offloads"),
            (nic(None, Some("virtio_net"), None), "does not tell"),
            (nic(None, Some("e1000"), None), "e1000"),
            (nic(None, None, None), "not known"),
        ] {
            let why = wanted_on(Wanted::Auto, &nic).expect_err(word);
            assert!(why.contains(word) && why.contains("--xdp on"), "{why}");
            assert_eq!(wanted_on(Wanted::On, &nic), Ok(()));
            assert!(wanted_on(Wanted::Off, &nic).is_err());
        }
    }

    #[test]
    fn never_below_vlans() {
        let nic = Nic {
            carries_vlans: true,
            ..nic(None, Some("virtio_net"), Some(0))
        };
        for wanted in [Wanted::Auto, Wanted::On] {
            let why = wanted_on(wanted, &nic).expect_err("VLANs");
            assert!(why.contains("VLAN"), "{why}");
        }
    }
}
