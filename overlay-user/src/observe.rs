//! The state of a node for operators: status, metrics, tables.

pub mod agent_file;
pub mod metrics;
pub mod probes;
pub mod services;
pub mod status;
pub mod table;
