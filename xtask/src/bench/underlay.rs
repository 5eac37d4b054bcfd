//! The cables of the measurement.

use clap::ValueEnum;
use serde::Serialize;

/// What the cable is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// A veth pair as it is: super-packets go through whole.
    Super,
    /// Like a wire: segments on the way, aggregated again by GRO where they arrive.
    Wire,
}

impl Underlay {
    /// The title for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Super => "super-packets",
            Self::Wire => "as a wire",
        }
    }
}
