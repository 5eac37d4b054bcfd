//! The plugin's errors, and the number of each in CNI.

use std::error::Error as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::config::subnet_env::SubnetEnvError;
use crate::ipam;
use crate::kernel::netns::NetnsError;
use crate::kernel::{self, ToolError};

/// Why a CNI call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request breaks the protocol: a variable, a version.
    #[error(transparent)]
    Protocol(#[from] rscni_types::error::Error),
    /// The configuration on standard input is not JSON of the right shape.
    #[error("cannot decode the network configuration on standard input")]
    Decode(#[from] serde_json::Error),
    /// The configuration asks for what the plugin cannot do.
    #[error("bad network configuration: {0}")]
    Config(String),
    /// The configuration has a field that the plugin does not have.
    #[error("{key} {value} is not supported by overlay-cni; leave it out")]
    Unsupported {
        /// The field.
        key: String,
        /// What it says, as JSON.
        value: String,
    },
    /// `CNI_NETNS` cannot be entered, or is the namespace that the plugin runs in.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A file cannot be used.
    #[error("cannot {action} {path}")]
    File {
        /// The action that failed, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The kernel refused a request, or did not answer in time.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The agent's `subnet.env` is missing or malformed.
    #[error(transparent)]
    SubnetEnv(#[from] SubnetEnvError),
    /// No address.
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    /// A packet-filter program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The runtime began a configuration and did not end it, for this many seconds.
    #[error(
        "the network configuration on standard input has no end: not closed within {0} s by the \
        runtime"
    )]
    Unfinished(u64),
    /// Another object on the node conflicts with the request.
    #[error("{0}")]
    Conflict(String),
    /// CHECK found the pod's network other than ADD left it.
    #[error("the pod's network is not as it was set up: {0}")]
    Changed(String),
    /// STATUS: an ADD would fail.
    #[error("pods cannot be added now{}", cut_off(*.limited))]
    Unavailable {
        /// Why.
        source: Box<Error>,
        /// Whether the pods that are there have no network either.
        limited: bool,
    },
}

/// First number that CNI leaves to plugins: the state of this node conflicts with the request.
const CODE_CONFLICT: u32 = 100;
/// CHECK failed.
const CODE_CHANGED: u32 = 101;

/// The part of STATUS's message about the existing pods.
fn cut_off(limited: bool) -> &'static str {
    if limited {
        ", and those on this node are cut off: their bridge is down"
    } else {
        ""
    }
}

impl Error {
    /// The number for `code` in the error JSON (CNI specification 1.1.0, section 5; 100 and up are
    /// ours).
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Protocol(error) => error.into(),
            Self::Unsupported { .. } => 2,
            Self::Netns(NetnsError::Enter { .. }) | Self::Kernel(kernel::Error::Netns(_)) => 3,
            Self::File { .. } => 5,
            Self::Decode(_) => 6,
            Self::Config(_) | Self::SubnetEnv(_) => match self {
                // Waiting helps here, and the runtime should do it.
                Self::SubnetEnv(SubnetEnvError::Read { .. }) => 11,
                _ => 7,
            },
            Self::Netns(NetnsError::Own(_)) => 8,
            // Locks and addresses are given back some day, and a busy kernel answers again.
            Self::Ipam(ipam::Error::Exhausted { .. } | ipam::Error::Locked { .. })
            | Self::Tool(ToolError::Deadline { .. })
            | Self::Kernel(kernel::Error::Deadline { .. })
            | Self::Unfinished(_) => 11,
            Self::Kernel(_)
            | Self::Ipam(ipam::Error::Files { .. })
            | Self::Tool(ToolError::Missing(_) | ToolError::Io { .. }) => 5,
            Self::Ipam(ipam::Error::TooSmall(_) | ipam::Error::Outside { .. }) => 7,
            Self::Ipam(ipam::Error::Duplicate { .. } | ipam::Error::Taken { .. })
            | Self::Tool(ToolError::Failed { .. })
            | Self::Conflict(_) => CODE_CONFLICT,
            Self::Changed(_) => CODE_CHANGED,
            Self::Unavailable { limited, .. } => 50 + u32::from(*limited),
        }
    }

    /// The JSON that a runtime expects on standard output, in version `version` of CNI. `msg` is
    /// the error itself, `details` its causes.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let msg = self.to_string();
        let mut causes: Vec<String> = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // The text of some errors includes their cause.
            if !causes.last().unwrap_or(&msg).contains(&text) {
                causes.push(text);
            }
            cause = error.source();
        }
        json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": msg,
            "details": causes.join(": "),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn json_has_the_error_and_its_causes() {
        let source = Box::new(Error::File {
            action: "read",
            path: "/run/x".into(),
            source: io::Error::from_raw_os_error(13),
        });
        let error = Error::Unavailable {
            source,
            limited: false,
        };
        assert_eq!(
            error.to_json("1.1.0"),
            json!({
                "cniVersion": "1.1.0",
                "code": 50,
                "msg": "pods cannot be added now",
                "details": "cannot read /run/x: Permission denied (os error 13)",
            })
        );
    }

    #[test]
    fn waiting_is_advised_where_it_helps() {
        let path = PathBuf::from("/run/flannel/subnet.env");
        let unread = SubnetEnvError::Read {
            path: path.clone(),
            source: io::ErrorKind::NotFound.into(),
        };
        let unread = Error::from(unread);
        assert_eq!(unread.code(), 11);
        let details = &unread.to_json("1.1.0")["details"];
        assert_eq!(details, "", "the message tells its cause itself");
        let torn = SubnetEnvError::Missing {
            path,
            names: vec!["FLANNEL_MTU"],
        };
        assert_eq!(Error::from(torn).code(), 7);
    }
}
