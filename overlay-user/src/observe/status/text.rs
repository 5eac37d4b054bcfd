//! The status as text for people.

use super::view::{FastPathView, Status};
use crate::observe::{services, table};

/// The status as tables for people.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut parts = vec![head(status)];
    let text = |value: &dyn ToString| value.to_string();
    parts.push(table::render(
        &["peer", "vtep", "way", "mac", "fast path"],
        status.peers.iter().map(|peer| {
            let fast = peer
                .mtu
                .map_or("no".to_owned(), |mtu| format!("up to {mtu} bytes"));
            let mac = peer.mac.map_or("-".to_owned(), |mac| mac.to_string());
            let (vtep, way) = (text(&peer.vtep), peer.way.to_owned());
            vec![peer.subnet.clone(), vtep, way, mac, fast]
        }),
    ));
    parts.push(table::render(
        &["pod", "mac", "device", "path", "container"],
        status.pods.iter().map(|pod| {
            vec![
                text(&pod.address),
                text(&pod.mac),
                pod.device.clone(),
                pod.path.to_owned(),
                pod.container.clone(),
            ]
        }),
    ));
    parts.push(table::render(
        &["device", "hook", "programs"],
        status.attachments.iter().map(|attachment| {
            let programs: Vec<String> = attachment
                .programs
                .iter()
                .map(|program| {
                    let name = program.name.as_deref();
                    format!("{} ({})", name.unwrap_or("of others"), program.id)
                })
                .collect();
            vec![
                attachment.device.clone(),
                attachment.hook.to_owned(),
                programs.join(", "),
            ]
        }),
    ));
    parts.push(fast_path(&status.fast_path));
    if let Some(moment) = &status.leases_as_of {
        parts.push(format!(
            "leases         as known at {moment}: the store has not answered since the agent \
            started"
        ));
    }
    if let Some(policies) = &status.network_policies {
        parts.push(format!("policies       {policies}"));
    }
    if let Some(early) = &status.early_refusal {
        parts.push(format!("early refusal  {early}"));
    }
    if let Some(by) = &status.services.by {
        parts.push(format!("services       {by}"));
    }
    if let Some(programs) = &status.foreign_programs {
        parts.push(format!("programs       {programs}"));
    }
    parts.push(table::render(
        &["slow path cause", "packets"],
        status
            .slow_path
            .iter()
            .map(|(cause, packets)| vec![(*cause).to_owned(), text(packets)]),
    ));
    let sockets = status.services.sockets.iter();
    parts.push(table::render(
        &["socket", "as to Services", "times"],
        sockets.flat_map(|(operation, verdicts)| {
            verdicts.iter().map(move |(verdict, times)| {
                vec![(*operation).to_owned(), (*verdict).to_owned(), text(times)]
            })
        }),
    ));
    parts.push(table::render(
        &["refused", "fast path", "kernel path"],
        status.refused.iter().map(|(reason, refused)| {
            vec![
                (*reason).to_owned(),
                text(&refused.fast_path),
                text(&refused.kernel_path),
            ]
        }),
    ));
    parts.push(table::render(
        &["lease not believed", "why"],
        status
            .rejected
            .iter()
            .map(|lease| vec![lease.subject.clone(), lease.reason.clone()]),
    ));
    if !status.services.refused.told.is_empty() {
        parts.push(services::render_refused(&status.services.refused));
    }
    if let Some(why) = status.tcp_pick_up {
        parts.push(why.to_owned());
    }
    if let Some(why) = &status.unchecked {
        parts.push(format!("kernel paths to peers not checked: {why}"));
    }
    if !status.unreachable.is_empty() {
        parts.push(format!(
            "{} peers give no answer over the kernel path: node down, or a firewall drops the \
            VXLAN port or ICMP echo",
            status.unreachable.len()
        ));
        parts.push(table::render(
            &["no answer from", "vtep"],
            status
                .unreachable
                .iter()
                .map(|peer| vec![text(&peer.subnet), text(&peer.vtep)]),
        ));
    }
    for problem in &status.problems {
        parts.push(format!("problem: {problem}"));
    }
    parts.join("\n\n")
}

fn head(status: &Status) -> String {
    let agent = match (status.agent.running, status.agent.pid) {
        (true, Some(pid)) => format!("running, pid {pid}"),
        _ => "not running: what is shown is the kernel's state".to_owned(),
    };
    let Some(node) = &status.node else {
        return format!("agent    {agent}\nnode     no lease yet");
    };
    format!(
        "agent    {agent}\nnode     {} of {}, VTEP {} ({}), VNI {}, UDP port {}",
        node.subnet, node.network, node.vtep, node.vtep_mac, node.vni, node.port
    )
}

fn fast_path(fast_path: &FastPathView) -> String {
    let ratio = fast_path
        .hit_ratio
        .map_or("no packets yet".to_owned(), |ratio| {
            format!("{:.2} % of pod packets", ratio * 100.0)
        });
    let complete = if fast_path.complete || fast_path.state == "absent" {
        ""
    } else {
        ", not every lease has a place in it"
    };
    format!(
        "fast path  {}{complete}: {ratio}\n           {} redirected, {} routed, {} encapsulated, \
        {} decapsulated, {} slow, {} failed; {} flows owned by the stack",
        fast_path.state,
        fast_path.redirected,
        fast_path.routed,
        fast_path.encapsulated,
        fast_path.decapsulated,
        fast_path.slow,
        fast_path.failed,
        fast_path.stack_owned_flows
    )
}
