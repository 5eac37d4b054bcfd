//! The contents that a round writes into the maps.

use std::collections::BTreeSet;

use overlay_common::V4;
use overlay_common::schema::{
    CONFIG_AGGREGATES_TO_KERNEL, CONFIG_ENCAPSULATE_FOR_STACK, CONFIG_EVENTS, CONFIG_SHARED_PORT,
    Config,
};
use overlay_common::snapshot::Snapshot;

use super::super::ways::Exit;
use super::super::{Backing, Outlet, View};
use super::Running;
use super::wanted::{local_pods, table_input, watch_newcomers};
use crate::config::flags::Aggregates;
use crate::datapath::Error;
use crate::datapath::family::UserFamily as _;
use crate::datapath::maps::{JUDGING, Maps};
use crate::datapath::tables::{self, LocalPod, Omission, TableInput};
use crate::kernel::xfrm::{self, Traffic};
use crate::kernel::{self, Kernel, sysctl};
use crate::mac::MacAddr;
use crate::marks::BRIDGE;

impl Running {
    /// Reads the pods once more before their entries are written, because the steps so far took
    /// time, and a pod, and with the pod its address, may have been added or removed.
    pub(super) async fn second_look(&self, view: &mut View<'_>, known: &Snapshot<V4>) {
        let pods = local_pods(&view.pods.pods, |_| false);
        let is_known = |pod: &LocalPod| {
            known.endpoints.get(&pod.ifindex).is_some_and(|endpoint| {
                V4::from_ip(pod.address).is_some_and(|address| endpoint.has(address))
            })
        };
        if pods.len() == known.endpoints.len() && pods.iter().all(is_known) {
            return;
        }
        view.kernel.look();
        match view.kernel.pods(BRIDGE).await {
            Ok(pods) => *view.pods = pods,
            Err(error) => tracing::warn!("list pods: {error}"),
        }
    }

    /// The input of the tables, without the ways to the peers.
    pub(super) async fn input(
        &mut self,
        view: &View<'_>,
        backing: &Backing<'_>,
        foreign: &[u32],
    ) -> TableInput {
        let pods = view
            .pods
            .pods
            .iter()
            .filter(|pod| !self.left_out.contains_key(&pod.name));
        let pods = local_pods(pods, |ifindex| foreign.contains(&ifindex));
        let mut input = table_input(view, backing.mac, backing.peers, pods);
        let is_vtep = |outlet: &&Outlet| Some(&outlet.name) == view.settings.device.as_ref();
        let vtep = backing.outlets.iter().find(is_vtep);
        input.vtep_ifindex = vtep.map_or(0, |device| device.ifindex);
        input.source_ports = sysctl::local_port_range().unwrap_or(input.source_ports);
        // Where the kernel does not answer, its last answer is used.
        if let Some(others) = &view.other_vnis {
            self.shares_port = !others.is_empty();
        }
        if self.shares_port {
            input.flags |= CONFIG_SHARED_PORT;
        }
        if view.settings.flags.node.aggregates == Aggregates::Kernel {
            input.flags |= CONFIG_AGGREGATES_TO_KERNEL;
        }
        // A capture on the VXLAN device must show the packets that the stack sends by that device.
        // The program on the device runs earlier, and would redirect the packets past the capture.
        if !view.is_captured {
            input.flags |= CONFIG_ENCAPSULATE_FOR_STACK;
        }
        if view.settings.flags.node.log_refused {
            input.flags |= CONFIG_EVENTS;
        }
        let backed: BTreeSet<_> = backing.peers.iter().map(|peer| peer.subnet).collect();
        input.unserved = view
            .peers
            .iter()
            .filter(|peer| !backed.contains(&peer.subnet))
            .cloned()
            .collect();
        input
    }

    /// Finds the ways to the peers. A peer without one is left to the kernel path.
    pub(super) async fn find_ways(
        &mut self,
        kernel: &Kernel,
        input: &mut TableInput,
    ) -> Result<(), kernel::Error> {
        let traffic = Traffic {
            own: input.vtep,
            peers: input.peers.iter().map(|(peer, _)| peer.vtep).collect(),
            port: input.port,
            network: input.network,
        };
        self.ipsec = ipsec(&traffic).await;
        self.traffic = Some(traffic);
        if self.ipsec.is_some() {
            let peers = std::mem::take(&mut input.peers).into_iter();
            input.unserved.extend(peers.map(|(peer, _)| peer));
        }
        let vteps = input.peers.iter().map(|(peer, _)| peer.vtep).collect();
        let mac = kernel.device_mac(input.underlay_ifindex).await;
        let exit = Exit {
            ifindex: input.underlay_ifindex,
            source: Some(input.vtep),
            mac: mac.ok().flatten().filter(|mac| *mac != MacAddr::default()),
        };
        self.live.find(kernel, exit, &vteps).await
    }

    /// Writes the maps; returns their final contents, and whether a pod is new. The ways that are
    /// written are those known at this moment.
    pub(super) fn fill(
        &mut self,
        input: &mut TableInput,
        known: &Snapshot<V4>,
    ) -> Result<Option<(Snapshot<V4>, bool)>, Error> {
        let live = self.live.clone();
        let inner = &mut *live.lock();
        let maps = &mut inner.maps;
        self.elsewhere = inner.ways.apply(input);
        let (tables, omissions) = tables::desired(input);
        let omissions = Omission::summary(&omissions);
        if omissions != self.omissions {
            if let Some(text) = &omissions {
                tracing::warn!("{text}");
            }
            self.omissions = omissions;
        }
        let Some(config) = tables.config else {
            return Ok(None);
        };
        // A newcomer may have used Services before programs watched it. Therefore a newcomer is
        // left to the kernel, and watched from now on, until its existing flows are known.
        let (watched, newcomers) = watch_newcomers(&tables, known);
        // The mask is changed last, because until then the old entries serve the old mask.
        let fill = |maps: &mut Maps<V4>| {
            maps.fill_peers(&tables)?;
            maps.fill_pods(&watched)
        };
        if fill(maps).is_err() {
            // Old and new entries together may exceed the room. Then the kernel takes all packets
            // while the old entries are removed before the new ones are written.
            self.write(
                maps,
                Config {
                    flags: config.flags & JUDGING,
                    ..config
                },
            )?;
            maps.retire(&tables)?;
            fill(maps)?;
        }
        inner.keep_leases(self.leases_outlive_us)?;
        let maps = &mut inner.maps;
        self.write(maps, config)?;
        maps.retire(&tables)?;
        Ok(Some((tables, newcomers)))
    }
}

/// Why IPsec keeps packets between nodes from the fast path; `None` where it does not. Where the
/// policies cannot be read, the packets must not bypass them either.
pub(super) async fn ipsec(traffic: &Traffic) -> Option<String> {
    match xfrm::policies(traffic).await {
        Ok(policies) => {
            let first = policies.first()?;
            let others = match policies.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            Some(format!("IPsec policies exist ({first}{others})"))
        }
        Err(error) => Some(format!("IPsec policies cannot be read: {error}")),
    }
}
