//! The lab as tables.

use std::collections::BTreeMap;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use overlay_tests::lab::Report;
use overlay_tests::reach::Relation;

/// Nodes, pods and the store, one table each.
pub fn render(report: &Report) -> String {
    let mut nodes = table([
        "NODE",
        "NAMESPACE",
        "UNDERLAY",
        "POD SUBNET",
        "AGENT",
        "READY",
        "LOG",
    ]);
    for node in &report.nodes {
        nodes.add_row([
            node.name.clone(),
            node.namespace.clone(),
            node.underlay_address.to_string(),
            node.subnet
                .map_or_else(|| "-".to_owned(), |subnet| subnet.to_string()),
            node.agent_pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            if node.ready { "yes" } else { "no" }.to_owned(),
            node.log.display().to_string(),
        ]);
    }
    let mut pods = table(["POD", "NODE", "NAMESPACE", "ADDRESS"]);
    for pod in &report.pods {
        let address = pod.address.to_string();
        pods.add_row([&pod.name, &pod.node, &pod.namespace, &address]);
    }
    let outside = &report.underlay;
    format!(
        "{nodes}\n\n{pods}\n\nstore: {} · underlay: {} in {} · outside: {} in {}",
        report.store.endpoint,
        outside.subnet,
        outside.namespace,
        outside.outside_address,
        outside.outside_namespace,
    )
}

/// Passed and all checks by relation.
pub fn reachability(sums: &BTreeMap<Relation, (usize, usize)>) -> String {
    let mut shown = table(["WHO REACHES WHOM", "CHECKS", "PASSED", ""]);
    for (relation, (passed, all)) in sums {
        let verdict = if passed == all { "ok" } else { "FAILED" };
        shown.add_row([
            relation.to_string(),
            all.to_string(),
            passed.to_string(),
            verdict.into(),
        ]);
    }
    format!("\n{shown}\n")
}

/// An empty table without lines.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// Aligns numbers to the right: every column from number `first` on, counted from 0.
pub fn align_right(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
