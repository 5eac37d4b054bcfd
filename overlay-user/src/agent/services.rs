//! Keeps the programs at the socket and their maps in step with the store's Services.

use std::collections::BTreeSet;
use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::AgentFlags;
use crate::config::flags::ServicesMode;
use crate::datapath::pins::Pins;
use crate::datapath::services::{self, SocketPrograms};
use crate::datapath::{Error, object};
use crate::kernel::cgroup;
use crate::service::{Refusals, ServiceTable};
use crate::store::ServiceState;

use super::settings;

/// Pause before another attempt after a failure.
const RETRY: Duration = Duration::from_secs(30);
/// Interval of the searches for connected sockets whose servers do not serve any more, while there
/// may be such sockets.
const LOOK: Duration = Duration::from_secs(60);
/// Interval of the checks that programs and pins are still in place.
const TICK: Duration = Duration::from_secs(1);
/// Changes come in bursts; the maps follow after the rest of one.
const SETTLE: Duration = Duration::from_millis(20);

/// How Services are translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The store has not answered yet.
    #[default]
    Waiting,
    /// By kube-proxy alone, as the flags or the store want it.
    Off(String),
    /// By kube-proxy alone, because a precondition is missing.
    Down {
        /// The missing precondition.
        why: String,
        /// Whether the flags demand that precondition.
        is_fault: bool,
    },
    /// At the socket.
    Up {
        /// Addresses of Services in the maps.
        frontends: usize,
        /// Servers behind them.
        servers: usize,
        /// Addresses that the maps have no room for.
        without_room: usize,
        /// The control group whose sockets are served.
        group: PathBuf,
    },
}

impl Standing {
    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::Waiting => "by kube-proxy: the store has not told of Services yet".to_owned(),
            Self::Off(why) | Self::Down { why, .. } => format!("by kube-proxy: {why}"),
            Self::Up {
                frontends,
                servers,
                without_room,
                group,
            } => {
                let left = match without_room {
                    0 => String::new(),
                    left => format!("; {left} more, for which there is no room, by kube-proxy"),
                };
                format!(
                    "at the socket: {frontends} addresses, {servers} servers, for processes in \
                    {}{left}",
                    group.display()
                )
            }
        }
    }

    /// How many addresses of Services sockets are given servers for.
    pub fn frontends(&self) -> usize {
        match self {
            Self::Up { frontends, .. } => *frontends,
            _ => 0,
        }
    }

    /// The missing precondition, where the flags demand it.
    pub fn fault(&self) -> Option<&str> {
        match self {
            Self::Down {
                why,
                is_fault: true,
            } => Some(why),
            _ => None,
        }
    }
}

/// The ends of the channels to the task that follows Services, for the reconciler.
pub struct Channels {
    /// How Services are translated.
    pub standing: watch::Receiver<Standing>,
    /// Refused parts of Services.
    pub refused: watch::Receiver<Refusals>,
    /// Network namespaces whose Services are left to kube-proxy.
    pub opted_out: watch::Sender<BTreeSet<u64>>,
}

/// A receiver of the refused parts of the store's Services alone, because tables change more often
/// than refusals.
pub fn refused(mut source: watch::Receiver<ServiceState>) -> watch::Receiver<Refusals> {
    let (told, refused) = watch::channel(source.borrow_and_update().refused.clone());
    tokio::spawn(async move {
        while source.changed().await.is_ok() {
            let now = source.borrow_and_update().refused.clone();
            told.send_if_modified(|known| {
                let is_news = *known != now;
                *known = now;
                is_news
            });
        }
    });
    refused
}

impl Channels {
    /// Sets the network namespaces whose Services are left to kube-proxy.
    pub fn opt_out(&self, cookies: BTreeSet<u64>) {
        self.opted_out.send_if_modified(|known| {
            let is_news = *known != cookies;
            *known = cookies;
            is_news
        });
    }
}

