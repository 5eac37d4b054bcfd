//! The fault campaign: all faults that are caused on purpose, each as a named case.
//!
//! A case causes a fault in a lab while paced traffic runs between pods of two nodes and of one.
//! After the fault the lab must return to its former state without help, no connection may break
//! unless the wire was cut, and no more datagrams may be lost than the case's budget. The cases are
//! data: [`all`] lists them, [`run()`] runs them, [`page`] writes the table of budgets.

mod agent;
mod attach;
mod clock;
mod cluster;
mod devices;
mod layouts;
mod maps;
mod marked;
mod memory;
mod nodes;
mod page;
mod pins;
mod run;
mod scene;
mod stage;
mod store;
mod tools;

use anyhow::{Result, bail};

pub use page::page;
pub use run::{Outcome, Settings, run};
pub use scene::Scene;
pub use stage::Stage;

/// One fault that is caused on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, in the manner of `agent-killed`.
    pub name: &'static str,
    /// The action that causes the fault.
    pub fault: &'static str,
    /// The condition that must hold besides those of every case.
    pub invariant: &'static str,
    /// The lab of the case.
    pub stage: Stage,
    /// Most datagrams that may be lost: none where the wire stays connected, else about twice the
    /// measured number. Two pairs of pods send [`crate::pace::RATE`] a second each way.
    pub budget: u64,
    /// Whether packets have no path for some time, so that connections may break.
    pub cuts_wire: bool,
    /// Whether the case is part of `cargo xtask test`; the others take long.
    pub quick: bool,
    /// Causes the fault, and repairs the parts that no other process repairs.
    run: fn(&Scene<'_>) -> Result<()>,
}

impl Case {
    /// What most cases have in common.
    const USUAL: Self = Self {
        name: "",
        fault: "",
        invariant: "",
        stage: Stage::Plain,
        budget: UNCUT,
        cuts_wire: false,
        quick: true,
        run: |_| Ok(()),
    };
}

/// Budget of a fault that leaves the wire connected.
const UNCUT: u64 = 0;

/// Every case, those of one stage together.
#[must_use]
pub fn all() -> Vec<&'static Case> {
    let mut cases: Vec<_> = [
        agent::CASES,
        layouts::CASES,
        pins::CASES,
        attach::CASES,
        store::CASES,
        cluster::CASES,
        clock::CASES,
        devices::CASES,
        nodes::CASES,
        maps::CASES,
        memory::CASES,
    ]
    .into_iter()
    .flatten()
    .collect();
    cases.sort_by_key(|case| case.stage);
    cases
}

/// The cases of these names.
///
/// # Errors
/// Names the case that does not exist.
pub fn named<S: AsRef<str>>(names: &[S]) -> Result<Vec<&'static Case>> {
    let all = all();
    for name in names {
        let name = name.as_ref();
        if !all.iter().any(|case| case.name == name) {
            let known: Vec<_> = all.iter().map(|case| case.name).collect();
            bail!("no case {name:?}; there are: {}", known.join(", "));
        }
    }
    let is_wanted = |case: &&Case| names.iter().any(|name| name.as_ref() == case.name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_command_line() {
        let mut names: Vec<_> = all().iter().map(|case| case.name).collect();
        let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(names.iter().all(plain), "{names:?}");
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = named(&["agent-killed", "x"]).expect_err("no such case");
        assert!(error.to_string().contains("no case \"x\""), "{error}");
    }

    #[test]
    fn what_leaves_the_wire_alone_may_lose_nothing() {
        let mut uncut = all().into_iter().filter(|case| !case.cuts_wire);
        assert!(uncut.all(|case| case.budget == UNCUT));
    }
}
