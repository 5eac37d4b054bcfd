//! One agent in a cluster of one size: the phases, one after the other.

use std::sync::mpsc::{self, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use overlay_tests::{Namespace, Process, interrupt};
use serde::Serialize;

use super::leases::{Invented, LeaseChange, ROUTERS, router_mac};
use super::pending::{Pending, Sent, Times};
use super::process::{Started, Time, memory};
use super::stage::{Agent, Stage, replace_router};
use super::store::Store;
use super::trace::{Calls, Trace};
use super::watching;
use crate::shell;

/// Longest time until an agent has set up the whole cluster.
const READY: Duration = Duration::from_secs(180);
/// Interval of the checks for that.
const READY_EVERY: Duration = Duration::from_millis(20);
/// Longest time until a change, or the rest at the end of the churn, has been followed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two changes that are measured one by one. The time is no divisor of an agent's own
/// periods.
const APART: Duration = Duration::from_millis(370);
/// Interval of the replacements of a router while leases change.
const ROUTER_EVERY: Duration = Duration::from_secs(1);

/// The durations of all phases.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Time between ready and idle, for an agent's work after it is ready.
    pub settle: Duration,
    pub idle: Duration,
    /// Changes that are measured one by one.
    pub singles: u32,
    /// Changes whose calls are counted.
    pub counted: u32,
    pub churn: Duration,
    /// Changes per second while leases churn.
    pub rate: u32,
}

impl Plan {
    fn churned(&self) -> u32 {
        (self.churn.as_secs_f64() * f64::from(self.rate)) as u32
    }

    /// Number of further invented nodes that the phases need.
    pub fn spare(&self) -> u32 {
        self.singles + self.counted + self.churned()
    }
}

/// The findings on one agent in a cluster of one size.
#[derive(Serialize)]
pub struct Scaled {
    pub agent: Agent,
    pub peers: u32,
    /// Time from the start of the agent until it reports ready and both paths lead to all peers.
    pub ready_seconds: f64,
    /// Resident memory after settling, and the maximum until the end.
    pub memory_mib: f64,
    pub most_memory_mib: f64,
    pub idle: Idle,
    pub single: Times,
    /// Cost of each change at a rate of one a second, upkeep included.
    pub calls_per_change: Option<Calls>,
    pub requests_per_change: f64,
    pub churn: Churn,
    /// Time from a router's new MAC address until no packet is sent to its old one, while leases
    /// churn.
    pub next_hop: Option<Times>,
    /// The load on an API server.
    pub watching: Option<watching::Loads>,
}

/// The cost of an idle agent.
#[derive(Serialize)]
pub struct Idle {
    pub seconds: f64,
    /// Share of one core, in hundredths.
    pub agent_percent: f64,
    pub children_percent: f64,
    pub programs_per_minute: f64,
    /// Requests to the store.
    pub requests_per_minute: f64,
}

#[derive(Serialize)]
pub struct Churn {
    /// Changes per second, as written.
    pub rate: f64,
    pub times: Times,
    /// Share of one core, in hundredths, until the last change was followed.
    pub agent_percent: f64,
    pub children_percent: f64,
}

/// Measures an agent, and ends it in any case.
pub fn measure(stage: &mut Stage, agent: &Agent, peers: u32, plan: &Plan) -> Result<Scaled> {
    let ready = ready(stage)?;
    say(agent, peers, &format!("ready after {ready:.2} s"));
    rest(plan.settle)?;
    let (memory_mib, _) = memory(&stage.process)?;
    let idle = idle(stage, plan.idle)?;
    let mut spare = (peers + 1..).map(Invented::new);
    say(agent, peers, &format!("{} single changes", plan.singles));
    let requests = stage.store.requests()?;
    let single = singles(stage, spare.by_ref().take(plan.singles as usize))?;
    let requests = stage.store.requests()? - requests;
    let counted: Vec<_> = spare.by_ref().take(plan.counted as usize).collect();
    let calls = calls(stage, &counted)?;
    say(agent, peers, &format!("churn of {} a second", plan.rate));
    let churned: Vec<_> = spare.take(plan.churned() as usize).collect();
    let (churn, next_hop) = churn(stage, &churned, plan)?;
    Ok(Scaled {
        agent: agent.clone(),
        peers,
        ready_seconds: ready,
        memory_mib,
        most_memory_mib: memory(&stage.process)?.1,
        idle,
        requests_per_change: requests as f64 / f64::from(plan.singles),
        single,
        calls_per_change: calls,
        churn,
        next_hop,
        watching: None,
    })
}

