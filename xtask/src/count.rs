//! Numbers of tests that passed, failed and were ignored.

use std::fmt;
use std::ops::AddAssign;

use serde::Serialize;

/// Numbers of tests that passed, failed and were ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    /// Ignored tests, which are made for other places, such as machines with other kernels.
    pub ignored: usize,
}

impl Count {
    /// Whether no test ran.
    pub fn is_nothing(&self) -> bool {
        self.passed + self.failed == 0
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.ignored += more.ignored;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            ignored,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

/// The numbers in `test result: ok. 3 passed; 0 failed; …`.
pub fn closing_line(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

/// The name in `test some::name ... FAILED`.
pub fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered \
            out; finished in 0.01s";
        let count = Count {
            passed: 12,
            failed: 3,
            ignored: 1,
        };
        assert_eq!(closing_line(line), Some(count));
        assert_eq!(count.to_string(), "12 passed, 3 failed, 1 ignored");
        assert_eq!(closing_line("test result: maybe"), None);
        assert_eq!(closing_line("running 3 tests"), None);
    }

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 1 passed"), None);
    }

    #[test]
    fn ignored_tests_have_not_run() {
        let count = |ignored| Count {
            ignored,
            ..Count::default()
        };
        assert!(count(3).is_nothing());
    }
}
