//! Runs the programs that configure netfilter.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::secret::ETCD_PASSWORD_ENV;
use crate::deadline::{self, Deadline};

/// Longest duration of a program, in which `iptables --wait` also waits for the lock of others.
const TOOL_DEADLINE: Duration = Duration::from_secs(20);
/// The lock of iptables (legacy): a file for all tables.
const XTABLES_LOCK: &str = "/run/xtables.lock";

/// A program that could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The program is not installed.
    #[error("{0}: program not found; install it or put it on PATH")]
    Missing(&'static str),
    /// The program could not be started, or its pipes failed.
    #[error("{program}: {source}")]
    Io {
        /// The program.
        program: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// The program ended with an error.
    #[error("{program} {arguments}: {stderr}{}", privilege(.stderr))]
    Failed {
        /// The program.
        program: &'static str,
        /// Its arguments.
        arguments: String,
        /// Its exit status; absent where a signal ended it.
        status: Option<i32>,
        /// The program's standard error.
        stderr: String,
    },
    /// The program did not end in time and was killed.
    #[error(
        "{program} {arguments}: not done within {} s{}",
        .allowed.as_secs(),
        held(.holder.as_ref())
    )]
    Deadline {
        /// The program.
        program: &'static str,
        /// Its arguments.
        arguments: String,
        /// The time that the program was given.
        allowed: Duration,
        /// The process that holds the lock that iptables waits for.
        holder: Option<String>,
    },
}

/// The exit status of iptables where it lacks a resource at the moment: its lock, memory, a
/// privilege (`RESOURCE_PROBLEM` in its `xtables.h`).
const RESOURCE_PROBLEM: i32 = 4;

impl ToolError {
    /// Whether the program failed for lack of a resource, so that its failure does not answer the
    /// question asked.
    #[must_use]
    pub fn is_inconclusive(&self) -> bool {
        match self {
            Self::Missing(_) => false,
            Self::Io { .. } | Self::Deadline { .. } => true,
            Self::Failed { status, stderr, .. } => {
                status.is_none_or(|status| status == RESOURCE_PROBLEM)
                    || !privilege(stderr).is_empty()
            }
        }
    }
}

fn held(holder: Option<&String>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!("; {holder} holds {XTABLES_LOCK}")
    })
}

/// The missing privilege where the kernel does not permit a program's call.
fn privilege(stderr: &str) -> &'static str {
    let refusals = ["Operation not permitted", "Permission denied"];
    if refusals.iter().any(|refusal| stderr.contains(refusal)) {
        "; this needs CAP_NET_ADMIN and CAP_NET_RAW"
    } else {
        ""
    }
}

/// Runs `program` with `input` on its standard input and returns what it prints.
pub(super) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ToolError> {
    run_until(Deadline::after(TOOL_DEADLINE), program, arguments, input).await
}

/// Runs a program as [`run`], until `deadline`.
pub(crate) async fn run_until(
    deadline: Deadline,
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ToolError> {
    let io = |source| ToolError::Io { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove(ETCD_PASSWORD_ENV)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ToolError::Missing(program),
            _ => io(source),
        })?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that stops reading has something to say on stderr, which is worth more.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = timeout(deadline.left(), work)
        .await
        .map_err(|_| ToolError::Deadline {
            program,
            arguments: arguments.join(" "),
            allowed: deadline.allowed(),
            holder: deadline::holder(Path::new(XTABLES_LOCK))
                .filter(|_| program.contains("tables")),
        })?
        .map_err(io)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let stderr = if stderr.is_empty() {
        output.status.to_string()
    } else {
        stderr
    };
    Err(ToolError::Failed {
        program,
        arguments: arguments.join(" "),
        status: output.status.code(),
        stderr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_an_answer() {
        // As iptables 1.8.9 says it.
        let failed = |status, stderr: &str| ToolError::Failed {
            program: "iptables",
            arguments: "-S X".to_owned(),
            status,
            stderr: stderr.to_owned(),
        };
        for answer in [
            failed(Some(1), "iptables: No chain/target/match by that name."),
            failed(
                Some(1),
                "chain `X' in table `nat' is incompatible, use 'nft' tool.",
            ),
            failed(
                Some(3),
                "can't initialize iptables table `nat': Table does not exist",
            ),
            ToolError::Missing("iptables"),
        ] {
            assert!(!answer.is_inconclusive(), "{answer}");
        }
        for nothing in [
            failed(
                Some(4),
                "Another app is currently holding the xtables lock.",
            ),
            failed(
                Some(3),
                "can't initialize iptables table `nat': Permission denied",
            ),
            failed(None, "signal: 9 (SIGKILL)"),
        ] {
            assert!(nothing.is_inconclusive(), "{nothing}");
        }
    }
}
