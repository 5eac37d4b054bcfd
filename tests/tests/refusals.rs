//! Nobody can pretend to be another pod or another node, whatever it hides behind; and what is odd but forges
//! nothing is delivered. The same on both paths.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::frame::{
    self, BROADCAST, IPV4, Ip, Mac, SERVICE_VLAN, VLAN, VXLAN_PORT, arp, ethernet, tagged, vxlan,
};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Namespace, Node, Options, command, wait_until};
use serde_json::Value;

/// How long a packet may take through the lab, and a counter to show it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the lab must be silent before what has not arrived counts as refused.
const QUIET: Duration = Duration::from_millis(300);
/// A node that exists only as a lease.
const THIRD: (&str, &str) = ("10.244.250.0-24", "192.168.66.77");
/// An address of the overlay that nobody leases.
const UNLEASED: Ipv4Addr = Ipv4Addr::new(10, 244, 200, 9);
/// An address that has nothing to do with the overlay.
const FOREIGN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The cluster address of a Service whose only backend is a node's VXLAN port.
const SERVICES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 0, 2)];
/// Another address of the second node.
const SECOND_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 67, 2);
/// Two tags that name no VLAN; the kernel takes off both.
const STACK: [(u16, u16); 2] = [(VLAN, 0), (VLAN, 0)];

#[test]
fn forgeries_are_refused_and_oddities_delivered_on_the_fast_path() -> Result<()> {
    Stage::set("refuse-f", "auto")?.play()
}

#[test]
fn forgeries_are_refused_and_oddities_delivered_on_the_kernel_path() -> Result<()> {
    Stage::set("refuse-k", "off")?.play()
}

/// Where a frame is put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    /// The first pod of the first node.
    Pod,
    /// The second node, a good peer gone bad.
    Peer,
    /// A host on the underlay that is no node.
    Stranger,
}

/// What must come of a case.
#[derive(Clone, Copy, Debug)]
enum End {
    /// One of these reasons is counted on the first node or the second, and nothing arrives.
    Refused(usize, &'static [&'static str]),
    /// It arrives in this pod.
    Delivered(Pod),
}

/// A pod that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pod {
    /// The sender itself.
    Own,
    /// On the sender's node.
    Local,
    /// On the other node.
    Remote,
}

/// One thing to try.
struct Case {
    name: String,
    from: From,
    frames: Vec<Vec<u8>>,
    end: End,
}

/// How a packet is dressed up.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Plain,
    Options,
    /// A first fragment with so many bytes of payload.
    Fragments(usize),
    Tag(u16),
    Stacked,
}

impl Shape {
    fn dress(self, to: Mac, from: Mac, ip: &Ip) -> Vec<Vec<u8>> {
        let frame = |packet: &[u8]| ethernet(to, from, IPV4, packet);
        match self {
            Self::Plain => vec![frame(&ip.packet())],
            Self::Options => {
                let options = vec![1; 8];
                vec![frame(
                    &Ip {
                        options,
                        ..ip.clone()
                    }
                    .packet(),
                )]
            }
            Self::Fragments(first) => ip.fragments(first).map(|piece| frame(&piece)).into(),
            Self::Tag(kind) => vec![tagged(&frame(&ip.packet()), &[(kind, 0)])],
            Self::Stacked => vec![tagged(&frame(&ip.packet()), &STACK)],
        }
    }
}

const POD_SHAPES: [Shape; 7] = [
    Shape::Plain,
    Shape::Options,
    Shape::Fragments(8),
    Shape::Fragments(64),
    Shape::Tag(VLAN),
    Shape::Tag(SERVICE_VLAN),
    Shape::Stacked,
];

/// The lab with all that is needed to write frames for it.
struct Stage {
    lab: Lab,
    fast_path: bool,
    pods: BTreeMap<Pod, (Ipv4Addr, Mac)>,
    bridge: Mac,
    gateways: [Ipv4Addr; 2],
    vteps: [(Ipv4Addr, Mac, Mac); 2],
    stranger: Mac,
    cases: Vec<Case>,
}

