//! Attaches programs to their hooks.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::flags::Xdp;
use crate::datapath::programs::{Presence, is_egress};
use crate::datapath::{Error, early};
use crate::kernel::Kernel;
use crate::kernel::nic::Nic;
use crate::kernel::pods::Filter;
use crate::marks::CLSACT_PRIORITY;
use overlay_common::Hook;

use super::super::{Outlet, View};
use super::Running;

/// A hook on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) hook: Hook,
    pub(super) interface: String,
    pub(super) ifindex: u32,
}

impl Site {
    pub(super) fn is_pod(&self) -> bool {
        matches!(self.hook, Hook::PodIn | Hook::PodOut)
    }
}

/// The hooks that need programs.
pub(super) fn sites(view: &View<'_>, outlets: &[Outlet]) -> Vec<Site> {
    let site = |hook, interface: &str, ifindex| Site {
        hook,
        interface: interface.to_owned(),
        ifindex,
    };
    let nic = view.underlay;
    let mut sites = vec![site(Hook::NetIn, &nic.name, nic.ifindex)];
    let outlets = outlets.iter();
    sites.extend(outlets.map(|it| site(Hook::VtepOut, &it.name, it.ifindex)));
    for pod in &view.pods.pods {
        sites.push(site(Hook::PodIn, &pod.name, pod.ifindex));
        sites.push(site(Hook::PodOut, &pod.name, pod.ifindex));
    }
    sites
}

impl Running {
    /// Removes the links of devices that no longer exist.
    pub(super) fn forget_gone(&mut self) -> Result<(), Error> {
        let (sites, early) = (&self.sites, &self.early);
        let gone = self.programs.forget_gone(|hook, ifindex| {
            if hook == Hook::NetXdp {
                return early.as_ref().is_ok_and(|nic| nic.ifindex == ifindex);
            }
            sites
                .iter()
                .any(|site| site.hook == hook && site.ifindex == ifindex)
        })?;
        if gone > 0 {
            tracing::debug!(links = gone, "links of gone devices removed");
        }
        Ok(())
    }

    /// The sites that have a clsact filter of ours. Where the kernel does not answer, its last
    /// answer is used.
    pub(super) async fn filters(&mut self, kernel: &Kernel) -> BTreeSet<(Hook, u32)> {
        let mut found = BTreeSet::new();
        for site in self.sites.clone() {
            let egress = is_egress(site.hook);
            let is_ours =
                |filter: &Filter| filter.egress == egress && filter.priority == CLSACT_PRIORITY;
            let ours = match kernel.filters(site.ifindex).await {
                Ok(filters) => filters.iter().any(is_ours),
                Err(error) => {
                    tracing::warn!("the filters stay as they were noted: {error}");
                    self.presence(&site).is_ok_and(|presence| presence.ours)
                }
            };
            if ours {
                found.insert((site.hook, site.ifindex));
            }
        }
        found
    }

    pub(super) fn presence(&mut self, site: &Site) -> Result<Presence, Error> {
        self.programs
            .presence(site.hook, &site.interface, site.ifindex)
    }

    /// Attaches programs to every site; returns the pods that carry a foreign program. A pod that
    /// is deleted meanwhile, or that the kernel refuses, is left out and does not delay the others.
    pub(super) fn attach(&mut self) -> Result<Vec<u32>, Error> {
        let mut foreign = Vec::new();
        let mut left_out = BTreeMap::new();
        for site in self.sites.clone() {
            let attached = self
                .programs
                .attach(site.hook, &site.interface, site.ifindex)
                .and_then(|_| self.presence(&site));
            match attached {
                Ok(presence) if presence.foreign => foreign.push(site.ifindex),
                Ok(_) => {}
                Err(error) if site.is_pod() => {
                    let error = error.to_string();
                    if self.left_out.get(&site.interface) != Some(&error) {
                        tracing::warn!("left to the kernel path: {error}");
                    }
                    left_out.insert(site.interface, error);
                }
                Err(error) => {
                    self.deactivate()?;
                    return Err(error);
                }
            }
        }
        self.left_out = left_out;
        Ok(foreign)
    }

    /// Attaches the XDP program to the NIC where that is wanted; no other part depends on this
    /// program.
    pub(super) async fn refuse_early(&mut self, view: &View<'_>) {
        let attached = match view.kernel.nic(view.underlay.ifindex).await {
            Ok(Some(nic)) => early::wanted_on(view.settings.flags.node.xdp, &nic).and_then(|()| {
                match self.programs.attach_xdp(&nic) {
                    Ok(_) => Ok(nic),
                    Err(error) => Err(error.to_string()),
                }
            }),
            Ok(None) => Err("the device is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let name = |nic: &Nic| nic.name.clone();
        if attached.as_ref().map(name) != self.early.as_ref().map(name) {
            match &attached {
                Ok(nic) => tracing::info!(device = nic.name, "early refusal by native XDP"),
                Err(why) if view.settings.flags.node.xdp == Xdp::On => {
                    tracing::warn!("no early refusal by XDP: {why}");
                }
                Err(why) => tracing::info!("no early refusal by XDP: {why}"),
            }
        }
        self.early = attached;
    }

    /// The NIC on which hostile VXLAN is refused early, or the reason for none, as text for people.
    pub fn early_text(&self) -> String {
        match &self.early {
            Ok(nic) => format!("by native XDP on {}", nic.name),
            Err(why) => format!("behind the NIC: {why}"),
        }
    }
}