/// Keeps the programs at the socket until `cancel`. The programs that choose servers are detached
/// with the end of the agent.
pub async fn run(
    flags: AgentFlags,
    mut source: watch::Receiver<ServiceState>,
    mut opted_out: watch::Receiver<BTreeSet<u64>>,
    standing: watch::Sender<Standing>,
    cancel: CancellationToken,
) {
    let show = |new: Standing| {
        standing.send_if_modified(|old| {
            let is_news = *old != new;
            if is_news {
                match &new {
                    Standing::Down { why, .. } => tracing::warn!("Services by kube-proxy: {why}"),
                    // Numbers change all the time.
                    Standing::Up { .. } if matches!(old, Standing::Up { .. }) => {}
                    new => tracing::info!("Services {}", new.text()),
                }
                *old = new;
            }
            is_news
        });
    };
    let pins = settings::pins(&flags);
    if flags.node.services == ServicesMode::Off {
        take_off(&pins);
        show(Standing::Off("switched off by --services off".to_owned()));
        return;
    }
    let mut running: Option<SocketPrograms> = None;
    // What was taken off in part serves until all of it is attached anew.
    let mut disturbed: Option<SocketPrograms> = None;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look_at = None;
    loop {
        // Before what may take a server away, because a socket that was given this server a moment
        // ago may not be known yet.
        if look_at.take_if(|at| *at <= Instant::now()).is_some() {
            let looked = running
                .as_mut()
                .map_or(Ok(()), SocketPrograms::look_for_gone);
            if let Err(error) = looked {
                tracing::debug!("packets' sockets are asked whether their servers serve: {error}");
            }
        }
        let table = source.borrow_and_update().table.clone();
        let mut failed = false;
        if let Some(table) = &table {
            let alone = opted_out.borrow_and_update().clone();
            match follow(&flags, &pins, &mut running, table, &alone) {
                Ok(new) => {
                    if disturbed.take().is_some() && running.is_some() {
                        tracing::info!("the programs at the socket are whole again");
                    }
                    show(new);
                }
                Err(error) => {
                    // With its programs go their links: kube-proxy takes over.
                    (running, disturbed) = (None, None);
                    take_off(&pins);
                    failed = true;
                    show(Standing::Down {
                        why: error.to_string(),
                        is_fault: flags.node.services == ServicesMode::Socket,
                    });
                }
            }
        }
        // Changes that come all the time do not put the look off.
        let is_telling = running.as_ref().is_some_and(SocketPrograms::is_telling);
        look_at = is_telling.then(|| look_at.unwrap_or_else(|| Instant::now() + LOOK));
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = source.changed(), if !failed => if changed.is_err() { return },
            changed = opted_out.changed(), if !failed => if changed.is_err() { return },
            () = sleep(RETRY), if failed => {}
            () = sleep_until(look_at.unwrap_or_else(Instant::now)), if is_telling => {}
            () = disturbance(&running, &mut tick) => disturbed = running.take(),
        }
        sleep(SETTLE).await;
    }
}

/// Returns when a program or pin is missing, of which the kernel sends no event. The maps that
/// connected sockets need are pinned again by then.
async fn disturbance(running: &Option<SocketPrograms>, tick: &mut Interval) {
    let Some(services) = running else {
        return pending().await;
    };
    loop {
        tick.tick().await;
        if let Some(what) = services.disturbance() {
            tracing::warn!("{what}: starting the programs at the socket anew");
            if let Err(error) = services.pin_memory() {
                tracing::warn!("what sockets were given is forgotten: {error}");
            }
            return;
        }
    }
}

/// Makes the programs serve a table.
fn follow(
    flags: &AgentFlags,
    pins: &Pins,
    running: &mut Option<SocketPrograms>,
    table: &ServiceTable,
    opted_out: &BTreeSet<u64>,
) -> Result<Standing, Error> {
    let services = match running {
        Some(services) => {
            services.leave_to_kube_proxy(opted_out)?;
            services.update(table)?;
            services
        }
        None if table.is_empty() => {
            take_off(pins);
            return Ok(Standing::Off("the store has no Services".to_owned()));
        }
        None => {
            let group = match &flags.node.services_cgroup {
                Some(group) => group.clone(),
                None => cgroup::root()?,
            };
            let (mut services, misfits) = SocketPrograms::load(object::services()?, pins, group)?;
            for misfit in misfits {
                tracing::warn!("{misfit}");
            }
            services.leave_to_kube_proxy(opted_out)?;
            services.update(table)?;
            services.attach()?;
            running.insert(services)
        }
    };
    let (frontends, servers, without_room) = services.contents().counts();
    Ok(Standing::Up {
        frontends,
        servers,
        without_room,
        group: services.group().to_owned(),
    })
}

/// Adopts the maps and links of another ABI version that connected sockets need. To be called
/// before all other pins of that version are removed.
pub fn take_over(flags: &AgentFlags) {
    match settings::pins(flags).take_over(services::is_pin) {
        Ok(0) => {}
        Ok(pins) => tracing::info!(pins, "took over what another version's sockets need"),
        Err(error) => tracing::warn!("what sockets were given is forgotten: {error}"),
    }
}

/// Removes the maps of Services, because no agent would keep them up to date.
fn take_off(pins: &Pins) {
    if let Err(error) = services::forget(pins) {
        tracing::warn!("{error}");
    }
}
