use clap::{Args as _, Command, FromArgMatches as _};

use super::*;
use crate::backend::Way;
use crate::config::{AgentFlags, NetworkConfig};
use crate::kernel::pods::BridgeLink;
use crate::reconcile::OverlayDevice;

const VXLAN: &str = r#"{"Type":"vxlan","VNI":7,"Port":4789}"#;
const DIRECT: &str = r#"{"Type":"vxlan","DirectRouting":true}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn subnet(text: &str) -> IpNet {
    text.parse().expect("a subnet")
}

fn settings(backend: &str, args: &[&str]) -> Settings {
    let command = AgentFlags::augment_args(Command::new("overlayd"));
    let args = std::iter::once("overlayd").chain(args.iter().copied());
    let flags = AgentFlags::from_arg_matches(&command.get_matches_from(args)).expect("flags");
    let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
    Settings::new(
        &flags,
        NetworkConfig::parse(&config).expect("a configuration"),
    )
}

fn underlay() -> Underlay {
    Underlay {
        name: "eth0".to_owned(),
        ifindex: 2,
        mtu: 1500,
        is_ethernet: true,
        address: [192, 168, 0, 1].into(),
        public_address: [203, 0, 113, 1].into(),
    }
}

fn this_node(settings: &Settings) -> Here {
    let lease = Lease {
        subnets: subnet("10.244.1.0/24").into(),
        attributes: attributes(settings, &underlay(), MAC).expect("attributes"),
        node: None,
        reserved: false,
        expires: None,
    };
    let on_link = "192.168.0.1/24".parse().expect("a prefix");
    here(settings, &lease, MAC, &underlay(), &[on_link])
}

fn peer() -> Peer {
    Peer {
        subnet: "10.244.2.0/24".parse().expect("a subnet"),
        vtep: [203, 0, 113, 2].into(),
        way: Way::Vxlan {
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
        },
    }
}

fn sources() -> Sources {
    let mut sources = Sources::default();
    let subnets = ["10.244.2.0/24".parse().expect("a subnet")];
    sources.insert([203, 0, 113, 2].into(), subnets.into());
    sources
}

/// The observed state where the backend's device has this index, or is missing.
fn seen(device: Option<u32>) -> Seen {
    let mut seen = Seen::default();
    seen.other_vnis = Some([9].into());
    seen.observed.device = device.map(|ifindex| OverlayDevice {
        name: "flannel.7".to_owned(),
        ifindex,
        vxlan: None,
        mac: MAC,
        mtu: 1450,
        up: true,
        addresses: [].into(),
        configures_itself: false,
    });
    seen
}

fn plan(settings: &Settings, seen: &Seen) -> Plan {
    Plan::of(settings, &this_node(settings), &[peer()], &sources(), seen)
}

#[test]
fn a_node_is_known_by_the_address_that_peers_send_to() {
    let here = this_node(&settings(VXLAN, &[]));
    assert_eq!(here.network.to_string(), "10.244.0.0/16");
    assert_eq!(here.subnet.to_string(), "10.244.1.0/24");
    assert_eq!(here.public_ip.to_string(), "203.0.113.1");
    assert_eq!(here.mac, MAC);
    assert_eq!(
        (here.nic.name.as_str(), here.nic.ifindex, here.nic.mtu),
        ("eth0", 2, 1500)
    );
    assert_eq!(here.on_link.len(), 1);
}

#[test]
fn packet_filter_rules_are_as_the_flags_say() {
    let rules = |args: &[&str]| plan(&settings(VXLAN, args), &seen(None)).rules;
    let usual = rules(&[]);
    assert_eq!(usual.network.to_string(), "10.244.0.0/16");
    assert_eq!(usual.subnet.to_string(), "10.244.1.0/24");
    assert!(!usual.masquerade && usual.forward && usual.random_fully);
    assert!(rules(&["--ip-masq"]).masquerade);
    assert!(!rules(&["--iptables-forward-rules=false"]).forward);
    assert!(!rules(&["--ip-masq-fully-random-disable"]).random_fully);
}

#[test]
fn the_plugin_is_told_gateway_and_mtu() {
    for (backend, mtu) in [(VXLAN, 1450), (HOST_GW, 1500)] {
        let plan = plan(&settings(backend, &["--ip-masq"]), &seen(None));
        assert_eq!(plan.mtu, mtu);
        let told = plan.subnet_env;
        assert_eq!((told.mtu, told.ip_masq), (mtu, true));
        let nets = told.nets.v4().expect("nets");
        assert_eq!(nets.subnet, subnet("10.244.1.1/24"));
        assert_eq!(nets.networks, [subnet("10.244.0.0/16")]);
    }
}

