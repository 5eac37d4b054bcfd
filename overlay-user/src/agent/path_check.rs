//! Sends each peer an echo request over the kernel path. No other observation shows that a firewall
//! drops VXLAN there, because packets of the fast path do not pass the firewall.
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
use crate::liveness::Pulse;
use checks::Checks;

/// Longest turn of the task, because [`PathCheck::pulse`] beats once in each turn.
const TURN: Duration = Duration::from_secs(30);
/// Pause before another attempt to open a socket, because the device may not exist yet.
const RETRY: Duration = Duration::from_secs(5);
/// Silent peers are reported at most this often: each report is a round of the reconciler and a
/// note with all of them, and where VXLAN is dropped one peer after another is found not to answer.
const TELL: Duration = Duration::from_secs(10);
/// Most peers that one line of the log names.
const NAMED: usize = 10;

/// Source and device of the requests, and the peers.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    device: String,
    source: Ipv4Addr,
    peers: PeerMap,
}

/// The result of the requests so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The peers that do not answer, in the order of their subnets.
    pub unreachable: Vec<Peer>,
    /// Why no peer is sent a request; `None` where peers are.
    pub unchecked: Option<String>,
}

impl Paths {
    /// A note for the operator; `None` where every peer answers.
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
                "no answer over the kernel path from {}: node down, or a firewall drops the VXLAN \
                port or ICMP echo",
                names.join(", ")
            )
        })
    }
}

/// The task that sends the requests.
#[derive(Debug)]
pub struct PathCheck {
    wanted: watch::Sender<Option<Wanted>>,
    paths: watch::Receiver<Paths>,
    pulse: Pulse,
}

impl PathCheck {
    /// Starts the task, which does nothing before [`follow`](Self::follow) and ends when this value
    /// is dropped.
    #[must_use]
    pub fn spawn() -> Self {
        let (wanted, heard) = watch::channel(None);
        let (found, paths) = watch::channel(Paths::default());
        let pulse = Pulse::default();
        let teller = Teller {
            found,
            last: None,
            is_due: false,
        };
        tokio::spawn(run(heard, teller, pulse.clone()));
        Self {
            wanted,
            paths,
            pulse,
        }
    }

    /// Sets the peers to send requests to, from `source` by `device`.
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

    /// Ends requests to peers that are not in `peers`, for before the kernel's state of such a peer
    /// is removed. Without a route, the socket's device would take a peer's address for an address
    /// on its own link, and the kernel would keep a failed neighbour of it.
    pub fn forget_others(&self, peers: &PeerMap) {
        self.wanted.send_if_modified(|wanted| {
            let Some(wanted) = wanted else {
                return false;
            };
            let before = wanted.peers.clone();
            let gone = peers.differences(&before).filter(|it| it.now.is_none());
            gone.filter_map(|it| wanted.peers.remove(it.key)).count() > 0
        });
    }

    /// A receiver of the result, and of every change.
    #[must_use]
    pub fn paths(&self) -> watch::Receiver<Paths> {
        self.paths.clone()
    }

