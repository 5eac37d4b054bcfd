//! The lab, and the way in which a case is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use overlay_tests::frame::{Mac, VXLAN_PORT};
use overlay_tests::packet::RawSocket;
use overlay_tests::{Lab, Namespace, Node, Options, command, wait_until};
use serde_json::Value;

use crate::case::{Case, End, From, Pod, mark, marked};

/// Longest time until a packet has passed the lab, and a counter shows it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time of silence in the lab after which a packet that has not arrived counts as refused.
pub(super) const QUIET: Duration = Duration::from_millis(300);
/// A node that exists only as a lease.
const THIRD: (&str, &str) = ("10.244.250.0-24", "192.168.66.77");
/// The cluster address of a Service whose only backend is a node's VXLAN port.
pub(super) const SERVICES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 0, 2)];
/// Another address of the second node.
pub(super) const SECOND_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 67, 2);

/// The lab with all data for building frames.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) fast_path: bool,
    /// Whether programs judge packets from pods.
    programs_judge: bool,
    pub(super) pods: BTreeMap<Pod, (Ipv4Addr, Mac)>,
    pub(super) bridge: Mac,
    pub(super) gateways: [Ipv4Addr; 2],
    pub(super) vteps: [(Ipv4Addr, Mac, Mac); 2],
    pub(super) stranger: Mac,
    cases: Vec<Case>,
}

impl Stage {
    pub(super) fn set(name: &str, fast_path: &str, guard: &str) -> Result<Self> {
        let lab = Lab::up(Options {
            fast_path: fast_path.into(),
            agent_args: vec![format!("--guard={guard}")],
            ..Options::for_test(name)
        })?;
        let lease = format!(
            "{{\"PublicIP\":\"{}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\
            \"VtepMAC\":\"02:00:00:00:00:77\"}}}}",
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
                "iptables -w -t nat -A PREROUTING -d {service} -p udp --dport {VXLAN_PORT} -j DNAT \
                --to {to}"
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
            programs_judge: fast_path == "auto" || guard == "bpf",
            pods,
            bridge: mac(&first.namespace(), "cni0")?,
            gateways: [gateway(&first)?, gateway(&second)?],
            vteps: [vtep(&first)?, vtep(&second)?],
            stranger: mac(&lab.namespace("outside")?, "eth0")?,
            cases: Vec::new(),
            lab,
        })
    }

    /// Tries every case, then checks the frames that the listeners received.
    pub(super) fn play(&self) -> Result<()> {
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
        self.fast_path_has_refused_itself()
    }

    /// Sends a case; a refusal must be counted under its reason only, any other packet under none.
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
                // Packet filters count during the system call of the sender, but the last hop may
                // be on another CPU.
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
        // Other traffic continues.
        let beside = self.lab.pod(1, 1);
        let other = self.pods[&Pod::Remote].0.to_string();
        let answer = beside.exec(["ping", "-c1", "-W1", &other])?;
        ensure!(answer.status.success(), "a ping beside it gets no answer");
        Ok(())
    }

    /// Programs refuse the packets that they judge; the guard refuses the rest.
    fn fast_path_has_refused_itself(&self) -> Result<()> {
        let reasons = [
            ("spoofed_source", self.programs_judge),
            ("spoofed_arp", self.programs_judge),
            ("stacked_vlan", self.programs_judge),
            ("pod_vxlan", self.programs_judge),
            ("unknown_vtep", self.fast_path),
            ("wrong_vni", self.fast_path),
            ("inner_vlan", self.fast_path),
            ("inner_protocol", self.fast_path),
            ("foreign_inner_source", self.fast_path),
        ];
        for (reason, expected) in reasons {
            let status = status(&self.lab.node(1))?;
            let packets = status["refused"][reason]["fast_path"].as_u64().unwrap_or(0);
            ensure!(
                (packets > 0) == expected,
                "{reason}: {packets} packets refused by programs"
            );
        }
        Ok(())
    }

    pub(super) fn add(
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

    pub(super) fn own(&self) -> (Ipv4Addr, Mac) {
        self.pods[&Pod::Own]
    }

    /// Destination MAC address of a pod's packet to this pod.
    pub(super) fn next_hop(&self, to: Pod) -> Mac {
        if to == Pod::Local {
            self.pods[&to].1
        } else {
            self.bridge
        }
    }
}

pub(super) fn mac(namespace: &Namespace, device: &str) -> Result<Mac> {
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

pub(super) fn status(node: &Node) -> Result<Value> {
    node.json(["overlayctl", "status", "--output", "json"])
}

/// Refused packets by reason, on both paths together.
pub(super) fn refused(node: &Node) -> Result<BTreeMap<String, u64>> {
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
