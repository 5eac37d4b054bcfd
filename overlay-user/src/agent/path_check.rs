//! Asks each peer for an answer over the kernel path, for nothing else shows that a firewall drops
//! VXLAN there: what the fast path carries does not pass the firewall.
//!
//! The request is an ICMP echo from this node's address on the VXLAN device to the peer's, which is
//! no pod's, so that both the request and the reply are the IP stack's. A stock flannel answers,
//! too.

mod checks;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::backend::{Peer, PeerMap};
use crate::kernel::echo::{self, Echo};
use crate::liveness::Heartbeat;
use checks::Checks;

/// At least this often something is done, if only to say so.
const TURN: Duration = Duration::from_secs(30);
/// Pause before a socket is opened again that could not be used: the device may come.
const RETRY: Duration = Duration::from_secs(5);
/// So many peers are named in the log.
const NAMED: usize = 10;

/// What the peers are asked from, and who they are.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    device: String,
    source: Ipv4Addr,
    peers: PeerMap,
}

/// What the answers came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The peers that do not answer, in the order of their subnets.
    pub unreachable: Vec<Peer>,
    /// Why nobody is asked, if so.
    pub unchecked: Option<String>,
}

impl Paths {
    /// What an operator should know, if there is anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        if let Some(why) = &self.unchecked {
            return Some(format!("not checked: {why}"));
        }
        let count = self.unreachable.len();
        let named = self.unreachable.iter().take(NAMED);
        let mut names: Vec<_> = named
            .map(|it| format!("{} ({})", it.subnet, it.vtep))
            .collect();
        if count > NAMED {
            names.push(format!("{} more", count - NAMED));
        }
        (count > 0).then(|| {
            format!(
                "no answer over the kernel path from {}: node down, or a firewall drops the VXLAN port or ICMP echo",
                names.join(", ")
            )
        })
    }
}

/// The task that asks.
#[derive(Debug)]
pub struct PathCheck {
    wanted: watch::Sender<Option<Wanted>>,
    paths: watch::Receiver<Paths>,
    heartbeat: Heartbeat,
}

impl PathCheck {
    /// Starts the task, which does nothing before [`follow`](Self::follow) and ends with this.
    #[must_use]
    pub fn spawn() -> Self {
        let (wanted, heard) = watch::channel(None);
        let (found, paths) = watch::channel(Paths::default());
        let heartbeat = Heartbeat::default();
        tokio::spawn(run(heard, found, heartbeat.clone()));
        Self {
            wanted,
            paths,
            heartbeat,
        }
    }

    /// Says whom to ask, from `source` by `device`.
    pub fn follow(&self, device: &str, source: IpAddr, peers: &PeerMap) {
        let IpAddr::V4(source) = source else {
            return;
        };
        self.wanted.send_if_modified(|wanted| {
            let next = Wanted {
                device: device.to_owned(),
                source,
                peers: peers.clone(),
            };
            let differs = wanted.as_ref() != Some(&next);
            *wanted = Some(next);
            differs
        });
    }

    /// What the answers came to, and every change of it.
    #[must_use]
    pub fn paths(&self) -> watch::Receiver<Paths> {
        self.paths.clone()
    }

    /// Beats with every turn of the task.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }
}

async fn run(
    mut heard: watch::Receiver<Option<Wanted>>,
    found: watch::Sender<Paths>,
    heartbeat: Heartbeat,
) {
    let mut checks = Checks::default();
    let mut socket = None;
    loop {
        heartbeat.beat();
        let wanted = heard.borrow_and_update().clone();
        let now = Instant::now();
        let mut next = None;
        if let Some(wanted) = &wanted {
            let mut changed = checks.follow(&wanted.peers, now);
            match ask(&mut socket, wanted, &mut checks, now).await {
                Ok(()) => {
                    changed |= checks.expire(now);
                    next = checks.next();
                    let nobody = found.borrow().unchecked.is_some();
                    if changed || nobody {
                        tell(&found, &checks);
                    }
                }
                Err(error @ echo::Error::NotPermitted) => {
                    let unchecked = Some(error.to_string());
                    found.send_if_modified(|paths| {
                        let differs = paths.unchecked != unchecked;
                        if differs {
                            tracing::warn!(
                                "the kernel paths to the peers are not checked: {error}"
                            );
                            let unreachable = Vec::new();
                            *paths = Paths {
                                unreachable,
                                unchecked,
                            };
                        }
                        differs
                    });
                }
                Err(error) => {
                    tracing::debug!("ask the peers: {error}");
                    next = Some(now + RETRY);
                }
            }
        }
        let until = next.map_or(now + TURN, |next| next.min(now + TURN));
        tokio::select! {
            changed = heard.changed() => if changed.is_err() { return },
            answer = hear(socket.as_ref()) => match answer {
                Ok(from) => {
                    if checks.answered(from, Instant::now()) {
                        tell(&found, &checks);
                    }
                }
                Err(error) => {
                    tracing::debug!("hear the peers: {error}");
                    socket = None;
                    tokio::time::sleep(RETRY).await;
                }
            },
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

/// A socket, and what it is bound to.
type Bound = (Echo, String, Ipv4Addr);

/// Sends the requests that are due, by a socket that is bound as wanted.
async fn ask(
    socket: &mut Option<Bound>,
    wanted: &Wanted,
    checks: &mut Checks,
    now: Instant,
) -> Result<(), echo::Error> {
    let fits = |(_, device, source): &Bound| *device == wanted.device && *source == wanted.source;
    let bound = match socket.take().filter(fits) {
        Some(bound) => bound,
        None => {
            let echo = Echo::open(&wanted.device, wanted.source)?;
            (echo, wanted.device.clone(), wanted.source)
        }
    };
    let mut usable = true;
    for (address, sequence) in checks.take_due(now) {
        if let Err(error) = bound.0.send(address, sequence).await {
            tracing::debug!(%address, "ask a peer: {error}");
            // Any other error is about this peer, and the answers of others are still to come.
            usable &= !echo::is_device_gone(&error);
        }
    }
    *socket = usable.then_some(bound);
    Ok(())
}

async fn hear(socket: Option<&Bound>) -> std::io::Result<Ipv4Addr> {
    match socket {
        Some((echo, _, _)) => echo.hear().await,
        None => std::future::pending().await,
    }
}

/// Tells who does not answer, and the log what is new.
fn tell(found: &watch::Sender<Paths>, checks: &Checks) {
    found.send_if_modified(|paths| {
        let next = Paths {
            unreachable: checks.broken().cloned().collect(),
            unchecked: None,
        };
        let differs = next != *paths;
        if differs {
            match next.note() {
                Some(note) => tracing::warn!("{note}"),
                None => tracing::info!("every peer answers over the kernel path"),
            }
        }
        *paths = next;
        differs
    });
}
