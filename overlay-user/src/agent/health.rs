//! `/livez`, `/readyz`, `/healthz`, `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::agent::path_check::Paths;
use crate::agent::services;
use crate::config::AgentFlags;
use crate::datapath::maps::Maps;
use crate::datapath::pins::Pins;
use crate::datapath::services as sockets;
use crate::kernel::guard;
use crate::kernel::policies::Policy;
use crate::lease::{Lease, Rejections};
use crate::liveness::Liveness;
use crate::observe::metrics::{self, Scrape};
use crate::service::{Refusals, refused};
use crate::store::{LeaseState, StoreHealth};
use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use overlay_common::V4;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The part of a report that is about the fast path.
const FAST_PATH: &str = "fast path";

/// The result of a round.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Peers programmed in both paths.
    pub peers: usize,
    /// Pods of this node.
    pub pods: usize,
    /// Leases that were refused.
    pub rejected: Rejections,
    /// The time of the leases in use (RFC 3339), where an earlier agent knew them and the store has
    /// not answered this agent yet.
    pub leases_as_of: Option<String>,
    /// Foreign packet-filter rules that packets from pod to pod meet.
    pub policies: Vec<Policy>,
    synced: bool,
    store: StoreHealth,
    lease_expiry: Option<u64>,
    problems: BTreeMap<&'static str, Vec<String>>,
    notes: BTreeMap<&'static str, String>,
    /// Why pods of this node cannot be reached at all.
    pub hindrance: Option<String>,
}

impl Report {
    /// The report of a round that begins with these leases.
    pub fn new(state: &LeaseState, own: &Lease) -> Self {
        let expiry = own
            .expires
            .and_then(|expires| expires.duration_since(UNIX_EPOCH).ok());
        let mut report = Self {
            rejected: state.rejected.clone(),
            leases_as_of: state.as_of.map(rfc3339),
            synced: state.synced,
            store: state.store.clone(),
            lease_expiry: expiry.map(|expiry| expiry.as_secs()),
            ..Self::default()
        };
        if state.own.is_none() {
            let why = match &state.trouble {
                Some(trouble) => format!("lost, and not replaced yet: {trouble}"),
                None => "lost, and not replaced yet".to_owned(),
            };
            report.hinder("lease", why);
        }
        report
    }

    /// Adds a problem that the next round has to repair.
    pub fn problem(&mut self, part: &'static str, text: String) {
        self.problems.entry(part).or_default().push(text);
    }

    /// Adds a problem as [`Report::problem`]; pods of this node cannot be reached until then.
    pub fn hinder(&mut self, part: &'static str, text: String) {
        self.hindrance = Some(format!("{part}: {text}"));
        self.problem(part, text);
    }

    /// Why the fast path carries nothing although it is wanted.
    pub fn fast_path_down(&self) -> Option<String> {
        let note = self
            .notes
            .get(FAST_PATH)
            .filter(|it| it.starts_with("down"));
        let problems = self.problems.get(FAST_PATH).map(|it| it.join("; "));
        note.cloned().or(problems)
    }

    /// The note on foreign packet-filter rules.
    pub fn policies_note(&self) -> Option<&str> {
        self.notes.get("network policies").map(String::as_str)
    }

    /// Adds a note for the operator on a state that no round can repair.
    pub fn note(&mut self, part: &'static str, text: impl Into<String>) {
        self.notes.insert(part, text.into());
    }

    /// Adds leases that were refused although they are well-formed.
    pub fn reject(&mut self, rejected: &Rejections) {
        for (key, rejected) in rejected.iter() {
            self.rejected.insert(key.clone(), Arc::clone(rejected));
        }
    }

    /// Whether every known peer is programmed in both paths.
    pub fn is_ready(&self) -> bool {
        self.synced && self.problems.is_empty()
    }
}

/// The agent's progress: the wait before its first round, or the last round's report.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The report of the last round; none before the first.
    pub report: Option<Report>,
    /// What the agent waits for before its first round.
    pub waiting: String,
    /// Number of rounds so far.
    pub rounds: u64,
    /// Number of rounds that ended with a problem.
    pub failed_rounds: u64,
}

/// The agent's health, and the server that shows it.
pub struct Health {
    reports: watch::Sender<Progress>,
    address: Option<SocketAddr>,
}

#[derive(Clone)]
struct Shown {
    reports: watch::Receiver<Progress>,
    pins: Pins,
    liveness: Liveness,
    paths: watch::Receiver<Paths>,
    services: watch::Receiver<services::Standing>,
    refused: watch::Receiver<Refusals>,
}