    /// Beats with every turn of the task.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

async fn run(mut heard: watch::Receiver<Option<Wanted>>, mut teller: Teller, pulse: Pulse) {
    let mut checks = Checks::default();
    let mut socket = None;
    loop {
        pulse.beat();
        let now = Instant::now();
        let mut next = None;
        // Borrowed until everything is sent, so that nothing goes to a peer after `forget_others`.
        if let Some(wanted) = &*heard.borrow_and_update() {
            teller.is_due |= checks.follow(&wanted.peers, now);
            match ask(&mut socket, wanted, &mut checks, now) {
                Ok(()) => {
                    teller.is_due |= checks.expire(now);
                    let told = teller.tell(&checks, now);
                    next = checks.next().into_iter().chain(told).min();
                }
                Err(error @ echo::Error::NotPermitted) => teller.tell_unchecked(&error),
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
                Ok(from) => teller.is_due |= checks.answered(from, Instant::now()),
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
fn ask(
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
        if let Err(error) = bound.0.send(address, sequence) {
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

/// Publishes the peers that do not answer, and logs changes.
#[derive(Debug)]
struct Teller {
    found: watch::Sender<Paths>,
    /// The time of the last publication.
    last: Option<Instant>,
    /// Whether the result has changed since then.
    is_due: bool,
}

impl Teller {
    /// Publishes a due change, or returns the time at which the change may be published.
    fn tell(&mut self, checks: &Checks, now: Instant) -> Option<Instant> {
        let was_checked = self.found.borrow().unchecked.is_none();
        if !self.is_due && was_checked {
            return None;
        }
        if let Some(last) = self.last
            && now < last + TELL
        {
            return Some(last + TELL);
        }
        self.is_due = false;
        let paths = Paths {
            unreachable: checks.broken().cloned().collect(),
            unchecked: None,
        };
        if self.publish(paths) {
            self.last = Some(now);
            match self.found.borrow().note() {
                Some(note) => tracing::warn!("{note}"),
                None => tracing::info!("every peer answers over the kernel path"),
            }
        }
        None
    }

    /// Publishes that no request can be sent.
    fn tell_unchecked(&mut self, error: &echo::Error) {
        let paths = Paths {
            unreachable: Vec::new(),
            unchecked: Some(error.to_string()),
        };
        if self.publish(paths) {
            tracing::warn!("the kernel paths to the peers are not checked: {error}");
        }
    }

    /// True if `paths` are news.
    fn publish(&self, paths: Paths) -> bool {
        self.found.send_if_modified(|old| {
            let differs = *old != paths;
            *old = paths;
            differs
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::backend::Way;
    use crate::mac::MacAddr;

    #[test]
    fn who_cannot_ask_says_so_until_it_can() {
        let (found, heard) = watch::channel(Paths::default());
        let mut teller = Teller {
            found,
            last: None,
            is_due: false,
        };
        let note = || heard.borrow().note();
        teller.tell_unchecked(&echo::Error::NotPermitted);
        let told = note().expect("a note");
        let why = "not checked: echo requests are not permitted; give the agent CAP_NET_RAW";
        assert!(told.starts_with(why), "{told}");
        // Nothing has changed of the peers; that they are asked again is news all the same.
        assert_eq!(teller.tell(&Checks::default(), Instant::now()), None);
        assert_eq!(note(), None);
    }

    #[test]
    fn many_peers_that_fall_silent_one_by_one_are_told_now_and_then() {
        let (found, heard) = watch::channel(Paths::default());
        let mut teller = Teller {
            found,
            last: None,
            is_due: false,
        };
        let peer = |n: u8| Peer {
            subnet: format!("10.244.{n}.0/24").parse().expect("a subnet"),
            vtep: IpAddr::from([192, 168, 0, n]),
            way: Way::Vxlan {
                mac: MacAddr([2, 0, 0, 0, 0, n]),
            },
        };
        let peers = (1..=200).map(peer).map(|it| (it.subnet, it)).collect();
        let (mut checks, start) = (Checks::default(), Instant::now());
        checks.follow(&peers, start);
        let (mut now, mut times) = (start, Vec::new());
        while now < start + Duration::from_secs(120) {
            checks.take_due(now);
            teller.is_due |= checks.expire(now);
            let before = heard.borrow().unreachable.len();
            let next = teller.tell(&checks, now);
            if heard.borrow().unreachable.len() != before {
                times.push(now);
            }
            assert!(next.is_none_or(|next| next > now));
            let nexts = checks.next().into_iter().chain(next);
            now = nexts.min().expect("peers are asked for ever");
        }
        assert_eq!(heard.borrow().unreachable.len(), 200);
        assert!(times.windows(2).all(|two| two[1] >= two[0] + TELL));
        assert!(times.len() > 1, "{times:?}");
    }
}
