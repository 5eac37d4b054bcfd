//! The results of the machines, for people and for scripts.

use std::path::PathBuf;

use comfy_table::CellAlignment;
use serde::Serialize;

use crate::count::Count;
use crate::lab::table::{align_right, table};

/// The result of one machine.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Series of the kernel, by its name on the command line.
    pub kernel: &'static str,
    /// The release, as printed by `uname -r`.
    pub release: String,
    /// Names of the files in tests/tests that the machine ran.
    pub tests: Vec<String>,
    /// Numbers of tests that passed, failed and were ignored.
    #[serde(flatten)]
    pub count: Count,
    /// The names of the failed tests.
    pub failed_tests: Vec<String>,
    /// Number of tests that did not end before the end of the machine.
    pub unfinished: usize,
    /// Why the run as a whole failed: the machine did not boot, died, or took too long.
    pub problem: Option<String>,
    /// Whether the first boot failed and was repeated.
    pub booted_twice: bool,
    /// Whole seconds from the start of the machine to its end.
    pub seconds: u64,
    /// The kernel's messages.
    pub console: PathBuf,
    /// The output of the tests.
    pub log: PathBuf,
}

impl Report {
    /// Whether all tests passed.
    pub fn passed(&self) -> bool {
        self.problem.is_none() && self.count.failed == 0 && self.count.passed > 0
    }

    /// The result in a line.
    pub fn result(&self) -> String {
        let mut result = match (&self.problem, self.passed()) {
            (Some(problem), _) => problem.lines().next().unwrap_or_default().to_owned(),
            (None, true) if self.booted_twice => "ok (a first boot was lost)".to_owned(),
            (None, true) => "ok".to_owned(),
            (None, false) => "FAILED".to_owned(),
        };
        if !self.failed_tests.is_empty() {
            result += ": ";
            result += &self.failed_tests.join(", ");
        }
        result
    }
}

/// One line for each machine.
pub fn render(reports: &[Report]) -> String {
    let mut table = table([
        "KERNEL",
        "RELEASE",
        "TESTS",
        "PASSED",
        "FAILED",
        "IGNORED",
        "NOT ENDED",
        "SECONDS",
        "RESULT",
        "LOG",
    ]);
    align_right(&mut table, 3);
    for column in table.column_iter_mut().skip(8) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for report in reports {
        let count = &report.count;
        table.add_row([
            report.kernel,
            &report.release,
            &report.tests.join(", "),
            &count.passed.to_string(),
            &count.failed.to_string(),
            &count.ignored.to_string(),
            &report.unfinished.to_string(),
            &report.seconds.to_string(),
            &report.result(),
            &report.log.display().to_string(),
        ]);
    }
    table.to_string()
}
