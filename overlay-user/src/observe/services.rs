//! The Services that sockets are given servers of, as tables for people.

use crate::datapath::services::FrontendView;
pub use crate::datapath::services::view as collect;
use crate::observe::table;

/// One line per address.
#[must_use]
pub fn render(services: &[FrontendView]) -> String {
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

    #[test]
    fn every_address_has_a_line() {
        let service = FrontendView {
            address: ([10, 96, 0, 10], 53).into(),
            transport: "udp",
            affinity_seconds: 0,
            servers: vec![([10, 244, 1, 2], 53).into(), ([10, 244, 2, 2], 53).into()],
        };
        let text = render(&[service]);
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
}