impl Stage {
    fn set(name: &str, fast_path: &str) -> Result<Self> {
        let lab = Lab::up(Options {
            fast_path: fast_path.into(),
            ..Options::for_test(name)
        })?;
        let lease = format!(
            r#"{{"PublicIP":"{}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}}}"#,
            THIRD.1
        );
        let key = format!("/coreos.com/network/subnets/{}", THIRD.0);
        lab.etcdctl(&["put", &key, &lease])?;
        for node in lab.nodes() {
            wait_until("the route to the third node", PATIENCE, || {
                node.overlay_routes().is_ok_and(|routes| routes == 2)
            })?;
            node.wait_ready(PATIENCE)?;
        }
        let (first, second) = (lab.node(1), lab.node(2));
        for (service, node) in SERVICES.iter().zip([&first, &second]) {
            let to = format!("{}:{VXLAN_PORT}", node.underlay_address());
            let rule = format!(
                "iptables -w -t nat -A PREROUTING -d {service} -p udp --dport {VXLAN_PORT} -j DNAT --to {to}"
            );
            first.run(rule.split(' '))?;
        }
        second.run(format!("ip address add {SECOND_ADDRESS}/32 dev lo").split(' '))?;
        let route = format!(
            "ip route add {SECOND_ADDRESS}/32 via {}",
            second.underlay_address()
        );
        first.run(route.split(' '))?;
        let members = [
            (Pod::Own, lab.pod(1, 1)),
            (Pod::Local, lab.pod(1, 2)),
            (Pod::Remote, lab.pod(2, 1)),
        ];
        let mut pods = BTreeMap::new();
        for (pod, handle) in members {
            pods.insert(pod, (handle.address(), mac(&handle.namespace(), "eth0")?));
        }
        let vtep = |node: &Node| -> Result<_> {
            let namespace = node.namespace();
            let macs = (mac(&namespace, "eth0")?, mac(&namespace, "flannel.1")?);
            Ok((node.underlay_address(), macs.0, macs.1))
        };
        let gateway = |node: &Node| -> Result<Ipv4Addr> {
            node.subnet()?
                .hosts()
                .next()
                .context("a subnet without hosts")
        };
        Ok(Self {
            fast_path: fast_path == "auto",
            pods,
            bridge: mac(&first.namespace(), "cni0")?,
            gateways: [gateway(&first)?, gateway(&second)?],
            vteps: [vtep(&first)?, vtep(&second)?],
            stranger: mac(&lab.namespace("outside")?, "eth0")?,
            cases: Vec::new(),
            lab,
        })
    }

