//! The address that a pod without a note may use, and the refusal of disputed claims: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::PodLink;

/// The address of a pod that has a single address, in a network of the bridge. `None` where the pod
/// has more: which of them the plugin gave to the pod is not known.
pub(super) fn only_address(found: &[IpNet], bridge: &[IpNet]) -> Option<IpAddr> {
    let [only] = found else { return None };
    let address = only.addr();
    let is_of_bridge = bridge
        .iter()
        .any(|own| own.contains(&address) && own.addr() != address);
    is_of_bridge.then_some(address)
}

/// Leaves out every pod without a note that claims another pod's address, because the claim of a
/// pod without a note is the pod's own word, and not the plugin's.
pub(super) fn drop_disputed(noted: &[PodLink], unnoted: &mut Vec<PodLink>) {
    let mut claims: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for pod in noted.iter().chain(unnoted.iter()) {
        for address in pod.note.addresses.iter() {
            *claims.entry(*address).or_default() += 1;
        }
    }
    let is_sole = |address: &IpAddr| claims.get(address) == Some(&1);
    unnoted.retain(|pod| pod.note.addresses.iter().all(is_sole));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::MacAddr;
    use crate::pod::PodNote;

    #[test]
    fn one_address_of_the_bridge_is_the_pods() {
        let net = |text: &str| -> IpNet { text.parse().expect("an address") };
        let bridge = [net("10.244.1.1/24"), net("fe80::1/64")];
        let of = |found: &[&str]| {
            let found: Vec<_> = found.iter().map(|text| net(text)).collect();
            only_address(&found, &bridge)
        };
        assert_eq!(of(&["10.244.1.7/24"]), Some([10, 244, 1, 7].into()));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["10.244.1.7/24", "10.244.1.8/24"]), None);
        assert_eq!(of(&["10.244.1.7/24", "192.0.2.7/32"]), None);
        assert_eq!(of(&["10.244.1.1/24"]), None, "the gateway's");
        assert_eq!(of(&["10.244.2.7/24"]), None, "another node's");
    }

    #[test]
    fn nobody_is_believed_where_two_claim_an_address() {
        let pod = |ifindex: u32, last: u8| PodLink {
            ifindex,
            name: format!("veth{ifindex}"),
            mac: MacAddr::default(),
            pod_mac: MacAddr::default(),
            peer: None,
            note: PodNote {
                addresses: IpAddr::from([10, 244, 1, last]).into(),
                mac: MacAddr::default(),
                container: format!("netns-{ifindex}"),
                interface: "eth0".to_owned(),
                masqueraded: false,
                by_kube_proxy: None,
            },
            master: 1,
            netns_id: None,
            mtu: 1450,
            up: true,
            has_foreign_qdisc: false,
        };
        let noted = [pod(2, 2)];
        let mut unnoted = vec![pod(3, 2), pod(4, 4), pod(5, 4), pod(6, 6)];
        drop_disputed(&noted, &mut unnoted);
        assert_eq!(unnoted, [pod(6, 6)]);
    }
}
