//! One round of the fast path: first the programs on their hooks, then the maps.

mod flows;
mod follower;
mod live;
mod refusals;
mod running;
mod ways;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Peer;
use crate::config::flags::{FastPathMode, GuardMode};
use crate::datapath::Error;
use crate::datapath::maps::Maps;
use crate::datapath::pins::Pins;
use crate::datapath::programs::Programs;
use crate::datapath::services;
use crate::kernel::interface::Underlay;
use crate::kernel::pods::PodLinks;
use crate::kernel::{Kernel, sysctl};
use crate::mac::MacAddr;
use ipnet::IpNet;
use overlay_common::V4;
use overlay_common::schema::CONFIG_ACTIVE;
use tokio::sync::Notify;

use super::health::Report;
use super::settings::Settings;
use running::Running;

/// Pause before another attempt to start the fast path.
const RETRY: Duration = Duration::from_secs(30);

/// A round's view of the node.
pub struct View<'a> {
    /// The settings that do not change.
    pub settings: &'a Settings,
    /// The underlay's device.
    pub underlay: &'a Underlay,
    /// This node's subnet.
    pub subnet: IpNet,
    /// Longest packet of a pod that fits the underlay.
    pub mtu: u32,
    /// The pods as of the last look.
    pub pods: &'a mut PodLinks,
    /// VNIs of other devices on the UDP port; `None` while the kernel has not answered.
    pub other_vnis: Option<BTreeSet<u32>>,
    /// Whether a program captures packets that leave by the VXLAN device.
    pub is_captured: bool,
    /// The other nodes.
    pub peers: &'a [Peer],
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Why the programs must leave every packet to the kernel; `None` where they need not. Refusals
    /// continue in either case.
    pub hindrance: Option<String>,
}

/// A device by which the IP stack sends to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
}

/// Destinations that the kernel path reaches by now; packets to others must not be short-cut.
pub struct Backing<'a> {
    /// The devices by which the IP stack sends to other nodes; none while the backend's device is
    /// missing.
    pub outlets: &'a [Outlet],
    /// MAC address of the backend's device.
    pub mac: MacAddr,
    /// The peers that the kernel path serves completely.
    pub peers: &'a [Peer],
}

/// The fast path between rounds.
pub enum FastPath {
    /// Not wanted; the first round removes the programs and maps of an earlier agent.
    Off {
        /// Whether they have been removed.
        removed: bool,
    },
    /// Not running: not tried yet, or failed.
    Down {
        /// The time and the error of the last attempt.
        tried: Option<(Instant, String)>,
    },
    /// Running.
    Up(Box<Running>),
}

impl FastPath {
    /// The state that the flags demand, before any action.
    pub fn new(settings: &Settings) -> Self {
        match (settings.flags.node.fast_path, settings.flags.node.guard) {
            (FastPathMode::Off, GuardMode::Nftables) => Self::Off { removed: false },
            // Programs check packets even without a fast path, because nftables takes longer.
            (FastPathMode::Off, GuardMode::Auto | GuardMode::Bpf)
            | (FastPathMode::Auto | FastPathMode::Force, _) => Self::down(),
        }
    }

    fn down() -> Self {
        Self::Down { tried: None }
    }

    /// The pods that programs judge, by the host end's name, as of the last round. A newer pod is
    /// included, because its program is attached before this round ends. `None` where no program
    /// judges any pod.
    pub fn judged(&self, view: &View<'_>) -> Option<BTreeSet<String>> {
        match self {
            Self::Up(running) if view.settings.flags.node.guard != GuardMode::Nftables => {
                Some(running.judged(view))
            }
            _ => None,
        }
    }

    /// The device on which hostile VXLAN is refused early, or the reason for none, as text for
    /// people.
    pub fn early_refusal(&self) -> Option<String> {
        match self {
            Self::Up(running) => Some(running.early_text()),
            _ => None,
        }
    }

