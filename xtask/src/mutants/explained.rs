//! Changes that no test can see, and why.

use super::program::Mutant;

/// A change that survives, with the reason. One that is gone from the code, or that a test notices, has to leave the
/// list.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    /// In the repository.
    pub file: &'static str,
    /// The line without the space around it. Its number would change with every line above.
    pub text: &'static str,
    /// In the words of cargo-mutants.
    pub change: &'static str,
    /// Why no test can see it.
    pub because: &'static str,
}

impl Explained {
    /// Whether this is the change.
    pub fn explains(&self, mutant: &Mutant) -> bool {
        mutant.file == self.file && mutant.text == self.text && mutant.change == self.change
    }
}

/// All of them.
pub const ALL: &[Explained] = &[];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::workspace;

    #[test]
    fn what_is_explained_is_still_there() {
        for explained in ALL {
            let source = fs::read_to_string(workspace::root().join(explained.file));
            let is_there = source.is_ok_and(|it| it.lines().any(|it| it.trim() == explained.text));
            assert!(is_there, "{}: {}", explained.file, explained.text);
            assert!(!explained.because.is_empty(), "{}", explained.text);
        }
    }
}
