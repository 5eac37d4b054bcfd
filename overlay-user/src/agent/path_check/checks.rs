//! The choice of the next peer for an echo request over the kernel path, and the evaluation of the
//! replies; pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::backend::{Peer, PeerMap};

/// Most requests that are sent at once; the next ones are sent a second later, however many peers
/// there are.
pub const BURST: usize = 20;
/// Time between two bursts.
pub const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for an answer; a later one does not count.
const ANSWER: Duration = Duration::from_secs(2);
/// Time before the next request to a peer that answers; longer where there are many peers.
const WHOLE: Duration = Duration::from_secs(60);
/// Time before the next request to a peer that does not answer; longer where there are many peers.
const BROKEN: Duration = Duration::from_secs(10);
/// Number of consecutive requests without an answer after which a peer counts as not answering.
const MISSES: u32 = 3;

/// The classes of peers, in the order in which they get requests.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// A new peer, or one whose last answer is missing.
    Unsure,
    Known,
}

#[derive(Debug)]
struct Record {
    peer: Peer,
    /// Place in the queues; `None` while an answer is awaited.
    queued: Option<(Class, Instant)>,
    misses: u32,
    /// Number of the last request, by which the end of the wait for an earlier one is recognised.
    sequence: u16,
}

/// The peers, and whether each answers.
#[derive(Debug, Default)]
pub struct Checks {
    peers: PeerMap,
    records: HashMap<Ipv4Addr, Record>,
    /// The peers to send requests to, in order of time, by class.
    queues: [BTreeSet<(Instant, Ipv4Addr)>; 2],
    /// The awaited answers with the ends of their waits, in order of time.
    awaited: VecDeque<(Instant, Ipv4Addr, u16)>,
    broken: BTreeMap<Ipv4Addr, Peer>,
    last_burst: Option<Instant>,
}

impl Checks {
    /// Takes in the present peers. True if the peers that do not answer changed.
    pub fn follow(&mut self, peers: &PeerMap, now: Instant) -> bool {
        let mut changed = false;
        let before = std::mem::replace(&mut self.peers, peers.clone());
        for difference in peers.differences(&before) {
            let IpAddr::V4(address) = difference.key.network() else {
                continue;
            };
            changed |= self.broken.remove(&address).is_some();
            if let Some(Record {
                queued: Some((class, due)),
                ..
            }) = self.records.remove(&address)
            {
                self.queues[class as usize].remove(&(due, address));
            }
            // Only peers behind tunnels get requests, because the address belongs to a VXLAN
            // device, and no firewall rule about VXLAN applies to packets without encapsulation.
            if let Some(peer) = difference.now.filter(|peer| peer.mac().is_some()) {
                let record = Record {
                    peer: peer.clone(),
                    queued: None,
                    misses: 0,
                    sequence: 0,
                };
                self.records.insert(address, record);
                self.enqueue(address, Class::Unsure, now);
            }
        }
        changed
    }

    /// The time at which [`take_due`](Self::take_due) or [`expire`](Self::expire) is to be called
    /// next.
    pub fn next(&self) -> Option<Instant> {
        let expires = self.awaited.front().map(|(until, _, _)| *until);
        let firsts = self.queues.iter().filter_map(BTreeSet::first);
        let asks = firsts.map(|(due, _)| *due).min();
        let asks = asks.map(|due| due.max(self.last_burst.map_or(due, |last| last + PAUSE)));
        expires.into_iter().chain(asks).min()
    }

    /// The peers to send requests to now, with the requests' numbers.
    pub fn take_due(&mut self, now: Instant) -> Vec<(Ipv4Addr, u16)> {
        if self.last_burst.is_some_and(|last| now < last + PAUSE) {
            return Vec::new();
        }
        let all = ..=(now, Ipv4Addr::BROADCAST);
        let due = self.queues.iter().flat_map(|queue| queue.range(all));
        let due: Vec<_> = due.take(BURST).map(|(_, address)| *address).collect();
        if !due.is_empty() {
            self.last_burst = Some(now);
        }
        let mut requests = Vec::with_capacity(due.len());
        for address in due {
            let Some(record) = self.records.get_mut(&address) else {
                continue;
            };
            if let Some((class, due)) = record.queued.take() {
                self.queues[class as usize].remove(&(due, address));
            }
            record.sequence = record.sequence.wrapping_add(1);
            self.awaited
                .push_back((now + ANSWER, address, record.sequence));
            requests.push((address, record.sequence));
        }
        requests
    }

    /// Notes an answer. True if the peers that do not answer changed.
    pub fn answered(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        let Some(record) = self.records.get_mut(&address) else {
            return false;
        };
        record.misses = 0;
        self.enqueue(address, Class::Known, now + WHOLE);
        self.broken.remove(&address).is_some()
    }

