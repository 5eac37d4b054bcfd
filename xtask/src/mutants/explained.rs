//! Changes that no test can see, and why.

use super::program::Mutant;

/// A change that survives, with the reason. An entry must be removed when the change no longer
/// exists in the code, or when a test notices the change.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    /// Path in the repository.
    pub file: &'static str,
    /// The line without surrounding space. A line number would change with every line above.
    pub text: &'static str,
    /// In the words of cargo-mutants.
    pub change: &'static str,
    /// Why no test can see it.
    pub because: &'static str,
}

impl Explained {
    /// Whether the entry is about this mutant.
    pub fn explains(&self, mutant: &Mutant) -> bool {
        mutant.file == self.file && mutant.text == self.text && mutant.change == self.change
    }
}

/// The reason for a shift by zero.
const FIRST_FLAG: &str = "shifted by nothing, either way is the same";
/// The reason for bits that are never both set.
const DISJOINT: &str = "the two sides have no bit in common";
/// The reason for an assertion at compile time.
const COMPILED: &str = "an assertion at compile time, which holds";

const fn explained(
    file: &'static str,
    text: &'static str,
    change: &'static str,
    because: &'static str,
) -> Explained {
    Explained {
        file,
        text,
        change,
        because,
    }
}

/// All entries.
pub const ALL: &[Explained] = &[
    explained(
        "overlay-common/src/schema.rs",
        "pub const CONFIG_ACTIVE: u32 = 1 << 0;",
        "replace << with >>",
        FIRST_FLAG,
    ),
    explained(
        "overlay-common/src/schema.rs",
        "pub const POD_KERNEL_PATH: u16 = 1 << 0;",
        "replace << with >>",
        FIRST_FLAG,
    ),
    explained(
        "overlay-common/src/schema.rs",
        "pub const PEER_NEXT_HOP: u32 = 1 << 0;",
        "replace << with >>",
        FIRST_FLAG,
    ),
    explained(
        "overlay-common/src/verdict.rs",
        "while i < Verdict::ALL.len() {",
        "replace < with ==",
        COMPILED,
    ),
    explained(
        "overlay-common/src/verdict.rs",
        "while i < Verdict::ALL.len() {",
        "replace < with >",
        COMPILED,
    ),
    explained(
        "overlay-common/src/decide/mark.rs",
        "let ends = F::word(ip.source) ^ F::word(ip.destination).rotate_left(32);",
        "replace ^ with | in of",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/decide/mark.rs",
        "let rest = u64::from(first) << 8 | u64::from(ip.protocol);",
        "replace | with ^ in of",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/decide/mark.rs",
        "IS_MARK | (mixed >> 49) as u16",
        "replace | with ^ in of",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/decide/sending.rs",
        "const WANTED: u32 = CONFIG_ACTIVE | CONFIG_ENCAPSULATE_FOR_STACK;",
        "replace | with ^ in encapsulation",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/family/v6.rs",
        "u64::from(a ^ c) << 32 | u64::from(b ^ d)",
        "replace | with ^ in <impl Family for V6>::word",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/socket.rs",
        "u64::from(u32::from_be(high)) << u32::BITS | u64::from(u32::from_be(low))",
        "replace | with ^ in Server::order",
        DISJOINT,
    ),
    explained(
        "overlay-common/src/socket/decide.rs",
        "if other.order() < server.order() {",
        "replace < with <= in is_in",
        "two servers with one order are the same, which is asked before",
    ),
    explained(
        "overlay-common/src/socket/decide.rs",
        "first = slot + 1;",
        "replace + with * in is_in",
        "finds the same servers, in more steps",
    ),
    explained(
        "overlay-common/src/socket/decide.rs",
        "const STEPS: u32 = u32::BITS - super::MAX_SERVERS.leading_zeros();",
        "replace - with +",
        "the search ends by itself; the number is for the verifier",
    ),
    explained(
        "overlay-common/src/socket/decide.rs",
        "while place < MAX_TRANSLATIONS {",
        "replace < with <= in place_for",
        "there is no such place in the table",
    ),
    explained(
        "overlay-user/src/service/catalog.rs",
        "let network = networks.like(address);",
        "replace is_within -> bool with false",
        "costs memory, and nothing else",
    ),
    explained(
        "overlay-user/src/service/claims.rs",
        "right < (other.rank, &other.created, &other.name)",
        "replace < with <= in Claim::is_before",
        "two Services have two names",
    ),
    explained(
        "overlay-user/src/ipam.rs",
        "if Holder::read(&path) == Holder::Unreadable {",
        "replace == with != in AddressBook::reserve",
        "a line of the log, and nothing else",
    ),
];

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
