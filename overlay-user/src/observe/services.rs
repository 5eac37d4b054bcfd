//! The Services that sockets are given servers of, as tables for people.

use std::path::Path;

use serde::Serialize;

use crate::datapath::pins::Pins;
use crate::datapath::services::{FrontendView, view};
use crate::observe::agent_file::{AgentFile, RefusedServices};
use crate::observe::table;

/// Everything `overlayctl services` shows.
#[derive(Clone, Debug, Serialize)]
pub struct ServicesReport {
    /// Addresses, as the maps have them.
    pub services: Vec<FrontendView>,
    /// Services and EndpointSlices of which a part is refused; as of the last agent.
    pub refused: RefusedServices,
}

/// Looks at this node.
///
/// # Errors
/// When the maps or the agent's note cannot be read.
pub fn collect(pins: &Pins, run_dir: &Path) -> anyhow::Result<ServicesReport> {
    let agent = AgentFile::read(run_dir)?;
    Ok(ServicesReport {
        services: view(pins)?,
        refused: agent.map(|it| it.refused_services).unwrap_or_default(),
    })
}

/// One line per address, then one per refused object.
#[must_use]
pub fn render(shown: &ServicesReport) -> String {
    let mut text = render_services(&shown.services);
    if !shown.refused.told.is_empty() {
        text = format!("{text}\n\n{}", render_refused(&shown.refused));
    }
    text
}

/// One line per object.
pub(super) fn render_refused(refused: &RefusedServices) -> String {
    let told = refused.told.iter();
    let rows = told.map(|it| vec![it.subject.clone(), it.reasons.join("; ")]);
    let text = table::render(&["not taken as it is", "why"], rows);
    match refused.more {
        0 => text,
        more => format!("{text}\nand {more} more"),
    }
}

fn render_services(services: &[FrontendView]) -> String {
    let rows = services.iter().map(|service| {
        let servers: Vec<_> = service.servers.iter().map(ToString::to_string).collect();
        let affinity = match service.affinity_seconds {
            0 => "-".to_owned(),
            seconds => format!("{seconds} s"),
        };
        vec![
            service.address.to_string(),
            service.transport.to_owned(),
            affinity,
            servers.join(", "),
        ]
    });
    table::render(&["service", "transport", "affinity", "servers"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Kind, ObjectName, Refusal, Refusals, Subject};

    #[test]
    fn every_address_has_a_line() {
        let service = FrontendView {
            address: ([10, 96, 0, 10], 53).into(),
            transport: "udp",
            affinity_seconds: 0,
            servers: vec![([10, 244, 1, 2], 53).into(), ([10, 244, 2, 2], 53).into()],
        };
        let services = vec![service];
        let refused = RefusedServices::default();
        let text = render(&ServicesReport { services, refused });
        let line = text.lines().nth(1).expect("a line under the header");
        let words: Vec<_> = line.split_whitespace().collect();
        let wanted = [
            "10.96.0.10:53",
            "udp",
            "-",
            "10.244.1.2:53,",
            "10.244.2.2:53",
        ];
        assert_eq!(words, wanted);
    }

    #[test]
    fn what_is_refused_is_told_and_of_very_many_the_number() {
        let mut refusals = Refusals::default();
        let number = RefusedServices::MOST + 7;
        for number in 0..number {
            let subject = Subject {
                kind: Kind::Service,
                name: ObjectName::new("shop", &format!("web-{number:04}")),
            };
            refusals.insert(subject, vec![Refusal::Port(0), Refusal::Port(-1)].into());
        }
        let shown = ServicesReport {
            services: Vec::new(),
            refused: (&refusals).into(),
        };
        let text = render(&shown);
        let line = "Service shop/web-0000  0 is not a port; -1 is not a port";
        assert!(text.contains(line), "{text}");
        assert!(text.ends_with("and 7 more"), "{text}");
        assert_eq!(text.matches("shop/web-").count(), RefusedServices::MOST);
    }
}
