//! The observed state of the kernel's network: one look, updated by the kernel's events.
//! The kernel is asked after an event, and from time to time for the whole state, because an event
//! may be lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::settings::Settings;
use super::underlay::Sighting;
use crate::kernel::monitor::KernelEvent;
use crate::kernel::pods::PodLinks;
use crate::kernel::{Error, Kernel, captures, sysctl};
use crate::marks::BRIDGE;
use crate::reconcile::{KernelState, OverlayDevice};

/// Interval of full looks without an event.
const NOW_AND_THEN: Duration = Duration::from_secs(60);

/// The time after an addition or change of a pod in which pods are read repeatedly, because other
/// plugins of the pod's list may change its MAC address, of which there is no event in this
/// namespace.
const YOUNG: Duration = Duration::from_secs(30);

/// The observed state.
#[derive(Debug)]
pub struct Seen {
    /// The backend's device, and the kernel's entries that lead to peers.
    pub observed: KernelState,
    /// The bridge and the pods on it.
    pub pods: PodLinks,
    /// VNIs of other devices on the UDP port; `None` while the kernel has not answered.
    pub other_vnis: Option<BTreeSet<u32>>,
    /// The underlay's device; `None` where the kernel has not answered.
    pub underlay: Option<Sighting>,
    /// Whether a program captures packets that leave by the backend's device.
    pub is_captured: bool,
    /// Whether pods may have connections that connection tracking has not seen.
    pub has_untracked: bool,
    /// Whether devices, addresses, or queueing disciplines may have changed.
    devices_are_old: bool,
    /// Whether neighbours, FDB and routes may differ from `observed`.
    peers_are_old: bool,
    looked: Instant,
    /// The time of the last addition or change of a pod.
    pods_changed: Instant,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            observed: KernelState::default(),
            pods: PodLinks::default(),
            other_vnis: None,
            underlay: None,
            is_captured: false,
            has_untracked: false,
            devices_are_old: true,
            peers_are_old: true,
            looked: Instant::now(),
            pods_changed: Instant::now(),
        }
    }
}

impl Seen {
    /// Notes an event. True if the event may require a round.
    pub fn note(&mut self, event: &KernelEvent) -> bool {
        let device = self.observed.device.as_ref().map(|link| link.ifindex);
        match event {
            KernelEvent::Neighbour(neighbour) if Some(neighbour.ifindex) == device => {
                self.observed.apply(&neighbour.permanent())
            }
            KernelEvent::Fdb { ifindex, change } if Some(*ifindex) == device => {
                self.observed.apply(change)
            }
            KernelEvent::Route(route) => route
                .main
                .as_ref()
                .is_some_and(|change| self.observed.apply(change)),
            KernelEvent::Neighbour(_) | KernelEvent::Fdb { .. } | KernelEvent::Rule => false,
            KernelEvent::Link(ifindex) => {
                // When a device is deleted or set down, the kernel removes its neighbours, FDB
                // entries and routes, and does not send an event for each.
                self.peers_are_old |= device.is_none_or(|device| device == *ifindex);
                self.devices_are_old = true;
                true
            }
            KernelEvent::Address(_) | KernelEvent::TrafficControl(_) => {
                self.devices_are_old = true;
                true
            }
            KernelEvent::Overrun => {
                self.distrust();
                true
            }
        }
    }

    /// Makes the next refreshment read everything.
    pub fn distrust(&mut self) {
        (self.devices_are_old, self.peers_are_old) = (true, true);
    }

    /// Whether a full look is due; if so, the next refreshment is one.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.looked.elapsed() >= NOW_AND_THEN;
        if is_due {
            self.distrust();
        }
        is_due
    }

    /// Looks for captures, of which there is no event. True if a first capture has begun, or the
    /// last one has ended.
    pub fn is_capture_news(&mut self) -> bool {
        let Some(link) = &self.observed.device else {
            return false;
        };
        // Where the kernel does not answer, a capture is assumed.
        let is_captured = captures::are_on(link.ifindex).unwrap_or(true);
        std::mem::replace(&mut self.is_captured, is_captured) != is_captured
    }

    /// Whether the pods are to be read without an event; if so, the next refreshment reads them.
    pub fn are_pods_due(&mut self) -> bool {
        let are_due = !self.pods.pods.is_empty() && self.pods_changed.elapsed() < YOUNG;
        self.devices_are_old |= are_due;
        are_due
    }

    /// Reads the parts that may have changed; `underlay` is the index of the underlay's device.
    ///
    /// # Errors
    /// The kernel's error. The next refreshment reads the failed parts again.
    pub async fn refresh(
        &mut self,
        kernel: &Kernel,
        settings: &Settings,
        underlay: u32,
    ) -> Result<(), Error> {
        let network = settings.network();
        self.observed.forwarding = sysctl::forwarding(network.addr())?;
        if self.devices_are_old {
            kernel.look();
            self.underlay = sight(kernel, underlay).await.ok();
            self.other_vnis = match (&settings.device, settings.config.vxlan()) {
                (Some(device), Some(vxlan)) => {
                    let others = kernel.other_vnis(device, vxlan.port).await.ok();
                    others.or_else(|| self.other_vnis.take())
                }
                _ => Some(BTreeSet::new()),
            };
            let pods = kernel.pods(BRIDGE).await?;
            if pods != self.pods {
                (self.pods, self.pods_changed) = (pods, Instant::now());
            }
            if let Some(device) = &settings.device {
                let link = kernel.observe_device(device).await?;
                let index = |link: &OverlayDevice| (link.ifindex, link.up);
                self.peers_are_old |=
                    link.as_ref().map(index) != self.observed.device.as_ref().map(index);
                self.observed.device = link;
            }
            self.devices_are_old = false;
        }
        if self.peers_are_old {
            self.look_at_peers(kernel, settings).await?;
        }
        Ok(())
    }

    /// Reads all entries that lead to peers.
    ///
    /// # Errors
    /// The kernel's error.
    pub async fn look_at_peers(
        &mut self,
        kernel: &Kernel,
        settings: &Settings,
    ) -> Result<(), Error> {
        self.peers_are_old = true;
        let device = settings.device.as_deref();
        self.observed = kernel.observe(device, settings.network()).await?;
        self.peers_are_old = false;
        self.looked = Instant::now();
        Ok(())
    }
}

async fn sight(kernel: &Kernel, ifindex: u32) -> Result<Sighting, Error> {
    Ok(Sighting {
        device: kernel.device(ifindex).await?,
        addresses: kernel.addresses_of(ifindex).await?,
    })
}
