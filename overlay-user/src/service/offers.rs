//! The frontends that one Service offers on this node, and their servers.
//!
//! | frontend | served by |
//! |---|---|
//! | cluster IP | all servers, or those of this node (`internalTrafficPolicy: Local`) |
//! | external IP, load balancer's address, node port | all: `externalTrafficPolicy` is for others |
//!
//! A cluster IP that has servers on other nodes only is left to kube-proxy, because kube-proxy
//! drops packets to such an address and does not refuse them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::choice::Choice;
use super::judge::{Refusal, tell};
use super::spec::{Locality, OfferedPort, Slice, Spec};
use super::{Frontend, Serving, SessionAffinity};

/// Most frontends of one Service. The number of addresses times that of ports is limited, because
/// the Service's owner decides both.
const MOST: usize = 4096;

/// The right by which a Service has a frontend, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The cluster assigned the address to the Service.
    Cluster,
    /// The Service's owner, or a load balancer's controller, wrote the address.
    External,
    /// The cluster assigned the port of every node to the Service.
    NodePort,
}

/// Frontends, each with the right of the Service and the servers.
pub type Offers = BTreeMap<Frontend, (Rank, Arc<Serving>)>;

/// The offers of a Service. `cluster_ips` are the accepted ones of the Service; `is_server` judges
/// the address of a server.
pub fn offers<'a>(
    here: &Locality,
    spec: &Spec,
    cluster_ips: &[IpAddr],
    slices: impl Iterator<Item = &'a Slice> + Clone,
    is_server: impl Fn(IpAddr) -> bool,
    told: &mut Vec<Refusal>,
) -> Offers {
    let mut offers = Offers::new();
    let mut count = 0;
    for port in &spec.ports {
        let families = [IpAddr::is_ipv4, IpAddr::is_ipv6];
        for is_family in families {
            let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
                addresses.iter().copied().filter(is_family).collect()
            };
            let inside = of_family(cluster_ips);
            let external = of_family(&spec.external);
            let nodes = of_family(&here.addresses);
            if inside.is_empty() && external.is_empty() && port.node_port.is_none() {
                continue;
            }
            let choice = choose(port, slices.clone(), |address| {
                is_family(&address) && is_server(address)
            });
            let serving = |servers| {
                let port_id = port.id;
                let affinity = spec
                    .affinity
                    .map(|lasts| SessionAffinity { lasts, port_id });
                Arc::new(Serving { servers, affinity })
            };
            let anywhere = serving(choice.anywhere());
            let inner = if spec.is_local {
                let inner = choice.here();
                // Servers elsewhere: left to kube-proxy.
                let is_dropped = inner.is_empty() && !anywhere.servers.is_empty();
                (!is_dropped).then(|| serving(inner))
            } else {
                Some(Arc::clone(&anywhere))
            };
            let mut offer = |addresses: &[IpAddr], number, rank, serving: &Arc<Serving>| {
                for address in addresses {
                    count += 1;
                    let frontend = Frontend {
                        address: *address,
                        port: number,
                        transport: port.transport,
                    };
                    if offers.len() < MOST {
                        let serving = || (rank, Arc::clone(serving));
                        offers.entry(frontend).or_insert_with(serving);
                    }
                }
            };
            if let Some(inner) = inner {
                offer(&inside, port.port, Rank::Cluster, &inner);
            }
            if let Some(number) = port.node_port {
                offer(&nodes, number, Rank::NodePort, &anywhere);
            }
            offer(&external, port.port, Rank::External, &anywhere);
        }
    }
    if count > MOST {
        tell(told, Refusal::Frontends(count, MOST));
    }
    offers
}

/// The servers of one port.
fn choose<'a>(
    port: &OfferedPort,
    slices: impl Iterator<Item = &'a Slice>,
    is_server: impl Fn(IpAddr) -> bool,
) -> Choice {
    let mut choice = Choice::default();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .filter(|(name, transport, _)| *name == port.name && *transport == port.transport);
        for (_, _, number) in ports {
            for server in slice.servers.iter().filter(|it| is_server(it.address)) {
                choice.add(SocketAddr::new(server.address, *number), *server);
            }
        }
    }
    choice
}