    /// The source of the programs, where they are not this build's own, as text for people.
    pub fn foreign_programs(&self) -> Option<String> {
        match self {
            Self::Up(running) => running.foreign_programs.clone(),
            _ => None,
        }
    }

    /// Whether a program, a pin or the configuration is missing, of which the kernel sends no
    /// event; or whether another attempt to start is due.
    pub fn is_disturbed(&mut self) -> bool {
        match self {
            Self::Up(running) => running.is_disturbed(),
            Self::Down { tried } => tried
                .as_ref()
                .is_none_or(|(when, _)| when.elapsed() >= RETRY),
            Self::Off { removed } => !*removed,
        }
    }

    /// Renews the programs' trust in the list of leases, and from time to time compares the flows
    /// with connection tracking.
    pub async fn beat(&mut self, network: IpNet) {
        let Self::Up(running) = self else {
            return;
        };
        let result = match running.keep_leases() {
            Ok(()) => running.heal_flows(network).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!("keep the fast path's tables: {error:#}");
        }
    }

    /// Leaves every packet to the kernel at once; the next round decides for how long.
    pub fn step_aside(&mut self) {
        if let Self::Up(running) = self
            && let Err(error) = running.deactivate()
        {
            tracing::warn!("leave packets to the kernel: {error:#}");
        }
    }

    /// Whether another process changed maps that depend on the leases, or IPsec policies were added
    /// or removed; the kernel sends no event of either.
    pub async fn is_surprised(&mut self) -> bool {
        match self {
            Self::Up(running) => running.is_surprised().await,
            _ => false,
        }
    }

    /// Notified when the way to a node has changed so that a round is needed.
    pub fn ways_changed(&self) -> Option<Arc<Notify>> {
        match self {
            Self::Up(running) => Some(running.ways_changed()),
            _ => None,
        }
    }

    /// Detects the end of the programs' work. To be called before [`judged`](Self::judged).
    pub fn look(&mut self, view: &View<'_>) {
        match self {
            Self::Up(running) if !running.is_pinned() => {
                tracing::warn!(
                    "the pins of the fast path were removed or replaced: starting it anew"
                );
                *self = Self::down();
            }
            Self::Up(_) if !view.underlay.is_ethernet => *self = Self::down(),
            Self::Off { .. } | Self::Down { .. } | Self::Up(_) => {}
        }
    }

    /// Starts the fast path where it does not run, or removes it where it is not wanted, and
    /// prepares the maps for the coming changes of the kernel path: entries of departing peers are
    /// removed, and new peers are expected. The maps may be an earlier agent's, whose pins show the
    /// state of its time.
    ///
    /// By now the guard must judge all packets that programs judged, because this call may detach
    /// programs.
    pub fn prepare(&mut self, view: &View<'_>, report: &mut Report) {
        if view.settings.flags.node.fast_path == FastPathMode::Off {
            report.note("fast path", "off: the kernel path carries everything");
        }
        if let Self::Off { removed } = self {
            if !*removed {
                match take_off(&view.settings.pins) {
                    Ok(()) => *removed = true,
                    Err(error) => report.problem("fast path", error.to_string()),
                }
            }
            return;
        }
        self.try_to_start(view, report);
        if let Self::Down {
            tried: Some((_, error)),
        } = self
        {
            if view.settings.flags.node.fast_path != FastPathMode::Off {
                report.note("fast path", format!("down: {error}"));
            }
            if view.settings.flags.node.guard == GuardMode::Bpf {
                report.problem("guard", format!("--guard=bpf: {error}"));
            }
        }
        if let Self::Up(running) = self
            && let Err(error) = running.prepare(view)
        {
            report.problem("fast path", error.to_string());
        }
    }

