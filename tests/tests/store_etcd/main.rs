//! The etcd store, against a real etcd.

mod access;
mod claims;
mod outages;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod watch;

use std::time::Duration;

pub const TTL: Duration = Duration::from_secs(24 * 3600);
pub const SHORT: Duration = Duration::from_secs(6);
pub const PREFIX: &str = "/coreos.com/network";
