//! The machine of a measurement.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The facts that are needed to interpret the figures.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cores: usize,
    pub processor: String,
    /// The begin of the measurement, in universal time.
    pub date: String,
    pub command: String,
    pub revision: String,
    /// `/proc/loadavg` before the first round.
    pub load: String,
}

/// The facts in a line, without the load.
impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} · {} · Linux {} · {} cores · {}",
            self.date, self.revision, self.kernel, self.cores, self.processor
        )
    }
}

impl Machine {
    pub fn describe() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let processors = read("/proc/cpuinfo");
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let revision = overlay_tests::command::run(
            "git",
            [
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "describe",
                "--always",
                "--dirty",
            ],
        );
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            processor: model.unwrap_or("unknown").trim().to_owned(),
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%d %H:%M UTC")
                .to_string(),
            command: format!("cargo xtask {}", arguments.join(" ")),
            revision: revision.unwrap_or_default().trim().to_owned(),
            load: read("/proc/loadavg"),
        }
    }
}
