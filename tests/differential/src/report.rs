//! What a run of the fuzzer has reached.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use overlay_common::{Hook, Verdict};
use serde_json::json;

/// Packets by the hook that they came to and the verdict that they ended in.
pub type Ends = BTreeMap<(Hook, u32), u64>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Packets that went through a program and the decision.
    pub packets: u64,
    /// Packets that this kernel cannot make up.
    pub left_out: u64,
    /// Tables that they met.
    pub tables: u64,
    /// How they ended.
    pub ends: Ends,
    /// Ways through the decision that were seen.
    pub paths: usize,
    /// Differences.
    pub differences: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Packets a second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// How many packets at a hook ended in a verdict.
    pub fn of(&self, hook: Hook, verdict: Verdict) -> u64 {
        self.ends.get(&(hook, verdict as u32)).copied().unwrap_or(0)
    }

    /// Adds what another run has reached beside this one.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.left_out += other.left_out;
        self.tables += other.tables;
        self.differences += other.differences;
        for (end, packets) in &other.ends {
            *self.ends.entry(*end).or_default() += packets;
        }
    }

    /// For scripts.
    pub fn json(&self) -> serde_json::Value {
        let ends: Vec<_> = self
            .ends
            .iter()
            .map(|((hook, verdict), packets)| {
                json!({"hook": hook.name(), "verdict": name(*verdict), "packets": packets})
            })
            .collect();
        json!({
            "packets": self.packets,
            "packets_per_second": self.rate().round(),
            "seconds": self.took.as_secs_f64(),
            "left_out": self.left_out,
            "tables": self.tables,
            "paths": self.paths,
            "differences": self.differences,
            "ends": ends,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((hook, verdict), packets) in &self.ends {
            let share = 100.0 * *packets as f64 / self.packets.max(1) as f64;
            writeln!(
                f,
                "{:<9} {:<22} {packets:>12} {share:>6.2} %",
                hook.name(),
                name(*verdict)
            )?;
        }
        write!(
            f,
            "{} packets over {} tables in {:.1} s ({:.0} a second), {} ways through the decision, \
            {} differences",
            self.packets,
            self.tables,
            self.took.as_secs_f64(),
            self.rate(),
            self.paths,
            self.differences
        )
    }
}

fn name(verdict: u32) -> &'static str {
    Verdict::from_number(verdict).map_or("?", Verdict::name)
}