    /// Notes the answers that are overdue. True if the peers that do not answer changed.
    pub fn expire(&mut self, now: Instant) -> bool {
        let mut changed = false;
        while let Some(&(until, address, sequence)) = self.awaited.front()
            && until <= now
        {
            self.awaited.pop_front();
            let Some(record) = self.records.get_mut(&address) else {
                continue;
            };
            // The peer has answered meanwhile, or another peer has the address now.
            if record.queued.is_some() || record.sequence != sequence {
                continue;
            }
            record.misses = record.misses.saturating_add(1);
            if record.misses < MISSES {
                self.enqueue(address, Class::Unsure, now);
                continue;
            }
            changed |= self.broken.insert(address, record.peer.clone()).is_none();
            self.enqueue(address, Class::Known, now + BROKEN);
        }
        changed
    }

    /// The peers that do not answer, in the order of their subnets.
    pub fn broken(&self) -> impl Iterator<Item = &Peer> {
        self.broken.values()
    }

    fn enqueue(&mut self, address: Ipv4Addr, class: Class, due: Instant) {
        if let Some(record) = self.records.get_mut(&address) {
            if let Some((class, due)) = record.queued.replace((class, due)) {
                self.queues[class as usize].remove(&(due, address));
            }
            self.queues[class as usize].insert((due, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::backend::Way;
    use crate::mac::MacAddr;

    fn peers(count: u8) -> PeerMap {
        let peer = |n| Peer {
            subnet: format!("10.244.{n}.0/24").parse().expect("a subnet"),
            vtep: IpAddr::from([192, 168, 0, n]),
            way: Way::Vxlan {
                mac: MacAddr([2, 0, 0, 0, 0, n]),
            },
        };
        (1..=count).map(peer).map(|it| (it.subnet, it)).collect()
    }

    /// Lets time pass from event to event; `answers` says whether a peer answers. Returns the
    /// requests.
    fn run(
        checks: &mut Checks,
        now: &mut Instant,
        time: Duration,
        answers: impl Fn(Ipv4Addr) -> bool,
    ) -> Vec<(Instant, Ipv4Addr)> {
        let (end, mut sent) = (*now + time, Vec::new());
        while let Some(next) = checks.next().filter(|next| *next <= end) {
            assert!(next >= *now || sent.is_empty(), "time stands still");
            *now = next.max(*now);
            checks.expire(*now);
            for (address, _) in checks.take_due(*now) {
                sent.push((*now, address));
                if answers(address) {
                    checks.answered(address, *now);
                }
            }
        }
        *now = end;
        sent
    }

    fn broken(checks: &Checks) -> Vec<String> {
        checks
            .broken()
            .map(|peer| peer.subnet.to_string())
            .collect()
    }

    #[test]
    fn who_does_not_answer_is_named_until_it_does() {
        let (mut checks, mut now) = (Checks::default(), Instant::now());
        checks.follow(&peers(3), now);
        let deaf = Ipv4Addr::new(10, 244, 2, 0);
        run(&mut checks, &mut now, ANSWER * 2, |to| to != deaf);
        assert!(broken(&checks).is_empty(), "two misses are chance");
        run(&mut checks, &mut now, ANSWER * 2, |to| to != deaf);
        assert_eq!(broken(&checks), ["10.244.2.0/24"]);
        run(&mut checks, &mut now, BROKEN, |_| true);
        assert!(broken(&checks).is_empty(), "one answer is enough");
        // A peer that has answered for a long time is detected as well.
        run(&mut checks, &mut now, WHOLE + ANSWER * 4, |to| to != deaf);
        assert_eq!(broken(&checks), ["10.244.2.0/24"]);
        assert!(checks.follow(&peers(1), now), "it is no peer any more");
        assert!(broken(&checks).is_empty());
    }

    #[test]
    fn many_peers_do_not_mean_many_requests_and_new_ones_come_first() {
        let (mut checks, mut now) = (Checks::default(), Instant::now());
        let start = now;
        checks.follow(&peers(250), now);
        let sent = run(&mut checks, &mut now, Duration::from_secs(600), |_| true);
        let seconds = now.duration_since(start).as_secs() as usize;
        assert!(sent.len() <= 250 * (seconds / 60 + 1), "{}", sent.len());
        for (at, _) in &sent {
            let soon = |(other, _): &&(Instant, Ipv4Addr)| *other >= *at && *other < *at + PAUSE;
            assert!(sent.iter().filter(soon).count() <= BURST);
        }
        // All peers are due at once, and one is new.
        now += WHOLE;
        checks.follow(&peers(251), now);
        let sent = run(&mut checks, &mut now, Duration::ZERO, |_| true);
        assert_eq!(sent[0].1, Ipv4Addr::new(10, 244, 251, 0));
        assert_eq!(sent.len(), BURST);
    }

    #[test]
    fn an_answer_that_comes_late_heals_and_is_no_miss_later() {
        let (mut checks, now) = (Checks::default(), Instant::now());
        checks.follow(&peers(1), now);
        let address = checks.take_due(now)[0].0;
        assert!(!checks.answered(address, now + ANSWER / 2));
        assert!(!checks.expire(now + ANSWER));
        assert_eq!(checks.records[&address].misses, 0);
        assert!(
            !checks.answered(Ipv4Addr::new(10, 244, 9, 0), now),
            "a stranger"
        );
    }
}
