//! The results of the changes: counts, survivors, and whether the list of explained ones is up to
//! date.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::areas::Area;
use super::explained::Explained;
use super::program::{Fate, Mutant};
use crate::lab::table::table;

/// The results of all areas.
#[derive(Debug, Serialize)]
pub struct Report {
    pub areas: Vec<AreaReport>,
    /// Duration in whole seconds.
    pub seconds: u64,
}

/// The results of an area.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct AreaReport {
    pub area: &'static str,
    /// Changes that compile.
    pub mutants: usize,
    /// The mutants that a test noticed, by failing or by never ending.
    pub caught: usize,
    /// Mutants that no test can see, with the reasons.
    pub explained: Vec<Accepted>,
    /// Mutants that no test noticed.
    pub survived: Vec<Survivor>,
    /// Explanations of changes that a test noticed nevertheless.
    pub refuted: Vec<Survivor>,
}

/// A changed place that no test can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    #[serde(flatten)]
    pub survivor: Survivor,
    pub because: &'static str,
}

/// A changed place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survivor {
    pub file: String,
    pub line: usize,
    pub change: String,
}

impl Display for Survivor {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Self { file, line, change } = self;
        write!(f, "{file}:{line}: {change}")
    }
}

impl From<&Mutant> for Survivor {
    fn from(mutant: &Mutant) -> Self {
        Self {
            file: mutant.file.clone(),
            line: mutant.line,
            change: mutant.change.clone(),
        }
    }
}

impl AreaReport {
    pub fn new(area: &Area, mutants: &[Mutant], explained: &[Explained]) -> Self {
        let mut report = Self {
            area: area.name,
            ..Self::default()
        };
        for mutant in mutants.iter().filter(|mutant| area.has(&mutant.file)) {
            let explanation = explained.iter().find(|it| it.explains(mutant));
            let survivor = Survivor::from(mutant);
            match (mutant.fate, explanation) {
                (Fate::Unviable | Fate::Unchanged, _) => continue,
                (Fate::Survived, Some(Explained { because, .. })) => {
                    report.explained.push(Accepted { survivor, because });
                }
                (Fate::Survived, None) => report.survived.push(survivor),
                (Fate::Caught | Fate::Timeout, explanation) => {
                    report.caught += 1;
                    report.refuted.extend(explanation.map(|_| survivor));
                }
            }
            report.mutants += 1;
        }
        report
    }
}

impl Report {
    /// Whether every change that can be noticed was noticed.
    pub fn passed(&self) -> bool {
        self.complaints().is_empty()
    }

    /// The causes of a failure of the command, a line each.
    pub fn complaints(&self) -> Vec<String> {
        let line = |what: &str, it: &Survivor| format!("{what}: {it}");
        self.areas
            .iter()
            .flat_map(|area| {
                let survived = area.survived.iter().map(|it| line("no test notices", it));
                let refuted = area
                    .refuted
                    .iter()
                    .map(|it| line("explained, and yet noticed by a test", it));
                survived.chain(refuted)
            })
            .collect()
    }

    /// A line for each area, and one for each explanation.
    pub fn render(&self) -> String {
        let mut table = table(["AREA", "MUTANTS", "CAUGHT", "EXPLAINED", "SURVIVED"]);
        for area in &self.areas {
            table.add_row([
                area.area,
                &area.mutants.to_string(),
                &area.caught.to_string(),
                &area.explained.len().to_string(),
                &area.survived.len().to_string(),
            ]);
        }
        let accepted = self.areas.iter().flat_map(|area| &area.explained);
        let reasons = accepted.map(|it| format!("{}: {}\n", it.survivor, it.because));
        let reasons: String = reasons.collect();
        format!("{table}\n\n{reasons}{} s", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area {
        name: "one",
        package: "a",
        files: &["a/src/**"],
    };
    const EXPLAINED: &[Explained] = &[Explained {
        file: "a/src/b.rs",
        text: "x + 1",
        change: "replace + with - in x",
        because: "for this test",
    }];

    fn mutant(text: &str, fate: Fate) -> Mutant {
        Mutant {
            file: "a/src/b.rs".to_owned(),
            line: 7,
            text: text.to_owned(),
            change: "replace + with - in x".to_owned(),
            fate,
        }
    }

    fn report(mutants: &[Mutant]) -> Report {
        Report {
            areas: vec![AreaReport::new(&AREA, mutants, EXPLAINED)],
            seconds: 1,
        }
    }

    #[test]
    fn survivors_fail_unless_they_are_explained() {
        let explained = report(&[mutant("x + 1", Fate::Survived), mutant("y", Fate::Caught)]);
        assert!(explained.passed());
        assert_eq!(explained.areas[0].explained[0].because, "for this test");
        assert!(explained.render().contains("for this test"));
        let survived = report(&[mutant("x + 2", Fate::Survived), mutant("y", Fate::Timeout)]);
        assert_eq!(
            survived.complaints(),
            ["no test notices: a/src/b.rs:7: replace + with - in x"]
        );
        assert_eq!(
            (survived.areas[0].mutants, survived.areas[0].caught),
            (2, 1)
        );
    }

    #[test]
    fn an_explanation_has_to_be_true() {
        let refuted = report(&[mutant("x + 1", Fate::Caught)]);
        assert!(!refuted.passed());
    }

    #[test]
    fn what_does_not_compile_does_not_count() {
        let report = report(&[mutant("x + 2", Fate::Unviable)]);
        assert_eq!(report.areas[0].mutants, 0);
    }
}
