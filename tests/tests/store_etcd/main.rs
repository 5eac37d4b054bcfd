//! The etcd store, against a real etcd.

mod access;
mod claims;
mod outages;
mod server;
mod services;
#[path = "../support/mod.rs"]
mod support;
mod watch;

use std::time::Duration;

const TTL: Duration = Duration::from_secs(24 * 3600);
const SHORT: Duration = Duration::from_secs(6);
const PREFIX: &str = "/coreos.com/network";
