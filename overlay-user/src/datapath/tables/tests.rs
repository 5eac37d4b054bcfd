use super::*;
use overlay_common::V4;
use overlay_common::schema::{CONFIG_ACTIVE, PEER_DIRECT};

fn node(peers: &[&str]) -> TableInput {
    let peer = |(i, subnet): (usize, &&str)| {
        let peer = backend::Peer {
            subnet: subnet.parse().expect("a subnet"),
            vtep: IpAddr::from([192, 168, (i >> 7) as u8, (i & 127) as u8 + 2]),
            way: backend::Way::Vxlan {
                mac: MacAddr([2, 0, 0, 0, (i >> 7) as u8, (i & 127) as u8 + 2]),
            },
        };
        (
            peer,
            UnderlayPath {
                mtu: 1450,
                next_hop: Some(MacAddr([2, 0, 0, 0, 9, 9])),
            },
        )
    };
    TableInput {
        network: "10.244.0.0/16".parse().expect("a network"),
        subnet: "10.244.1.0/24".parse().expect("a subnet"),
        underlay_ifindex: 2,
        vtep_ifindex: 5,
        vtep: IpAddr::from([192, 168, 0, 1]),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        bridge_mac: MacAddr([2, 0, 0, 0, 1, 0]),
        gateway: Some(IpAddr::from([10, 244, 1, 1])),
        vni: 1,
        port: 8472,
        source_ports: (32768, 60999),
        flags: CONFIG_ACTIVE,
        underlay_mac: MacAddr([2, 0, 0, 0, 9, 1]),
        peers: peers.iter().enumerate().map(peer).collect(),
        unserved: Vec::new(),
        pods: Vec::new(),
    }
}

fn pod(ifindex: u32, last: u8) -> LocalPod {
    LocalPod {
        ifindex,
        address: IpAddr::from([10, 244, 1, last]),
        mac: MacAddr([2, 0, 0, 0, 2, last]),
        mtu: 1450,
        kernel_path: false,
        container: format!("container-{ifindex}"),
    }
}

#[test]
fn equal_subnets_take_one_entry_each() {
    let (tables, omissions) = desired::<V4>(&node(&["10.244.2.0/24", "10.244.3.0/24"]));
    assert_eq!(omissions, []);
    assert_eq!(tables.peers.len(), 2);
    assert_eq!(tables.peers[&[10, 244, 3, 0]].vtep, [192, 168, 0, 3]);
    let config = tables.config.expect("a configuration");
    assert_eq!(config.peer_mask, [255, 255, 255, 0]);
    let ports = (config.source_port_min, config.source_port_count);
    assert_eq!(ports, (32768, 28231));
    assert_eq!(config.flags, CONFIG_ACTIVE | CONFIG_PEERS_COMPLETE);
}

#[test]
fn mixed_lengths_share_the_longest_mask() {
    let (tables, omissions) = desired::<V4>(&node(&["10.244.2.0/23", "10.244.4.0/25"]));
    assert_eq!(omissions, []);
    assert_eq!(
        tables.config.expect("a configuration").peer_mask,
        [255, 255, 255, 128]
    );
    assert_eq!(tables.peers.len(), 5);
    assert_eq!(tables.peers[&[10, 244, 3, 128]].vtep, [192, 168, 0, 2]);
}

#[test]
fn a_subnet_without_room_leaves_the_table_incomplete() {
    let (tables, omissions) = desired::<V4>(&node(&["10.244.128.0/17", "10.244.4.0/30"]));
    assert_eq!(
        omissions,
        [Omission::Peer("10.244.4.0/30".parse().expect("a subnet"))]
    );
    assert_eq!(tables.vteps.len(), 2, "its node is known all the same");
    assert_eq!(
        tables.config.expect("a configuration").flags & CONFIG_PEERS_COMPLETE,
        0
    );
}

#[test]
fn a_changed_next_hop_is_as_good_as_one_that_was_there() {
    let with = |next_hop| {
        let mut node = node(&["10.244.2.0/24"]);
        node.peers[0].1.next_hop = next_hop;
        let (tables, _) = desired::<V4>(&node);
        (tables.peers[&[10, 244, 2, 0]], node.underlay_mac)
    };
    let macs = [
        None,
        Some(MacAddr([2, 0, 0, 0, 9, 9])),
        Some(MacAddr([2; 6])),
    ];
    for (from, to) in macs.into_iter().flat_map(|from| macs.map(|to| (from, to))) {
        let ((old, mac), (new, _)) = (with(from), with(to));
        assert_eq!(with_next_hop(&old, to, mac), new, "{from:?} to {to:?}");
    }
}

#[test]
fn thousands_of_omissions_are_a_line() {
    assert_eq!(Omission::summary(&[]), None);
    let omission = |last| Omission::Pod(IpAddr::from([10, 244, 1, last]));
    let one = omission(1);
    assert_eq!(
        Omission::summary(std::slice::from_ref(&one)),
        Some(one.to_string())
    );
    let text = Omission::summary(&(0..200).map(omission).collect::<Vec<_>>()).expect("a line");
    assert!(text.starts_with("pod 10.244.1.0 is left") && text.ends_with("; and 197 more"));
}

#[test]
fn one_long_prefix_takes_nobodys_place() {
    let mut subnets: Vec<String> = (0..128)
        .flat_map(|high| (0..4).map(move |low| format!("10.{}.{low}.0/24", high + 1)))
        .collect();
    subnets.push("10.0.4.0/30".to_owned());
    let names: Vec<&str> = subnets.iter().map(String::as_str).collect();
    let (tables, omissions) = desired::<V4>(&node(&names));
    assert_eq!(
        omissions,
        [Omission::Peer("10.0.4.0/30".parse().expect("a subnet"))]
    );
    assert_eq!(tables.peers.len(), 512);
}

