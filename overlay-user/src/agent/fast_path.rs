//! One round of the fast path: programs on their hooks, then the maps.

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

/// How long to wait before a fast path that would not load is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// A round's view of the node.
pub struct View<'a> {
    /// What does not change.
    pub settings: &'a Settings,
    /// The underlay's device.
    pub underlay: &'a Underlay,
    /// This node's subnet.
    pub subnet: IpNet,
    /// Longest packet of a pod that fits the underlay.
    pub mtu: u32,
    /// The pods, as of the last look.
    pub pods: &'a mut PodLinks,
    /// VNIs of other devices on the UDP port, where the kernel has told.
    pub other_vnis: Option<BTreeSet<u32>>,
    /// Whether a program captures what leaves by the VXLAN device.
    pub is_captured: bool,
    /// The other nodes.
    pub peers: &'a [Peer],
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Why the programs must leave every packet to the kernel, if they must; refusals go on.
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

/// Destinations that the kernel path reaches by now: only these may be short-cut.
pub struct Backing<'a> {
    /// Where the IP stack sends to other nodes; nowhere while the backend's device is not there.
    pub outlets: &'a [Outlet],
    /// MAC address of the backend's device.
    pub mac: MacAddr,
    /// The peers that it serves completely.
    pub peers: &'a [Peer],
}

/// The fast path between rounds.
pub enum FastPath {
    /// Not wanted; what an earlier agent left is taken off in the first round.
    Off {
        /// Whether that has been done.
        removed: bool,
    },
    /// Not running: not tried yet, or why not.
    Down {
        /// When it was tried, and what came of it.
        tried: Option<(Instant, String)>,
    },
    /// Running.
    Up(Box<Running>),
}

impl FastPath {
    /// As the flags want it; nothing is done yet.
    pub fn new(settings: &Settings) -> Self {
        match (settings.flags.node.fast_path, settings.flags.node.guard) {
            (FastPathMode::Off, GuardMode::Nftables) => Self::Off { removed: false },
            // Without a fast path programs check all the same, because nftables takes longer.
            (FastPathMode::Off, GuardMode::Auto | GuardMode::Bpf)
            | (FastPathMode::Auto | FastPathMode::Force, _) => Self::down(),
        }
    }

    fn down() -> Self {
        Self::Down { tried: None }
    }

    /// The pods that programs judge, by the host end's name, as of the last round; a pod that came
    /// since counts, for its program comes before this round ends. None where no program judges
    /// any.
    pub fn judged(&self, view: &View<'_>) -> Option<BTreeSet<String>> {
        match self {
            Self::Up(running) if view.settings.flags.node.guard != GuardMode::Nftables => {
                Some(running.judged(view))
            }
            _ => None,
        }
    }

    /// Where hostile VXLAN is refused early, or why nowhere, for people.
    pub fn early_refusal(&self) -> Option<String> {
        match self {
            Self::Up(running) => Some(running.early_text()),
            _ => None,
        }
    }

    /// Where the programs are from, if they are not this build's own, for people.
    pub fn foreign_programs(&self) -> Option<String> {
        match self {
            Self::Up(running) => running.foreign_programs.clone(),
            _ => None,
        }
    }

    /// Whether something of ours is missing for which the kernel sends no event: a program, a pin,
    /// the configuration; or what would not load is to be tried again.
    pub fn is_disturbed(&mut self) -> bool {
        match self {
            Self::Up(running) => running.is_disturbed(),
            Self::Down { tried } => tried
                .as_ref()
                .is_none_or(|(when, _)| when.elapsed() >= RETRY),
            Self::Off { removed } => !*removed,
        }
    }

    /// Tells the programs that the list of leases is kept, and compares the flows with connection
    /// tracking now and then.
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

    /// Leaves every packet to the kernel at once; the next round says whether that stays so.
    pub fn step_aside(&mut self) {
        if let Self::Up(running) = self
            && let Err(error) = running.deactivate()
        {
            tracing::warn!("leave packets to the kernel: {error:#}");
        }
    }

    /// Whether what depends on the leases was changed by others, or IPsec policies came or went, of
    /// which no event tells.
    pub async fn is_surprised(&mut self) -> bool {
        match self {
            Self::Up(running) => running.is_surprised().await,
            _ => false,
        }
    }

    /// Told when the way to a node has changed so that only a round can put it right.
    pub fn ways_changed(&self) -> Option<Arc<Notify>> {
        match self {
            Self::Up(running) => Some(running.ways_changed()),
            _ => None,
        }
    }

    /// Notices what ends the work of the programs. To be asked before [`judged`](Self::judged).
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

    /// Starts the fast path where it does not run, or takes it off where it is not wanted, and
    /// makes the maps ready for what the kernel path is about to change: what goes is taken out,
    /// and those who come are expected. The maps may be an earlier agent's, whose pins say what was
    /// true in its time.
    ///
    /// The guard must judge by now whatever programs judged, because this call may take programs
    /// off.
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

    /// Starts what is down, unless that was tried a moment ago.
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
                // An earlier agent's tables would not be kept true by any process.
                if let Err(error) = take_off(&view.settings.pins) {
                    report.problem("fast path", error.to_string());
                }
                *tried = Some((Instant::now(), error));
            }
        }
    }

    /// Puts programs on their hooks and fills the maps with what the kernel path backs.
    pub async fn carry_out(
        &mut self,
        view: &mut View<'_>,
        backing: &Backing<'_>,
        report: &mut Report,
    ) {
        let Self::Up(running) = self else {
            return;
        };
        // Connection tracking sees halves of connections when some packets take the fast path and
        // some do not. It may be loaded at any time.
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

/// Whether pods may have connections that connection tracking has not seen: programs are to carry
/// packets, or those of an earlier agent did until now.
pub fn has_untracked(settings: &Settings) -> bool {
    let carried = || Maps::<V4>::open(&settings.pins).and_then(|maps| maps.config());
    settings.flags.node.fast_path != FastPathMode::Off
        || matches!(carried(), Ok(Some(config)) if config.flags & CONFIG_ACTIVE != 0)
}

/// Takes the programs off their hooks, then the maps.
///
/// The first step is that no program carries packets any more. While only some of the programs were
/// gone, a flow that the IP stack translates would not be remembered, and replies that a program
/// carries would not be translated back.
pub fn take_off(pins: &Pins) -> Result<(), Error> {
    // Where a map is not there, no program carries anything.
    if let Ok(mut maps) = Maps::<V4>::open(pins) {
        maps.deactivate()?;
    }
    let detached = Programs::detach_all(pins)?;
    if detached > 0 {
        tracing::info!(programs = detached, "fast path taken off");
    }
    pins.remove_all_but(services::is_pin)
}
