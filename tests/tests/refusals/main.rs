//! No pod and no node can pretend to be another one, whatever the form of the packet; odd packets
//! that forge nothing are delivered. Both hold on both paths.

mod case;
mod doubts;
mod former_vni;
mod from_network;
mod from_pod;
mod oddities;
mod protocols;
mod stage;

use std::net::Ipv4Addr;

use anyhow::Result;

use stage::Stage;

/// An address of the overlay that is in no lease.
const UNLEASED: Ipv4Addr = Ipv4Addr::new(10, 244, 200, 9);
/// An address outside of the overlay.
const FOREIGN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

#[test]
fn forgeries_are_refused_and_oddities_delivered_on_the_fast_path() -> Result<()> {
    try_everything("refuse-f", "auto", "auto")
}

#[test]
fn forgeries_are_refused_and_oddities_delivered_on_the_kernel_path() -> Result<()> {
    try_everything("refuse-k", "off", "nftables")
}

#[test]
fn forgeries_are_refused_and_oddities_delivered_where_programs_only_check() -> Result<()> {
    try_everything("refuse-c", "off", "bpf")
}

#[test]
fn a_router_advertisement_from_a_peer_leaves_no_trace_on_the_fast_path() -> Result<()> {
    Stage::set("refuse-ra-f", "auto", "auto")?.advertise()
}

#[test]
fn a_router_advertisement_from_a_peer_leaves_no_trace_on_the_kernel_path() -> Result<()> {
    Stage::set("refuse-ra-k", "off", "nftables")?.advertise()
}

#[test]
fn an_agent_that_is_gone_does_not_refuse_newcomers_for_ever() -> Result<()> {
    Stage::set("refuse-gone", "auto", "auto")?.outlive_the_agent()
}

#[test]
fn a_container_may_answer_by_its_other_interface() -> Result<()> {
    Stage::set("refuse-two", "auto", "auto")?.answer_by_the_other_interface()
}

fn try_everything(name: &str, fast_path: &str, guard: &str) -> Result<()> {
    let mut stage = Stage::set(name, fast_path, guard)?;
    stage.pod_sources();
    stage.pod_vxlan();
    stage.pod_arp();
    stage.network();
    stage.decoys();
    stage.other_protocols();
    stage.oddities();
    stage.play()?;
    stage.routed_network()
}
