//! What comes from the store: leases and the network's configuration.

use std::collections::BTreeSet;

use ipnet::IpNet;
use overlay_user::backend::{self, own_attributes};
use overlay_user::config::NetworkConfig;
use overlay_user::lease::{Attributes, Lease, SubnetKey};
use overlay_user::mac::MacAddr;

use super::{explained, shown};

/// Lines of a key, a space, a value: what a store may list.
pub fn leases(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let leases: Vec<Lease> = text.lines().filter_map(lease).collect();
    let network: IpNet = "10.244.0.0/16".parse().expect("a network");
    let on_link: [IpNet; 1] = ["192.168.0.1/24".parse().expect("a prefix")];
    let own = Lease {
        subnet: "10.244.1.0/24".parse().expect("a subnet"),
        subnet_v6: None,
        attributes: own_attributes([192, 168, 0, 1].into(), 1, MacAddr([2, 0, 0, 0, 0, 1])),
        reserved: false,
        expires: None,
    };

    let (peers, rejected) = backend::peers(&network, &own, &on_link, &leases, &[]);
    for rejection in &rejected {
        shown(&rejection.reason);
        shown(&rejection.subject);
    }
    for (index, peer) in peers.iter().enumerate() {
        assert!(network.contains(&peer.subnet), "{peer:?} is outside");
        assert!(peer.mac.is_unicast(), "{peer:?}");
        assert!(
            !network.contains(&peer.vtep),
            "{peer:?} is reached through itself"
        );
        for other in &peers[..index] {
            let overlap =
                peer.subnet.contains(&other.subnet) || other.subnet.contains(&peer.subnet);
            assert!(!overlap, "{peer:?} and {other:?} share addresses");
            assert!(
                peer.mac != other.mac || peer.vtep == other.vtep,
                "{peer:?} and {other:?} share a MAC address"
            );
        }
    }
    // Who is known is not pushed out by who comes later, nor by the order of things.
    let reversed: Vec<Lease> = leases.iter().rev().cloned().collect();
    let (again, _) = backend::peers(&network, &own, &on_link, &reversed, &peers);
    let kept: BTreeSet<_> = again.iter().collect();
    for peer in &peers {
        assert!(kept.contains(peer), "{peer:?} is pushed out");
    }
}

fn lease(line: &str) -> Option<Lease> {
    let (key, value) = line.split_once(' ').unwrap_or((line, ""));
    let key: SubnetKey = match key.parse() {
        Ok(key) => key,
        Err(error) => {
            explained(&error);
            return None;
        }
    };
    assert_eq!(key.to_string().parse(), Ok(key), "a key has one spelling");
    let attributes = match Attributes::parse(value) {
        Ok(attributes) => attributes,
        Err(error) => {
            explained(&error);
            return None;
        }
    };
    let json = attributes.to_json().expect("JSON");
    let again = Attributes::parse(&json).expect("what we write we can read");
    assert_eq!(again, attributes, "{json}");
    Some(Lease {
        subnet: key.subnet,
        subnet_v6: key.subnet_v6,
        attributes,
        reserved: false,
        expires: None,
    })
}

/// The network's configuration.
pub fn network_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let config = match NetworkConfig::parse(text) {
        Ok(config) => config,
        Err(error) => return explained(&error),
    };
    assert!(config.vxlan.vni < 1 << 24);
    assert!(config.pool.min() <= config.pool.max());
    for note in &config.notes {
        explained(note);
    }
    for subnet in config.pool.subnets().take(20) {
        assert!(config.pool.allows(&subnet), "{subnet}");
        assert!(config.network().contains(&subnet), "{subnet}");
        assert_eq!(subnet.prefix_len(), config.pool.subnet_len());
        assert_eq!(subnet, subnet.trunc());
    }
}
