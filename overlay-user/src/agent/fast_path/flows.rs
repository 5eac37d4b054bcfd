//! The flows that the IP stack owns, kept in step with connection tracking.
//!
//! The egress hooks remember a flow as soon as the stack sends a translated packet. The hooks
//! cannot see flows from before they were attached, nor the end of a flow; connection tracking
//! knows both.

use std::collections::HashSet;
use std::time::Duration;

use crate::datapath::Error;
use crate::datapath::family::UserFamily as _;
use crate::kernel::conntrack::{self, Translated};
use ipnet::IpNet;
use overlay_common::V4;
use overlay_common::schema::{Flow, FlowKey};

use super::live::Live;
use crate::datapath::maps::now_ns;

/// The time for which a flow that connection tracking does not know stays, because other
/// translators (IPVS) may keep sending in that flow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the table hold exactly the flows that connection tracking translates. To be called after a
/// period in which the hooks did not see translations.
pub async fn rebuild(live: &Live, network: IpNet) -> Result<(), Error> {
    settle(live, network, Duration::ZERO).await
}

/// Removes flows that have ended, and adds flows that a full table has evicted.
pub async fn heal(live: &Live, network: IpNet) -> Result<(), Error> {
    settle(live, network, PATIENCE).await
}

/// Compares the flows that are in the table now with connection tracking. A flow that a hook sees
/// during the comparison stays, because the answer of connection tracking takes time and may be
/// older.
async fn settle(live: &Live, network: IpNet, patience: Duration) -> Result<(), Error> {
    let remembered = live.lock().maps.flows()?;
    let Some(mut missing) = translated(network).await? else {
        return Ok(());
    };
    let maps = &mut live.lock().maps;
    let now = now_ns();
    let before = now.saturating_sub(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
    for (key, flow) in remembered {
        let ended = !missing.remove(&key) && flow.last_seen_ns <= before;
        if ended && maps.flow(&key)? == Some(flow) {
            maps.remove_flow(&key)?;
        }
    }
    for key in missing {
        maps.add_flow(&key, Flow { last_seen_ns: now })?;
    }
    Ok(())
}

/// The flows on either side of a translation: packets as they reach the stack, and as the stack
/// sends them. `None` where the kernel has no connection tracking. A lost answer is an error,
/// because without knowledge of the flows their replies must not bypass the stack.
async fn translated(network: IpNet) -> Result<Option<HashSet<FlowKey<V4>>>, Error> {
    let pick = |connection| Some(sides(connection, network)).filter(|sides| *sides != [None; 2]);
    match conntrack::translated(network, pick).await {
        Ok(connections) => Ok(Some(connections.into_iter().flatten().flatten().collect())),
        Err(error) if conntrack::is_absent(&error) => {
            tracing::debug!("no connection tracking to ask: {error}");
            Ok(None)
        }
        Err(error) => Err(Error::Flows(error)),
    }
}

/// The initiator's and the responder's side of a connection, each where both its ends are in the
/// overlay.
///
/// The responder's side is the result of a Service's translation. The initiator's side is in the
/// overlay too where the stack took another source port: packets that the fast path carried past
/// the stack would keep the port that is already taken.
fn sides(connection: Translated, network: IpNet) -> [Option<FlowKey<V4>>; 2] {
    [connection.original, connection.reply].map(|side| {
        if !network.contains(&side.source) || !network.contains(&side.destination) {
            return None;
        }
        Some(FlowKey::new(
            (V4::from_ip(side.source)?, side.source_port),
            (V4::from_ip(side.destination)?, side.destination_port),
            connection.protocol,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::conntrack::Tuple;

    fn tuple(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Tuple {
        let address = |text: &str| text.parse().expect("an address");
        Tuple {
            source: address(source),
            destination: address(destination),
            source_port,
            destination_port,
        }
    }

    #[test]
    fn a_service_is_remembered_by_its_backend() {
        let network = "10.244.0.0/16".parse().expect("a network");
        let connection = Translated {
            protocol: 6,
            original: tuple("10.244.1.2", 40000, "10.96.0.1", 80),
            reply: tuple("10.244.2.3", 8080, "10.244.1.2", 40000),
        };
        let key = FlowKey::new(([10, 244, 1, 2], 40000), ([10, 244, 2, 3], 8080), 6);
        assert_eq!(sides(connection, network), [None, Some(key)]);
    }

    #[test]
    fn a_connection_with_another_source_port_is_remembered_by_both() {
        let network = "10.244.0.0/16".parse().expect("a network");
        let connection = Translated {
            protocol: 6,
            original: tuple("10.244.1.2", 40000, "10.244.2.3", 8080),
            reply: tuple("10.244.2.3", 8080, "10.244.1.2", 39119),
        };
        let key = |port| FlowKey::new(([10, 244, 1, 2], port), ([10, 244, 2, 3], 8080), 6);
        assert_eq!(
            sides(connection, network),
            [Some(key(40000)), Some(key(39119))]
        );
    }

    #[test]
    fn masqueraded_traffic_is_not_the_fast_paths_business() {
        let network = "10.244.0.0/16".parse().expect("a network");
        let connection = Translated {
            protocol: 6,
            original: tuple("10.244.1.2", 40000, "192.0.2.1", 80),
            reply: tuple("192.0.2.1", 80, "192.168.0.1", 40000),
        };
        assert_eq!(sides(connection, network), [None; 2]);
    }
}