    /// Tries every case, then demands of the listeners what must have come of them.
    fn play(mut self) -> Result<()> {
        self.pod_sources();
        self.pod_vxlan();
        self.pod_arp();
        self.network();
        self.decoys();
        self.oddities();
        let listeners = [
            (Pod::Own, (1, 1)),
            (Pod::Local, (1, 2)),
            (Pod::Remote, (2, 1)),
        ]
        .map(|(pod, (node, number))| {
            let namespace = self.lab.pod(node, number).namespace();
            RawSocket::open(&namespace, "eth0").map(|socket| (pod, socket))
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
        let outside = self.lab.namespace("outside")?;
        let senders = BTreeMap::from([
            (
                From::Pod,
                RawSocket::open(&self.lab.pod(1, 1).namespace(), "eth0")?,
            ),
            (
                From::Peer,
                RawSocket::open(&self.lab.node(2).namespace(), "eth0")?,
            ),
            (From::Stranger, RawSocket::open(&outside, "eth0")?),
        ]);
        let mut failures = Vec::new();
        for case in &self.cases {
            if let Err(error) = self.try_case(case, &senders[&case.from]) {
                failures.push(format!("{}: {error:#}", case.name));
            }
        }
        let mut arrived = BTreeSet::new();
        for (pod, socket) in &listeners {
            for frame in socket.incoming(QUIET, |_| true)? {
                if let Some(number) = marked(&frame) {
                    arrived.insert((number, *pod));
                }
            }
        }
        for (number, case) in self.cases.iter().enumerate() {
            let at = |pod| arrived.contains(&(number, pod));
            match case.end {
                End::Refused(..) if [Pod::Own, Pod::Local, Pod::Remote].into_iter().any(at) => {
                    failures.push(format!("{}: arrives in a pod", case.name));
                }
                End::Delivered(pod) if !at(pod) => {
                    failures.push(format!("{}: does not arrive in {pod:?}", case.name));
                }
                _ => {}
            }
        }
        ensure!(
            failures.is_empty(),
            "{} of {} cases:\n{}",
            failures.len(),
            self.cases.len(),
            failures.join("\n")
        );
        self.fast_path_has_refused_itself()?;
        self.routed_network()
    }

    /// Sends a case; a refusal must be counted under its reason and no other, anything else under none.
    fn try_case(&self, case: &Case, sender: &RawSocket) -> Result<()> {
        let before = [refused(&self.lab.node(1))?, refused(&self.lab.node(2))?];
        for frame in &case.frames {
            sender.send(frame)?;
        }
        let counted = |node: usize| -> Result<Vec<String>> {
            let now = refused(&self.lab.node(node))?;
            let more = now.into_iter().filter(|(reason, packets)| {
                before[node - 1].get(reason).copied().unwrap_or_default() < *packets
            });
            Ok(more.map(|(reason, _)| reason).collect())
        };
        match case.end {
            End::Refused(node, reasons) => {
                // Packet filters count in the sender's own time, but the last hop may be another CPU's.
                let _ = wait_until("a counter", PATIENCE, || {
                    counted(node).is_ok_and(|reasons| !reasons.is_empty())
                });
                let counted = counted(node)?;
                ensure!(
                    matches!(&counted[..], [only] if reasons.contains(&only.as_str())),
                    "counted as {counted:?} instead of {reasons:?}"
                );
            }
            End::Delivered(_) => {
                let counted = [counted(1)?, counted(2)?].concat();
                ensure!(counted.is_empty(), "refused as {counted:?}");
            }
        }
        // Everything else keeps flowing.
        let beside = self.lab.pod(1, 1);
        let other = self.pods[&Pod::Remote].0.to_string();
        let answer = beside.exec(["ping", "-c1", "-W1", &other])?;
        ensure!(answer.status.success(), "a ping beside it gets no answer");
        Ok(())
    }

    /// With the fast path on, it is the programs that refuse what they see; the guard has the rest.
    fn fast_path_has_refused_itself(&self) -> Result<()> {
        let reasons = [
            (1, "spoofed_source"),
            (1, "spoofed_arp"),
            (1, "stacked_vlan"),
            (1, "pod_vxlan"),
            (1, "unknown_vtep"),
            (1, "wrong_vni"),
            (1, "inner_vlan"),
            (1, "foreign_inner_source"),
        ];
        for (node, reason) in reasons {
            let status = status(&self.lab.node(node))?;
            let packets = status["refused"][reason]["fast_path"].as_u64().unwrap_or(0);
            ensure!(
                (packets > 0) == self.fast_path,
                "{reason}: {packets} packets refused by programs"
            );
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: String,
        from: From,
        end: End,
        frames: impl FnOnce(&Self, &[u8]) -> Vec<Vec<u8>>,
    ) {
        let payload = mark(self.cases.len());
        let frames = frames(self, &payload);
        self.cases.push(Case {
            name,
            from,
            frames,
            end,
        });
    }

    fn own(&self) -> (Ipv4Addr, Mac) {
        self.pods[&Pod::Own]
    }

    /// MAC address that a pod sends to for this destination.
    fn next_hop(&self, to: Pod) -> Mac {
        if to == Pod::Local {
            self.pods[&to].1
        } else {
            self.bridge
        }
    }

    /// A pod uses somebody else's address.
    fn pod_sources(&mut self) {
        let local = self.pods[&Pod::Local].0;
        let remote = self.pods[&Pod::Remote].0;
        let own = self.own().0;
        let subnet = own.octets();
        let vtep = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 0);
        let unused = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 250);
        for to in [Pod::Local, Pod::Remote] {
            for shape in POD_SHAPES {
                for (whose, source) in [
                    ("its own", own),
                    ("a local pod's", local),
                    ("a remote pod's", remote),
                    ("an unleased", UNLEASED),
                    ("the gateway's", self.gateways[0]),
                    ("the VTEP's", vtep),
                    ("an unused", unused),
                    ("a foreign", FOREIGN),
                ] {
                    // Every disguise for one source, every source without one.
                    let sample = matches!(shape, Shape::Plain) || source == local || source == own;
                    if !sample
                        || (to == Pod::Local && source == local && !matches!(shape, Shape::Plain))
                    {
                        continue;
                    }
                    let honest = source == own || source == FOREIGN;
                    let end = match shape {
                        Shape::Stacked => End::Refused(1, &["stacked_vlan"]),
                        _ if honest => End::Delivered(to),
                        _ => End::Refused(1, &["spoofed_source"]),
                    };
                    let name = format!("pod sends from {whose} address to {to:?}, {shape:?}");
                    self.add(name, From::Pod, end, |stage, payload| {
                        let ip = Ip::udp(source, stage.pods[&to].0, 9, payload);
                        shape.dress(stage.next_hop(to), stage.own().1, &ip)
                    });
                }
            }
        }
    }

    /// A pod speaks VXLAN, so that it would be taken for its node.
    fn pod_vxlan(&mut self) {
        let [(n1, ..), (n2, ..)] = self.vteps;
        let own = self.own().0;
        for (what, source, to, node, reasons) in [
            ("its own node", own, n1, 1, &["pod_vxlan"][..]),
            ("another node", own, n2, 1, &["pod_vxlan"]),
            ("its own node in a peer's name", n2, n1, 1, &["pod_vxlan"]),
            ("its gateway", own, self.gateways[0], 1, &["pod_vxlan"]),
            (
                "its own node by a Service",
                own,
                SERVICES[0],
                1,
                &["pod_vxlan"],
            ),
            (
                "another node by a Service",
                own,
                SERVICES[1],
                1,
                &["pod_vxlan"],
            ),
            (
                "another node's gateway",
                own,
                self.gateways[1],
                2,
                &["unknown_vtep"],
            ),
            (
                "another address of another node",
                own,
                SECOND_ADDRESS,
                2,
                &["other_address"],
            ),
        ] {
            for shape in POD_SHAPES {
                let reasons = match shape {
                    Shape::Stacked => End::Refused(1, &["stacked_vlan"]),
                    _ => End::Refused(node, reasons),
                };
                let name = format!("pod sends VXLAN to {what}, {shape:?}");
                self.add(name, From::Pod, reasons, |stage, payload| {
                    // To the pod that is behind that node, in the name of its neighbour there or here.
                    let (victim, claimed) = if node == 1 && to == n1 {
                        (Pod::Local, stage.pods[&Pod::Remote].0)
                    } else {
                        (Pod::Remote, stage.pods[&Pod::Local].0)
                    };
                    let inner = Ip::udp(claimed, stage.pods[&victim].0, 9, payload).packet();
                    let receiver = usize::from(victim == Pod::Remote);
                    let inner = ethernet(stage.vteps[receiver].2, [2, 0, 0, 0, 0, 1], IPV4, &inner);
                    let outer = Ip::udp(source, to, VXLAN_PORT, &vxlan(1, &inner));
                    shape.dress(stage.bridge, stage.own().1, &outer)
                });
            }
        }
    }

    /// A pod announces somebody else's address.
    fn pod_arp(&mut self) {
        let (own, own_mac) = self.own();
        let local = self.pods[&Pod::Local];
        let remote = self.pods[&Pod::Remote].0;
        for (whose, sender) in [
            ("its own", own),
            ("no", Ipv4Addr::UNSPECIFIED),
            ("a local pod's", local.0),
            ("the gateway's", self.gateways[0]),
            ("a remote pod's", remote),
            ("an unleased", UNLEASED),
        ] {
            for operation in [1, 2] {
                for tags in [&[][..], &[(VLAN, 0)], &[(SERVICE_VLAN, 0)], &STACK] {
                    let honest = sender == own || sender.is_unspecified();
                    let end = match tags.len() {
                        2 => End::Refused(1, &["stacked_vlan"]),
                        _ if honest => End::Delivered(Pod::Local),
                        _ => End::Refused(1, &["spoofed_arp"]),
                    };
                    let name =
                        format!("pod's ARP {operation} with {whose} address, tags {tags:x?}");
                    self.add(name, From::Pod, end, |_, payload| {
                        let mut packet = arp(operation, (own_mac, sender), (local.1, local.0));
                        packet.extend(payload);
                        vec![tagged(
                            &ethernet(BROADCAST, own_mac, frame::ARP, &packet),
                            tags,
                        )]
                    });
                }
            }
        }
    }

    /// VXLAN from the underlay.
    fn network(&mut self) {
        const GOOD: End = End::Delivered(Pod::Own);
        const FORGED: End = End::Refused(1, &["foreign_inner_source"]);
        const UNKNOWN: End = End::Refused(1, &["unknown_vtep"]);
        let remote = self.pods[&Pod::Remote].0;
        let local = self.pods[&Pod::Local].0;
        let third = Ipv4Addr::new(10, 244, 250, 9);
        let peer = self.vteps[1].0;
        let stranger = Ipv4Addr::new(192, 168, 66, 253);
        for (what, from, outer, inner, vni, end) in [
            ("an honest peer", From::Peer, peer, remote, 1, GOOD),
            (
                "a peer in a third node's name",
                From::Peer,
                peer,
                third,
                1,
                FORGED,
            ),
            (
                "a peer in the receiver's name",
                From::Peer,
                peer,
                local,
                1,
                FORGED,
            ),
            (
                "a peer in nobody's name",
                From::Peer,
                peer,
                UNLEASED,
                1,
                FORGED,
            ),
            (
                "a peer with another VNI",
                From::Peer,
                peer,
                remote,
                7,
                End::Refused(1, &["wrong_vni"]),
            ),
            ("a stranger", From::Stranger, stranger, remote, 1, UNKNOWN),
            (
                "a stranger in the receiver's name",
                From::Stranger,
                stranger,
                local,
                1,
                UNKNOWN,
            ),
            (
                "a stranger with another VNI",
                From::Stranger,
                stranger,
                remote,
                7,
                End::Refused(1, &["wrong_vni"]),
            ),
        ] {
            let outer_shapes = [
                Shape::Plain,
                Shape::Options,
                Shape::Tag(VLAN),
                Shape::Tag(SERVICE_VLAN),
                Shape::Stacked,
                Shape::Fragments(128),
                // Only UDP's header; inside VXLAN's; Ethernet's; IP's.
                Shape::Fragments(8),
                Shape::Fragments(16),
                Shape::Fragments(24),
                Shape::Fragments(40),
            ];
            let inner_shapes = [Shape::Options, Shape::Fragments(8), Shape::Fragments(64)];
            let shapes = outer_shapes
                .map(|outer| (outer, Shape::Plain))
                .into_iter()
                .chain(inner_shapes.map(|inner| (Shape::Plain, inner)));
            for (outer_shape, inner_shape) in shapes {
                let end = match (outer_shape, end) {
                    // The programs see the first fragment only, and do not wait for the rest of it.
                    (Shape::Fragments(first), _) if first < 50 && self.fast_path => {
                        End::Refused(1, &["hiding_fragment"])
                    }
                    (_, end) => end,
                };
                let name = format!("{what} sends VXLAN, {outer_shape:?} around {inner_shape:?}");
                self.add(name, from, end, |stage, payload| {
                    let (to, nic, device) = stage.vteps[0];
                    let ip = Ip::udp(inner, stage.own().0, 9, payload);
                    let sender = if from == From::Peer {
                        stage.vteps[1].1
                    } else {
                        stage.stranger
                    };
                    let wrap = |frame: Vec<u8>| {
                        let ip = Ip::udp(outer, to, VXLAN_PORT, &vxlan(vni, &frame));
                        outer_shape.dress(nic, sender, &ip)
                    };
                    let inner = inner_shape.dress(device, stage.vteps[1].2, &ip);
                    inner.into_iter().flat_map(wrap).collect()
                });
            }
            for tags in [&[(VLAN, 0)][..], &[(SERVICE_VLAN, 0)], &[(VLAN, 5)], &STACK] {
                if from != From::Peer || vni != 1 || inner != remote && inner != third {
                    continue;
                }
                // A tag inside is refused whoever sends it (RFC 7348, section 6.1).
                let name = format!("{what} sends VXLAN around tags {tags:x?}");
                self.add(
                    name,
                    from,
                    End::Refused(1, &["inner_vlan"]),
                    |stage, payload| {
                        let (to, nic, device) = stage.vteps[0];
                        let ip = Ip::udp(inner, stage.own().0, 9, payload).packet();
                        let frame = tagged(&ethernet(device, stage.vteps[1].2, IPV4, &ip), tags);
                        let ip = Ip::udp(outer, to, VXLAN_PORT, &vxlan(vni, &frame));
                        Shape::Plain.dress(nic, stage.vteps[1].1, &ip)
                    },
                );
            }
        }
    }

    /// The kernel cuts off what stands behind the end of a packet; who looks there is shown an honest one.
    fn decoys(&mut self) {
        let honest = self.pods[&Pod::Remote].0;
        let forged = Ipv4Addr::new(10, 244, 250, 9);
        let fragment: &[&str] = if self.fast_path {
            &["hiding_fragment"]
        } else {
            &["foreign_inner_source"]
        };
        let whole: &[&str] = &["foreign_inner_source"];
        for (what, first, reasons) in [
            ("a first fragment", Some(8), fragment),
            ("a whole packet", None, whole),
        ] {
            let name = format!("a peer sends VXLAN with a decoy behind {what}");
            let end = End::Refused(1, reasons);
            self.add(name, From::Peer, end, |stage, payload| {
                let (to, nic, device) = stage.vteps[0];
                let (outer, sender, mac) = stage.vteps[1];
                let around = |inner: Ipv4Addr| {
                    let ip = Ip::udp(inner, stage.own().0, 9, payload).packet();
                    let frame = ethernet(device, mac, IPV4, &ip);
                    Ip::udp(outer, to, VXLAN_PORT, &vxlan(1, &frame))
                };
                let (forged, honest) = (around(forged), around(honest));
                let frame = |packet: &[u8]| ethernet(nic, sender, IPV4, packet);
                let Some(first) = first else {
                    return vec![frame(&[forged.packet(), honest.packet()].concat())];
                };
                let [begin, rest] = forged.fragments(first);
                let decoy = [&begin, &honest.payload[first..]].concat();
                vec![frame(&decoy), frame(&rest)]
            });
        }
    }

    /// What forges nothing.
    fn oddities(&mut self) {
        for to in [Pod::Local, Pod::Remote] {
            let name = format!("a second MAC address sends to {to:?}");
            self.add(name, From::Pod, End::Delivered(to), |stage, payload| {
                let ip = Ip::udp(stage.own().0, stage.pods[&to].0, 9, payload);
                Shape::Plain.dress(stage.next_hop(to), [2, 0, 0, 0, 0, 0x99], &ip)
            });
        }
        let delivered = End::Delivered(Pod::Local);
        self.add(
            "a DHCP discovery".into(),
            From::Pod,
            delivered,
            |stage, payload| {
                let ip = Ip::udp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 67, payload);
                Shape::Plain.dress(BROADCAST, stage.own().1, &ip)
            },
        );
        self.add(
            "VXLAN between pods".into(),
            From::Pod,
            delivered,
            |stage, payload| {
                let ip = Ip::udp(
                    stage.own().0,
                    stage.pods[&Pod::Local].0,
                    VXLAN_PORT,
                    payload,
                );
                Shape::Plain.dress(stage.next_hop(Pod::Local), stage.own().1, &ip)
            },
        );
    }

