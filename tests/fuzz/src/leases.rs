//! What comes from the store: leases and the network's configuration.

use std::sync::Arc;

use overlay_user::backend::{Backend, Here, HostGw, Peer, Peers, UnderlayDevice, Vxlan};
use overlay_user::config::{NetworkConfig, VxlanConfig};
use overlay_user::lease::{Attributes, Lease, Leases, SubnetKey};
use overlay_user::mac::MacAddr;

use super::{explained, shown};

const NETWORK: &str = "10.244.0.0/16";

/// Lines of a key, a space, a value: what a store may list. Every backend judges it.
pub fn leases(data: &[u8]) {
    let direct = VxlanConfig {
        direct_routing: true,
        ..VxlanConfig::default()
    };
    for backend in [&Vxlan::default() as &dyn Backend, &Vxlan(direct), &HostGw] {
        judged(backend, data);
    }
}

fn judged(backend: &dyn Backend, data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let leases: Vec<Lease> = text.lines().filter_map(lease).collect();
    let of = |leases: &[Lease]| -> Leases {
        leases
            .iter()
            .map(|lease| (lease.key(), Arc::new(lease.clone())))
            .collect()
    };
    let here = here();
    // Half of the leases come first; the other half neither pushes out a peer nor comes to harm.
    let (first, _) = leases.split_at(leases.len() / 2);
    let mut peers = Peers::default();
    for seen in [first, &leases] {
        let before = peers.believed().clone();
        let seen = of(seen);
        peers.update(backend, &here, &seen);
        sound(&here, &peers);
        backend.state(&here, &Vec::from_iter(peers.believed().values().cloned()));
        for (_, peer) in before
            .iter()
            .filter(|(_, peer)| is_claimed(backend, peer, &seen))
        {
            assert_eq!(
                peers.believed().get(&peer.subnet),
                Some(peer),
                "{peer:?} is pushed out"
            );
        }
    }
}

/// Whether some lease says what made this peer: a later line may have rewritten it.
fn is_claimed(backend: &dyn Backend, peer: &Peer, leases: &Leases) -> bool {
    let says_so = |lease: &Arc<Lease>| {
        let mut alone = Peers::default();
        let leases = Leases::from_iter([(lease.key(), Arc::clone(lease))]);
        alone.update(backend, &here(), &leases);
        let mut subnets = lease.subnets.iter();
        subnets.any(|subnet| alone.believed().get(subnet) == Some(peer))
    };
    leases.values().any(says_so)
}

fn sound(here: &Here, peers: &Peers) {
    let network = &here.network;
    for rejection in peers.rejected().values() {
        shown(&rejection.reason);
        shown(&rejection.subject);
    }
    let believed = peers.believed().sorted();
    for (index, peer) in believed.iter().enumerate() {
        assert!(network.contains(&peer.subnet), "{peer:?} is outside");
        assert!(peer.mac().is_none_or(|mac| mac.is_unicast()), "{peer:?}");
        assert!(
            !network.contains(&peer.vtep),
            "{peer:?} is reached through itself"
        );
        for other in &believed[..index] {
            let overlap =
                peer.subnet.contains(&other.subnet) || other.subnet.contains(&peer.subnet);
            assert!(!overlap, "{peer:?} and {other:?} share addresses");
            assert!(
                peer.mac().is_none() || peer.mac() != other.mac() || peer.vtep == other.vtep,
                "{peer:?} and {other:?} share a MAC address"
            );
        }
    }
}

fn here() -> Here {
    Here {
        network: NETWORK.parse().expect("a network"),
        subnet: "10.244.1.0/24".parse().expect("a subnet"),
        public_ip: [192, 168, 0, 1].into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        nic: UnderlayDevice {
            name: "eth0".to_owned(),
            ifindex: 2,
            mtu: 1500,
        },
        on_link: vec!["192.168.0.1/24".parse().expect("a prefix")],
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
        subnets: key.0,
        attributes,
        node: None,
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
    assert!(config.vxlan().is_none_or(|vxlan| vxlan.vni < 1 << 24));
    let pool = config.pools.first();
    assert!(pool.min() <= pool.max());
    for note in &config.notes {
        explained(note);
    }
    for subnet in pool.subnets().take(20) {
        assert!(pool.allows(&subnet), "{subnet}");
        assert!(config.network().contains(&subnet), "{subnet}");
        assert_eq!(subnet.prefix_len(), pool.subnet_len());
        assert_eq!(subnet, subnet.trunc());
    }
}