    /// Starts a fast path that is down, unless the last attempt is too recent.
    fn try_to_start(&mut self, view: &View<'_>, report: &mut Report) {
        let Self::Down { tried } = self else {
            return;
        };
        if tried
            .as_ref()
            .is_some_and(|(when, _)| when.elapsed() < RETRY)
        {
            return;
        }
        let started = if view.underlay.is_ethernet {
            Running::start(&view.settings.pins, &view.settings.flags.node)
        } else {
            let name = &view.underlay.name;
            Err(format!(
                "{name} carries no Ethernet frames, which the programs read and write"
            ))
        };
        match started {
            Ok(running) => *self = Self::Up(Box::new(running)),
            Err(error) => {
                if view.settings.flags.node.fast_path == FastPathMode::Off {
                    tracing::debug!("no programs judge what pods send: {error}");
                } else if tried.as_ref().is_none_or(|(_, last)| *last != error) {
                    tracing::warn!("the kernel path carries everything: {error}");
                }
                // No process would keep an earlier agent's tables up to date.
                if let Err(error) = take_off(&view.settings.pins) {
                    report.problem("fast path", error.to_string());
                }
                *tried = Some((Instant::now(), error));
            }
        }
    }

    /// Attaches programs to their hooks and fills the maps with the destinations that the kernel
    /// path serves.
    pub async fn carry_out(
        &mut self,
        view: &mut View<'_>,
        backing: &Backing<'_>,
        report: &mut Report,
    ) {
        let Self::Up(running) = self else {
            return;
        };
        // Connection tracking sees only parts of connections when some packets take the fast path
        // and some do not. Its module may be loaded at any time.
        if running.carries()
            && let Err(error) = sysctl::be_liberal_with_tcp()
        {
            report.note("connection tracking", error.to_string());
        }
        if let Some(why) = sysctl::no_tcp_pick_up() {
            report.note("TCP pick-up", why);
        }
        if let Err(error) = running.carry_out(view, backing).await {
            report.problem("fast path", error.to_string());
        }
        if let Some(programs) = &running.foreign_programs {
            report.note("programs", programs);
        }
        if let Some(omissions) = &running.omissions {
            report.note("left out of the tables", omissions);
        }
        if view.is_captured {
            report.note(
                "captures",
                "somebody captures on the VXLAN device: what the IP stack sends by it is left to \
                it, which is slower",
            );
        }
        report.note("early refusal", running.early_text());
        if !running.left_out.is_empty() {
            let pods: Vec<_> = running.left_out.values().cloned().collect();
            report.note("pods left to the kernel path", pods.join("; "));
        }
        if let Some(why) = &running.ipsec {
            report.note(
                "IPsec",
                format!("{why}: the kernel path carries everything between nodes"),
            );
        }
        let elsewhere = &running.elsewhere;
        if !elsewhere.is_empty() {
            let peers: Vec<_> = elsewhere.iter().map(ToString::to_string).collect();
            let name = &view.underlay.name;
            report.note(
                "peers left to the kernel path",
                format!("the routes to {} do not leave by {name}", peers.join(", ")),
            );
        }
    }
}

/// Whether pods may have connections that connection tracking has not seen, because programs are to
/// carry packets, or an earlier agent's programs did until now.
pub fn has_untracked(settings: &Settings) -> bool {
    let carried = || Maps::<V4>::open(&settings.pins).and_then(|maps| maps.config());
    settings.flags.node.fast_path != FastPathMode::Off
        || matches!(carried(), Ok(Some(config)) if config.flags & CONFIG_ACTIVE != 0)
}

/// Detaches the programs from their hooks, then removes the maps.
///
/// In the first step all programs stop carrying packets. Otherwise, while some of the programs were
/// detached, a flow that the IP stack translates would not be remembered, and replies that a
/// program carries would not be translated back.
pub fn take_off(pins: &Pins) -> Result<(), Error> {
    // Without the map no program carries packets.
    if let Ok(mut maps) = Maps::<V4>::open(pins) {
        maps.deactivate()?;
    }
    let detached = Programs::detach_all(pins)?;
    if detached > 0 {
        tracing::info!(programs = detached, "fast path taken off");
    }
    pins.remove_all_but(services::is_pin)
}
