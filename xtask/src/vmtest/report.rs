//! What came of the machines, for people and for scripts.

use std::path::PathBuf;

use serde::Serialize;

use crate::count::Count;
use crate::lab::table::table;

/// What came of one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Series of the kernel, as users name it.
    pub kernel: &'static str,
    /// What `uname -r` says.
    pub release: String,
    /// Tests that passed and failed.
    #[serde(flatten)]
    pub count: Count,
    /// Why the run as a whole failed: the machine did not boot, died, or took too long.
    pub problem: Option<String>,
    /// Whether a first boot was lost.
    pub booted_twice: bool,
    /// Whole seconds, from the start of the machine to its end.
    pub seconds: u64,
    /// The kernel's messages.
    pub console: PathBuf,
    /// What the tests wrote.
    pub log: PathBuf,
}

impl Report {
    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.problem.is_none() && self.count.failed == 0 && self.count.passed > 0
    }
}

/// One line for each kernel.
pub fn render(reports: &[Report]) -> String {
    let mut table = table([
        "KERNEL", "RELEASE", "PASSED", "FAILED", "SECONDS", "RESULT", "LOG",
    ]);
    for report in reports {
        let result = match (&report.problem, report.passed()) {
            (Some(problem), _) => problem.lines().next().unwrap_or_default(),
            (None, true) if report.booted_twice => "ok (a first boot was lost)",
            (None, true) => "ok",
            (None, false) => "FAILED",
        };
        table.add_row([
            report.kernel,
            &report.release,
            &report.count.passed.to_string(),
            &report.count.failed.to_string(),
            &report.seconds.to_string(),
            result,
            &report.log.display().to_string(),
        ]);
    }
    table.to_string()
}