    /// A pod routes for a network behind it: both ways, on its node and across nodes.
    fn routed_network(&self) -> Result<()> {
        let router = self.lab.pod(1, 1);
        let behind = "172.30.0.5";
        let run = |namespace: &Namespace, line: String| namespace.run(line.split(' ')).map(drop);
        run(
            &router.namespace(),
            format!("ip address add {behind}/32 dev lo"),
        )?;
        let (first, second) = (self.lab.node(1), self.lab.node(2));
        let via = router.address();
        run(
            &first.namespace(),
            format!("ip route add 172.30.0.0/24 via {via} dev cni0"),
        )?;
        run(
            &self.lab.pod(1, 2).namespace(),
            format!("ip route add 172.30.0.0/24 via {via}"),
        )?;
        let vtep = first.subnet()?.network();
        let line = format!("ip route add 172.30.0.0/24 via {vtep} dev flannel.1 onlink");
        run(&second.namespace(), line)?;
        let before = [refused(&first)?, refused(&second)?];
        for pod in [self.lab.pod(1, 2), self.lab.pod(2, 1)] {
            let line = format!("ping -c2 -i0.2 -W1 {behind}");
            run(&pod.namespace(), line).context("to a network behind a pod")?;
            let line = format!("ping -c2 -i0.2 -W1 -I {behind} {}", pod.address());
            run(&router.namespace(), line).context("from a network behind a pod")?;
        }
        ensure!(
            before == [refused(&first)?, refused(&second)?],
            "a routed network is refused"
        );
        Ok(())
    }
}