#[test]
fn of_a_peer_on_the_link_only_the_mac_addresses_are_prepared() {
    let mut node = node(&["10.244.2.0/24"]);
    node.peers[0].0.way = backend::Way::Direct;
    let entry = |node: &TableInput| desired::<V4>(node).0.peers[&[10, 244, 2, 0]];
    let known = entry(&node);
    assert_eq!(known.flags, PEER_DIRECT | PEER_NEXT_HOP);
    assert_eq!(known.header[..6], [2, 0, 0, 0, 9, 9]);
    assert_eq!(known.header[6..12], node.underlay_mac.0);
    assert_eq!(known.header[12..], [0; 52]);
    node.peers[0].1.next_hop = None;
    assert_eq!(entry(&node).flags, PEER_DIRECT);
}

#[test]
fn nodes_beyond_the_table_are_no_strangers() {
    let mut node = node(&["10.244.2.0/24"]);
    let (peer, _) = node.peers[0].clone();
    node.unserved = (0..MAX_PEERS)
        .map(|number| backend::Peer {
            vtep: std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into(),
            ..peer.clone()
        })
        .collect();
    let (tables, _) = desired::<V4>(&node);
    assert_eq!(tables.vteps.len(), MAX_PEERS as usize);
    let config = tables.config.expect("a configuration");
    assert_eq!(
        config.flags & CONFIG_VTEPS_INCOMPLETE,
        CONFIG_VTEPS_INCOMPLETE
    );
}

#[test]
fn peers_beyond_the_table_are_left_to_the_kernel_path() {
    let beyond = 2;
    let peers = |vtep: fn(u32) -> IpAddr| {
        let mut node = node(&["10.244.2.0/24"]);
        let (peer, path) = node.peers.remove(0);
        let peer = |number: u32| {
            let subnet = std::net::Ipv4Addr::from_bits(0x0b00_0000 + (number << 8));
            let subnet = IpNet::new(subnet.into(), 24).expect("a subnet");
            let vtep = vtep(number);
            (
                backend::Peer {
                    subnet,
                    vtep,
                    ..peer.clone()
                },
                path,
            )
        };
        node.peers = (0..MAX_PEERS + beyond).map(peer).collect();
        desired::<V4>(&node)
    };
    let one = |_: u32| IpAddr::from([192, 168, 1, 1]);
    let each = |number: u32| std::net::Ipv4Addr::from_bits(0xc000_0000 + number).into();
    for (vtep, flags) in [(one as fn(_) -> _, 0), (each, CONFIG_VTEPS_INCOMPLETE)] {
        let (tables, omissions) = peers(vtep);
        assert_eq!(tables.peers.len(), MAX_PEERS as usize);
        assert_eq!(omissions.len(), beyond as usize);
        let config = tables.config.expect("a configuration");
        assert_eq!(config.flags, CONFIG_ACTIVE | flags);
    }
    let (tables, _) = peers(one);
    assert_eq!(tables.vteps[&[192, 168, 1, 1]].subnets, MAX_PEERS + beyond);
}

#[test]
fn of_equal_lengths_the_shortest_is_taken() {
    // In both cases one subnet finds no room.
    let half = MAX_PEERS as usize / 2;
    let lens = std::iter::repeat_n(23, half).chain([24]);
    assert_eq!(peer_len(lens), Some(23));
}

#[test]
fn who_is_not_served_is_not_shut_out() {
    let mut node = node(&["10.244.2.0/24", "10.244.3.0/24"]);
    node.unserved.extend(node.peers.pop().map(|(peer, _)| peer));
    let (tables, _) = desired::<V4>(&node);
    assert_eq!((tables.peers.len(), tables.vteps.len()), (1, 2));
    let config = tables.config.expect("a configuration");
    assert_eq!(config.flags, CONFIG_ACTIVE);
}

#[test]
fn interfaces_of_a_container_have_one_owner() {
    // From the published test vectors of FNV-1a with 32 bits.
    assert_eq!((owner("a"), owner("foobar")), (0xe40c_292c, 0xbf9c_f968));
    let second = LocalPod {
        container: pod(7, 2).container,
        ..pod(8, 3)
    };
    let node = TableInput {
        pods: vec![pod(7, 2), second, pod(9, 4)],
        ..node(&[])
    };
    let (tables, _) = desired::<V4>(&node);
    let owners = [7, 8, 9].map(|ifindex| tables.endpoints[&ifindex].owner);
    assert_eq!(owners[0], owners[1]);
    assert_ne!(owners[0], owners[2]);
    for endpoint in tables.endpoints.values() {
        assert_eq!(tables.pods[&endpoint.addresses[0]].owner, endpoint.owner);
    }
}

#[test]
fn two_devices_with_one_address_get_no_short_cut() {
    for kernel_path in [false, true] {
        let second = LocalPod {
            kernel_path,
            ..pod(8, 2)
        };
        let node = TableInput {
            pods: vec![pod(7, 2), second, pod(9, 3)],
            ..node(&[])
        };
        let (tables, omissions) = desired::<V4>(&node);
        assert_eq!(
            omissions,
            [Omission::Duplicate(IpAddr::from([10, 244, 1, 2]))]
        );
        assert_eq!(tables.pods[&[10, 244, 1, 2]].flags, POD_KERNEL_PATH);
        assert_eq!(tables.endpoints[&7].flags, POD_KERNEL_PATH);
        assert_eq!(tables.endpoints[&8].flags, POD_KERNEL_PATH);
        assert_eq!(tables.endpoints[&9].flags, 0);
    }
}
