//! Packets that travel without encapsulation, judged by RFC 1812 and what the tables say of the
//! link.

use overlay_common::V4;
use overlay_common::schema::Config;

use super::{ETHERNET_LEN, Packet, demand, from_itself, one_hop_on, peer_of};
use overlay_cases::world::World;
use overlay_common::visit::Visit;

/// What a pod sends to a peer on the link.
pub(super) fn sent(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    got: &[u8],
) -> Result<(), String> {
    let sent = Packet::read(&visit.frame)?;
    sent.is_plain(&visit.frame)?;
    from_itself(visit, world, &sent)?;
    let peer = peer_of(world, config, sent.ip.destination).ok_or("there is no such peer")?;
    demand(
        sent.ethernet.destination == config.bridge_mac,
        "it was not for the gateway",
    )?;
    demand(sent.ip.time_to_live > 1, "its time to live ends here")?;
    if visit.gso_size == 0 {
        let len = visit.frame.len() - ETHERNET_LEN;
        demand(len <= peer.mtu as usize, "it is longer than the link takes")?;
    }
    let on_the_wire = Packet::read(got)?;
    demand(
        got.starts_with(&peer.header[..12]),
        "it is not from this NIC to the peer's",
    )?;
    one_hop_on(&sent, &on_the_wire, sent.ip.ecn.value())
}

/// What comes from a peer on the link.
pub(super) fn received(
    visit: &Visit,
    world: &World,
    config: &Config<V4>,
    got: &[u8],
) -> Result<(), String> {
    let on_the_wire = Packet::read(&visit.frame)?;
    on_the_wire.is_plain(&visit.frame)?;
    let owner = peer_of(world, config, on_the_wire.ip.source);
    demand(
        owner.is_some_and(|peer| on_the_wire.ethernet.source == peer.header[..6]),
        "it is not from the node with that subnet",
    )?;
    demand(
        on_the_wire.ip.time_to_live > 1,
        "its time to live ends here",
    )?;
    let pod = world.pods.get(&on_the_wire.ip.destination);
    let pod = pod.ok_or("there is no such pod")?;
    let arrived = Packet::read(got)?;
    arrived.is_plain(got)?;
    demand(
        (arrived.ethernet.destination, arrived.ethernet.source) == (pod.mac, config.bridge_mac),
        "it is not from the gateway to the pod",
    )?;
    one_hop_on(&on_the_wire, &arrived, on_the_wire.ip.ecn.value())
}