impl Health {
    /// Starts the server, if the flags want one.
    pub async fn serve(
        flags: &AgentFlags,
        pins: Pins,
        liveness: Liveness,
        paths: watch::Receiver<Paths>,
        services: watch::Receiver<services::Standing>,
        refused: watch::Receiver<Refusals>,
    ) -> anyhow::Result<Self> {
        let (reports, shown) = watch::channel(Progress::default());
        if flags.node.healthz_port == 0 {
            return Ok(Self {
                reports,
                address: None,
            });
        }
        let wanted = SocketAddr::new(flags.node.healthz_ip, flags.node.healthz_port);
        let listener = TcpListener::bind(wanted).await.with_context(|| {
            format!(
                "listen on {wanted} for health checks: choose another by --healthz-ip and \
                --healthz-port"
            )
        })?;
        let address = listener
            .local_addr()
            .context("read the health server's address")?;
        let routes = Router::new()
            .route("/livez", get(livez))
            .route("/healthz", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(render_metrics))
            .with_state(Shown {
                reports: shown,
                pins,
                liveness,
                paths,
                services,
                refused,
            });
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!("health server: {error}");
            }
        });
        Ok(Self {
            reports,
            address: Some(address),
        })
    }

    /// The address on which the server listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// A receiver of the agent's progress, and of every change.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.reports.subscribe()
    }

    /// Publishes what the agent waits for before its first round. True if the text is new.
    pub fn wait_for(&self, what: String) -> bool {
        self.reports.send_if_modified(|standing| {
            let is_new = standing.waiting != what;
            standing.waiting = what;
            is_new
        })
    }

    /// Publishes the report of a round; logs what is new in the report.
    pub fn publish(&self, report: Report) {
        self.reports.send_modify(|standing| {
            let last = &mut standing.report;
            let known = last.as_ref().map(|last| &last.problems);
            for (part, problems) in &report.problems {
                if known.and_then(|known| known.get(part)) != Some(problems) {
                    tracing::warn!("{part}: {}", problems.join("; "));
                }
            }
            let nothing = Rejections::default();
            let refused = last.as_ref().map_or(&nothing, |last| &last.rejected);
            let new = report.rejected.differences(refused);
            for rejected in new.filter_map(|it| it.now) {
                tracing::warn!("lease {}: {}", rejected.subject, rejected.reason);
            }
            standing.rounds += 1;
            standing.failed_rounds += u64::from(!report.problems.is_empty());
            *last = Some(report);
        });
    }
}

/// A moment for people and programs, to the second.
fn rfc3339(moment: SystemTime) -> String {
    let moment = jiff::Timestamp::try_from(moment);
    moment.map_or_else(|error| error.to_string(), |it| format!("{it:.0}"))
}

/// Answers whether every task makes progress; where one does not, a restart of the agent may help.
async fn livez(State(shown): State<Shown>) -> impl IntoResponse {
    let stuck = shown.liveness.stuck();
    if stuck.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = stuck.iter().map(|task| format!("{task}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let standing = shown.reports.borrow().clone();
    let Some(report) = &standing.report else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: no lease yet\n{}\n", standing.waiting),
        );
    };
    let mut text = String::new();
    let mut line = |part: &str, what: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{part}: {what}");
    };
    line("peers", &report.peers.to_string());
    line("pods", &report.pods.to_string());
    let leases = match &report.leases_as_of {
        Some(moment) => format!("as known at {moment}; the store has not answered this agent yet"),
        None if report.synced => "known".to_owned(),
        None => "not read yet".to_owned(),
    };
    line("leases", &leases);
    if let StoreHealth::Unreachable { error, .. } = &report.store {
        line(
            "store",
            &format!("unreachable, going on with what is known: {error}"),
        );
    }
    for (part, note) in &report.notes {
        line(part, note);
    }
    if let Some(note) = shown.paths.borrow().note() {
        line("kernel paths to peers", &note);
    }
    for (part, problems) in &report.problems {
        line(part, &problems.join("; "));
    }
    let services = shown.services.borrow().clone();
    line("Services", &services.text());
    if let Some(note) = refused::note(&shown.refused.borrow()) {
        line("refused Services", &note);
    }
    for rejected in report.rejected.sorted() {
        line(
            "refused lease",
            &format!("{}: {}", rejected.subject, rejected.reason),
        );
    }
    if report.is_ready() && services.fault().is_none() {
        (StatusCode::OK, format!("ready\n{text}"))
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready\n{text}"),
        )
    }
}

async fn render_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let Progress {
        report,
        rounds,
        failed_rounds,
        ..
    } = shown.reports.borrow().clone();
    let report = report.unwrap_or_default();
    let packets = Maps::<V4>::open(&shown.pins)
        .and_then(|maps| maps.counters())
        .unwrap_or_default();
    let mut policy_engines = BTreeMap::new();
    for policy in &report.policies {
        *policy_engines.entry(policy.engine.clone()).or_default() += 1;
    }
    let guard = guard::counters().await.unwrap_or_default();
    let services = shown.services.borrow().clone();
    let scrape = Scrape {
        ready: report.is_ready() && services.fault().is_none(),
        service_addresses: services.frontends(),
        refused_services: refused::by_reason(&shown.refused.borrow()),
        sockets: sockets::counters(&shown.pins).unwrap_or_default(),
        peers: report.peers,
        pods: report.pods,
        unreachable_peers: shown.paths.borrow().unreachable.len(),
        rejected_leases: report.rejected.len(),
        policy_engines,
        lease_expiry: report.lease_expiry,
        store_reachable: report.store == StoreHealth::Ok,
        rounds,
        failed_rounds,
        packets,
        guard: guard
            .0
            .iter()
            .map(|(reason, packets)| (reason.name(), *packets))
            .collect(),
    };
    match metrics::render(scrape) {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}

#[cfg(test)]
mod tests;