fn say(agent: &Agent, peers: u32, what: &str) {
    shell::progress(&format!("{}, {peers} peers: {what}", agent.name()));
}

/// Seconds from now until the agent is ready; the agent has just been started.
fn ready(stage: &mut Stage) -> Result<f64> {
    let start = Instant::now();
    while !stage.is_ready()? {
        interrupt::check()?;
        if start.elapsed() > READY {
            bail!("not ready after {} s; {}", READY.as_secs(), stage.log());
        }
        // Counting the entries of a large map takes some time, and slows the agent down.
        let next = Instant::now() + READY_EVERY;
        while Instant::now() < next {
            stage.look()?;
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Waits for `length`, and stops early when the user interrupts.
fn rest(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        interrupt::check()?;
        thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}

fn idle(stage: &mut Stage, length: Duration) -> Result<Idle> {
    let mut programs = Started::count(&stage.process, stage.directory())?;
    let usage = Usage::begin(&stage.process)?;
    let requests = stage.store.requests()?;
    rest(length)?;
    let (seconds, [agent_percent, children_percent]) = usage.end()?;
    let per_minute = |count: u64| count as f64 * 60.0 / seconds;
    Ok(Idle {
        seconds,
        agent_percent,
        children_percent,
        programs_per_minute: per_minute(programs.so_far()?),
        requests_per_minute: per_minute(stage.store.requests()? - requests),
    })
}

/// Processor time since a moment.
struct Usage<'p> {
    process: &'p Process,
    begin: Instant,
    time: Time,
}

impl<'p> Usage<'p> {
    fn begin(process: &'p Process) -> Result<Self> {
        Ok(Self {
            process,
            begin: Instant::now(),
            time: Time::of(process)?,
        })
    }

    /// Seconds until now, and the shares of one core, in hundredths, of the program and its
    /// children.
    fn end(self) -> Result<(f64, [f64; 2])> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let used = Time::of(self.process)? - self.time;
        Ok((
            seconds,
            [used.own, used.children].map(|used| used / seconds * 100.0),
        ))
    }
}

/// Measures new nodes, one after the other.
fn singles(stage: &mut Stage, nodes: impl Iterator<Item = Invented>) -> Result<Times> {
    let mut pending = Pending::default();
    for node in nodes {
        let start = Instant::now();
        stage.store.write(LeaseChange::Is(node))?;
        pending.add(Sent::Lease(LeaseChange::Is(node)), start);
        pending.wait(stage, PATIENCE)?;
        rest(APART)?;
    }
    Ok(pending.leases())
}

/// The calls for one change, of several that follow each other at one a second; `None` where the
/// agent, slowed down, cannot keep up.
fn calls(stage: &mut Stage, nodes: &[Invented]) -> Result<Option<Calls>> {
    let trace = Trace::start(&stage.process, &stage.directory().join("strace"))?;
    for node in nodes {
        let next = Instant::now() + Duration::from_secs(1);
        let mut pending = Pending::default();
        stage.store.write(LeaseChange::Is(*node))?;
        pending.add(Sent::Lease(LeaseChange::Is(*node)), Instant::now());
        pending.wait(stage, PATIENCE)?;
        if pending.leases().missing > 0 {
            shell::progress("calls are not counted: the agent is too slow when strace follows it");
            return Ok(None);
        }
        rest(next.saturating_duration_since(Instant::now()))?;
    }
    Ok(Some(trace.stop()?.per(nodes.len())))
}

/// Measures nodes that are added, moved and removed, in turn, and routers that are replaced
/// meanwhile.
fn churn(stage: &mut Stage, nodes: &[Invented], plan: &Plan) -> Result<(Churn, Option<Times>)> {
    let changes: Vec<_> = nodes.iter().map(|node| turn(*node)).collect();
    // A node that is moved or removed was added before.
    let mut pending = Pending::default();
    let old = nodes.iter().zip(&changes);
    let old = old.filter(|(node, change)| **change != LeaseChange::Is(**node));
    let old: Vec<_> = old.map(|(node, _)| *node).collect();
    stage.store.fill(old.iter().copied())?;
    for node in old {
        pending.add(Sent::Lease(LeaseChange::Is(node)), Instant::now());
    }
    pending.wait(stage, PATIENCE)?;
    rest(plan.settle)?;

    let mut pending = Pending::default();
    let process = stage.process.clone();
    let usage = Usage::begin(&process)?;
    let writer = Writer {
        store: stage.store.clone(),
        node: stage.namespace(),
        replaces_routers: stage.has_fast_path(),
        rate: plan.rate,
    };
    let (sender, receiver) = mpsc::channel();
    let lasted = thread::scope(|scope| -> Result<Duration> {
        let writer = scope.spawn(move || writer.write(&changes, &sender));
        loop {
            match receiver.try_recv() {
                Ok((sent, at)) => pending.add(sent, at),
                Err(TryRecvError::Empty) => pending.look(stage)?,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        writer.join().ok().context("the writer panicked")?
    })?;
    pending.wait(stage, PATIENCE)?;
    let (_, [agent_percent, children_percent]) = usage.end()?;
    let churn = Churn {
        rate: nodes.len() as f64 / lasted.as_secs_f64(),
        times: pending.leases(),
        agent_percent,
        children_percent,
    };
    Ok((churn, stage.has_fast_path().then(|| pending.routers())))
}

/// The change of a node in the churn.
fn turn(node: Invented) -> LeaseChange {
    match node.number % 3 {
        0 => LeaseChange::Is(node),
        1 => LeaseChange::Is(Invented {
            moved: true,
            ..node
        }),
        _ => LeaseChange::Gone(node),
    }
}

/// Makes the churn, on a separate thread, so that writing does not wait for the checks.
struct Writer {
    store: Store,
    node: Namespace,
    replaces_routers: bool,
    rate: u32,
}

impl Writer {
    /// Makes all changes at the plan's pace, and reports each with the time of its begin. Returns
    /// the duration.
    fn write(self, changes: &[LeaseChange], told: &Sender<(Sent, Instant)>) -> Result<Duration> {
        let begin = Instant::now();
        let mut router_at = begin + ROUTER_EVERY / 2;
        let mut replaced = 0;
        for (i, change) in (0..).zip(changes) {
            interrupt::check()?;
            let due = begin + Duration::from_secs(1) * i / self.rate;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Each router is replaced once, because a second replacement before the first was
            // followed could not be distinguished.
            if self.replaces_routers && replaced < ROUTERS && Instant::now() >= router_at {
                router_at += ROUTER_EVERY;
                let number = replaced;
                replaced += 1;
                let mac = router_mac(number, 1);
                let start = Instant::now();
                replace_router(&self.node, number, mac)?;
                // The receiver may have ended because of an error, which the receiver reports.
                let _ = told.send((Sent::Router { number, mac }, start));
            }
            let start = Instant::now();
            self.store.write(*change)?;
            let _ = told.send((Sent::Lease(*change), start));
        }
        Ok(begin.elapsed())
    }
}