/// A payload that shows its case's number, however little of it is seen.
fn mark(number: usize) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    [*b"OVLT", number].concat().repeat(40)
}

/// The number of the case that a frame belongs to.
fn marked(frame: &[u8]) -> Option<usize> {
    let at = frame.windows(4).position(|bytes| bytes == b"OVLT")?;
    let number = frame.get(at + 4..at + 8)?.try_into().ok()?;
    Some(u32::from_be_bytes(number) as usize)
}

fn mac(namespace: &Namespace, device: &str) -> Result<Mac> {
    let line = format!("-j -n {} link show dev {device}", namespace.name());
    let shown: Value = serde_json::from_str(&command::ip(&line)?)?;
    let text = shown[0]["address"]
        .as_str()
        .context("a link without an address")?;
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    match bytes.as_deref() {
        Some(bytes) => Ok(bytes.try_into()?),
        None => bail!("not a MAC address: {text}"),
    }
}

fn status(node: &Node) -> Result<Value> {
    node.json(["overlayctl", "status", "--output", "json"])
}

/// Refused packets by reason, on both paths together.
fn refused(node: &Node) -> Result<BTreeMap<String, u64>> {
    let status = status(node)?;
    let reasons = status["refused"]
        .as_object()
        .context("no refusals in the status")?;
    let count = |paths: &Value| {
        let path = |name: &str| paths[name].as_u64().unwrap_or(0);
        path("fast_path") + path("kernel_path")
    };
    Ok(reasons
        .iter()
        .map(|(reason, paths)| (reason.clone(), count(paths)))
        .collect())
}
