//! What is measured in one run.

use super::class::Class;
use super::measure::{Lengths, Measure};
use super::underlay::Underlay;
use super::variant::Variant;

/// What to run.
pub struct Plan {
    pub rounds: usize,
    pub variants: Vec<Variant>,
    pub underlays: Vec<Underlay>,
    pub classes: Vec<Class>,
    /// How many Services there are rules for, where there are any.
    pub services: usize,
    pub measures: Vec<Measure>,
    pub lengths: Lengths,
    /// How many repetitions there may be in all, so that the end is in sight on a busy machine.
    pub repetitions: usize,
}
