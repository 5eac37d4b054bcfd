//! The measurements of one run.

use super::class::Class;
use super::measure::{Lengths, Measure};
use super::underlay::Underlay;
use super::variant::Variant;

/// The measurements to make.
pub struct Plan {
    pub rounds: usize,
    pub variants: Vec<Variant>,
    pub underlays: Vec<Underlay>,
    pub classes: Vec<Class>,
    /// Number of Services in kube-proxy's rules, where there are rules.
    pub services: usize,
    pub measures: Vec<Measure>,
    pub lengths: Lengths,
    /// Most repetitions in total, so that the run ends in limited time on a busy machine.
    pub repetitions: usize,
}
