//! kube-proxy as the oracle: a real one beside a real API server with random Services. For each
//! frontend its rules must have the same servers, refusals and affinity as our table.
//!
//! The rules are those of Kubernetes 1.20 in iptables mode. Features that this version lacks are
//! left to unit tests: `internalTrafficPolicy`, hints, endpoints that terminate. This version does
//! not let pods use external IPs that are not a node's (later versions do), so only the targets of
//! a rule are compared here, and not its conditions.

mod made;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use overlay_tests::wait::slowness;
use overlay_tests::{Lab, Options};
use overlay_user::service::ServiceTransport;
use overlay_user::store::{ServiceState, StoreHealth};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::server::{Place, Server, bare};
use super::support::{SeenServices, keep, open, run, serve};
use super::{MANIFEST, TTL};
use made::Made;
use proxy::KubeProxy;

/// The address of the lab's store.
const ADDRESS: &str = "192.168.66.254";
const SERVICES: usize = 250;
const PATIENCE: Duration = Duration::from_secs(60);
/// The seed of a run, as printed by that run, for its repetition.
const SEED: &str = "OVERLAY_TEST_SEED";

/// The result of connections to a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The servers; none for a refusal.
    servers: BTreeSet<String>,
    /// Affinity in seconds.
    affinity: Option<u64>,
}

/// Outcomes by frontends such as `10.96.0.1:80/tcp`.
type Outcomes = BTreeMap<String, Outcome>;

#[test]
fn the_table_is_what_kube_proxy_makes_of_random_services() -> Result<()> {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("{SEED}={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let lab = Lab::up(Options {
        nodes: 1,
        pods: 0,
        start_agents: false,
        ..Options::for_test("oracle")
    })?;
    let place = lab.namespace("store")?;
    let mut server = Server::start_at(Place {
        namespace: Some(place.clone()),
        address: ADDRESS,
    });
    let node = lab.node(1);
    let mut object = bare("n1", "10.244.1.0/24");
    let own = IpAddr::V4(node.underlay_address());
    object["status"] = json!({"addresses": [{"type": "InternalIP", "address": own}]});
    server.feed(&["apply", "--validate=false", "-f", "-"], MANIFEST);
    server.add_nodes(&[object]);
    let _running = KubeProxy::start(&lab, &server)?;

    let mut made = Made::default();
    made.create(&server, &mut random, SERVICES);
    let rules = || proxy::rules(&lab, own).unwrap_or_default();
    // The client is in the namespace of the API server.
    place.inside(|| {
        run(async {
            let node = keep(open(server.location("n1"), TTL));
            let served = serve(&node);
            agree(&served, &made, &rules).await;
            made.change(&server, &mut random);
            agree(&served, &made, &rules).await;
            // The known Services stay, and changes are learned.
            let before = outcomes(&served);
            server.stop_api();
            let is_away = |health: &StoreHealth| matches!(health, StoreHealth::Unreachable { .. });
            served
                .until("the outage", |state| is_away(&state.store))
                .await;
            assert_eq!(outcomes(&served), before);
            server.start_api();
            made.create(&server, &mut random, 20);
            let is_more = |state: &ServiceState| {
                let table = state.table.as_ref();
                table.is_some_and(|table| table.len() > before.len())
            };
            served.until("what has come since", is_more).await;
            served
                .until("its end", |state| state.store == StoreHealth::Ok)
                .await;
        });
    })
}

/// The outcomes of our table.
fn outcomes(served: &SeenServices) -> Outcomes {
    let state = served.state.borrow();
    let table = state.table.iter().flat_map(|table| table.iter());
    let outcomes = table.map(|(frontend, serving)| {
        let transport = match frontend.transport {
            ServiceTransport::Tcp => "tcp",
            ServiceTransport::Udp => "udp",
        };
        let outcome = Outcome {
            servers: serving.servers.iter().map(ToString::to_string).collect(),
            affinity: serving.affinity.map(|it| it.lasts.as_secs()),
        };
        let name = name(frontend.address, frontend.port, transport);
        (name, outcome.normal())
    });
    outcomes.collect()
}

impl Outcome {
    /// Affinity without servers is not visible in any rule.
    fn normal(mut self) -> Self {
        if self.servers.is_empty() {
            self.affinity = None;
        }
        self
    }
}

fn name(address: IpAddr, port: u16, transport: &str) -> String {
    format!("{address}:{port}/{transport}")
}

/// Waits until both have the same outcomes; otherwise fails with the differences.
async fn agree(served: &SeenServices, made: &Made, rules: &impl Fn() -> Outcomes) {
    let differences = || {
        let (ours, mut theirs) = (outcomes(served), rules());
        // These frontends are left to kube-proxy.
        theirs.retain(|name, _| !made.left.iter().any(|it| name.starts_with(it)));
        let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let lines = names.iter().filter(|it| ours.get(**it) != theirs.get(**it));
        let lines = lines.map(|it| {
            format!(
                "{it}: {:?}, kube-proxy {:?}",
                ours.get(*it),
                theirs.get(*it)
            )
        });
        (ours.len(), lines.collect::<Vec<_>>())
    };
    let begun = Instant::now();
    loop {
        let (count, lines) = differences();
        if lines.is_empty() && count > made.services.len() / 2 {
            let empty = rules().values().filter(|it| it.servers.is_empty()).count();
            println!("{count} frontends, {empty} of them refused");
            assert!(empty > 0 && empty < count, "all alike");
            return;
        }
        let shown = lines
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        let late = begun.elapsed() > PATIENCE * slowness();
        assert!(!late, "{count} frontends, {} differ:\n{shown}", lines.len());
        sleep(Duration::from_millis(500)).await;
    }
}
