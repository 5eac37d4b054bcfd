//! The output of a machine's tests while they run. A machine may end in the middle of a test.

use crate::count::{self, Count};

/// The output so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tests of the programs that have ended.
    ended: Count,
    /// Tests of the program that runs.
    open: Count,
    /// Number of tests that the running program has announced.
    announced: usize,
    /// The running test.
    current: Option<String>,
    /// The names of tests that failed.
    failed: Vec<String>,
}

impl Told {
    /// Notes a line of the output.
    pub fn note(&mut self, line: &str) {
        if let Some(announced) = announced(line) {
            (self.announced, self.open, self.current) = (announced, Count::default(), None);
        } else if let Some(count) = count::closing_line(line) {
            self.ended += count;
            (self.announced, self.open, self.current) = (0, Count::default(), None);
        } else if let Some((name, outcome)) = begun(line) {
            self.current = Some(name.to_owned());
            self.end(outcome);
        } else {
            self.end(line);
        }
    }

    /// Notes the end of the running test, where `outcome` is a result. The output of a test is
    /// between its name and the result.
    fn end(&mut self, outcome: &str) {
        let Some(name) = &self.current else {
            return;
        };
        match outcome {
            "ok" => self.open.passed += 1,
            "FAILED" => {
                self.open.failed += 1;
                self.failed.push(name.clone());
            }
            _ if outcome.starts_with("ignored") => self.open.ignored += 1,
            _ => return,
        }
        self.current = None;
    }

    /// All tests that have ended.
    pub fn count(&self) -> Count {
        let mut count = self.ended;
        count += self.open;
        count
    }

    /// Number of tests that were announced and have not ended.
    pub fn unfinished(&self) -> usize {
        let Count {
            passed,
            failed,
            ignored,
        } = self.open;
        self.announced.saturating_sub(passed + failed + ignored)
    }

    /// The test that has begun and not ended.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The names of the failed tests.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }
}

/// The number in `running 3 tests`.
fn announced(line: &str) -> Option<usize> {
    let (number, tests) = line.strip_prefix("running ")?.split_once(' ')?;
    (tests == "test" || tests == "tests").then_some(number.parse().ok()?)
}

/// The name in `test some::name ... `, and the rest of the line.
fn begun(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    (!name.contains(' ')).then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Told {
        let mut told = Told::default();
        for line in lines {
            told.note(line);
        }
        told
    }

    const BEGIN: [&str; 7] = [
        "running 5 tests",
        "test a::quiet ... ok",
        "test a::made_for_others ... ignored, made for others",
        "test b::loud ... it writes",
        "and goes on",
        "FAILED",
        "test b::endless ... and",
    ];

    #[test]
    fn a_machine_that_ends_early_has_told_what_it_did() {
        let told = told(&BEGIN);
        let count = Count {
            passed: 1,
            failed: 1,
            ignored: 1,
        };
        assert_eq!(told.count(), count);
        assert_eq!(told.unfinished(), 2);
        assert_eq!(told.current(), Some("b::endless"));
        assert_eq!(told.failed(), ["b::loud"]);
    }

    #[test]
    fn closing_lines_have_the_last_word() {
        let mut told = told(&BEGIN);
        for line in [
            "a word without an end of lineok",
            "test c ... ok",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
            "running 1 test",
            "test d ... ok",
        ] {
            told.note(line);
        }
        let count = Count {
            passed: 4,
            failed: 1,
            ignored: 1,
        };
        assert_eq!((told.count(), told.unfinished()), (count, 0));
        assert_eq!(told.current(), None);
    }

    #[test]
    fn words_of_a_test_that_has_ended_are_nobodys() {
        assert_eq!(told(&["running 2 tests", "ok"]).count(), Count::default());
    }
}
