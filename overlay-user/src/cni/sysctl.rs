//! Kernel settings below `/proc/sys/net`, of the thread's network namespace.

use std::fs;
use std::path::PathBuf;

/// The file of the setting `key`, such as `ipv4/ip_forward`.
#[must_use]
pub fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// Changes a setting that is desirable but not required for a pod. A failure is ignored, because a
/// kernel may lack the setting, or `/proc/sys` may be read-only.
pub fn try_set(key: &str, value: &str) {
    if let Err(error) = fs::write(path(key), value) {
        tracing::debug!(key, value, %error, "cannot set");
    }
}