#[test]
fn the_kernel_path_leads_to_every_peer() {
    let kernel = plan(&settings(VXLAN, &[]), &seen(None)).kernel;
    let device = kernel.device.expect("a device");
    assert_eq!((device.name.as_str(), device.mtu), ("flannel.7", 1450));
    let subnets: Vec<_> = kernel.routes.iter().map(|route| route.subnet).collect();
    assert_eq!(subnets, [peer().subnet]);
}

#[test]
fn the_guard_knows_this_node_its_peers_and_its_devices() {
    let mut seen = seen(None);
    let vxlan = settings(VXLAN, &["--ip-masq"]);
    let guard = plan(&vxlan, &seen).guard.expect("a guard");
    assert_eq!(guard.network.to_string(), "10.244.0.0/16");
    assert_eq!(guard.own_subnet.to_string(), "10.244.1.0/24");
    assert_eq!(guard.own_vtep.to_string(), "203.0.113.1");
    assert_eq!((guard.underlay, guard.port, guard.vni), (2, 4789, 7));
    assert_eq!(guard.vxlan.as_deref(), Some("flannel.7"));
    assert_eq!((&guard.nic, &*guard.bridge), (&None, "cni0"));
    assert_eq!(guard.other_vnis, [9].into());
    assert_eq!(guard.peers, sources());
    assert!(guard.translates && guard.judged.is_none());

    seen.pods.bridge = Some(BridgeLink {
        name: "br7".to_owned(),
        ifindex: 6,
        mac: MAC,
        mtu: 1500,
        up: true,
        addresses: Vec::new(),
    });
    let guard = plan(&settings(HOST_GW, &[]), &seen).guard.expect("a guard");
    assert_eq!((guard.vxlan, guard.port, guard.vni), (None, 0, 0));
    assert_eq!(guard.nic.as_deref(), Some("eth0"));
    assert_eq!(guard.bridge, "br7");
    assert!(!guard.translates);
}

#[test]
fn who_shares_the_port_has_to_be_known_before_there_is_a_guard() {
    let mut unknown = seen(None);
    unknown.other_vnis = None;
    assert!(plan(&settings(VXLAN, &[]), &unknown).guard.is_none());
}

#[test]
fn the_guard_outlives_the_agent_as_long_as_the_flag_says() {
    let lapse = |args: &[&str]| {
        let guard = plan(&settings(VXLAN, args), &seen(None)).guard;
        guard.expect("a guard").lapse.as_secs()
    };
    assert_eq!(lapse(&[]), 600);
    assert_eq!(lapse(&["--refuse-without-agent=90s"]), 90);
    // Zero stands for ever, which is ten years.
    assert_eq!(lapse(&["--refuse-without-agent=0"]), 315_360_000);
}

#[test]
fn outlets_are_where_peers_are_reached() {
    let outlets = |backend, device| {
        let settings = settings(backend, &[]);
        let outlets = outlets(&settings, &seen(device), &this_node(&settings));
        outlets
            .into_iter()
            .map(|outlet| (outlet.name, outlet.ifindex))
            .collect::<Vec<_>>()
    };
    let (device, nic) = (("flannel.7".to_owned(), 5), ("eth0".to_owned(), 2));
    assert_eq!(outlets(DIRECT, Some(5)), [device.clone(), nic.clone()]);
    assert_eq!(outlets(VXLAN, Some(5)), [device]);
    assert_eq!(outlets(HOST_GW, None), [nic]);
    for backend in [VXLAN, DIRECT] {
        assert_eq!(outlets(backend, None), [], "{backend}");
    }
}

#[test]
fn the_lease_names_the_address_that_peers_send_to() {
    let settings = settings(VXLAN, &[]);
    let ours = attributes(&settings, &underlay(), MAC).expect("attributes");
    assert_eq!(ours.public_ip, underlay().public_address.into());
    assert_eq!(ours.backend_type.as_deref(), Some("vxlan"));
    let of_ipv6 = Underlay {
        public_address: "2001:db8::1".parse().expect("an address"),
        ..underlay()
    };
    assert!(attributes(&settings, &of_ipv6, MAC).is_err());
}
