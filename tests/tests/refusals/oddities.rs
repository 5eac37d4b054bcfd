//! Odd packets that forge nothing.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use overlay_tests::Namespace;
use overlay_tests::frame::{BROADCAST, Ip, VXLAN_PORT};

use crate::case::{End, From, Pod, Shape};
use crate::stage::{Stage, refused};

impl Stage {
    /// Adds packets that forge nothing.
    pub(super) fn oddities(&mut self) {
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
    pub(super) fn routed_network(&self) -> Result<()> {
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
