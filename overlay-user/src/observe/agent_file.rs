//! Files of a running agent in its run directory, for the tools: a lock, and a note.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Peer;
use crate::files;
use crate::lease::Rejected;
use crate::service::Refusals;

/// Names in the run directory.
const NAME: &str = "agent.json";
const LOCK: &str = "agent.lock";
/// Modes of the directory, if it has to be made, and of the lock.
const DIRECTORY: u32 = 0o755;
const FOR_ROOT: u32 = 0o600;
/// How often the lock is tried, and how long after each other.
const ATTEMPTS: u32 = 5;
const MOMENT: Duration = Duration::from_millis(20);

/// The right to be this node's agent, for as long as the process lives.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
}

impl AgentLock {
    /// Takes the lock; `None` where another agent has it.
    ///
    /// # Errors
    /// The call that failed.
    pub fn take(run_dir: &Path) -> Result<Option<Self>, Error> {
        let path = run_dir.join(LOCK);
        let failed = |call, source| Error {
            call,
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY)
            .create(run_dir)
            .map_err(|source| failed("create the directory of", source))?;
        // A process that can open the file can lock the file.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FOR_ROOT)
            .open(&path)
            .map_err(|source| failed("open", source))?;
        file.set_permissions(Permissions::from_mode(FOR_ROOT))
            .map_err(|source| failed("chmod", source))?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                // A tool that looks whether an agent runs holds it for a moment.
                Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => thread::sleep(MOMENT),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
            }
        }
        Ok(Some(Self { _file: file }))
    }

    /// Whether an agent has the lock. Process ids would not tell: the agent may live in a
    /// container.
    #[must_use]
    pub fn is_held(run_dir: &Path) -> bool {
        File::open(run_dir.join(LOCK))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// The agent's note for the tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFile {
    /// Process of the agent.
    pub pid: u32,
    /// Name of the device that the backend makes, if it makes one.
    pub device: Option<String>,
    /// The address on which the agent's health and metrics server listens.
    pub health: Option<SocketAddr>,
    /// The file in which the agent writes the node's subnet.
    pub subnet_file: PathBuf,
    /// The time of the leases in use (RFC 3339), where an earlier agent knew them and the store has
    /// not answered this agent yet.
    #[serde(default)]
    pub leases_as_of: Option<String>,
    /// Entries of the store that the agent refuses.
    #[serde(default)]
    pub rejected: Vec<RejectedLease>,
    /// Where hostile VXLAN is refused early, or why nowhere; absent without a fast path.
    #[serde(default)]
    pub early_refusal: Option<String>,
    /// Where the eBPF programs are from (`--programs`); absent where they are the agent's own.
    #[serde(default)]
    pub foreign_programs: Option<String>,
    /// Foreign packet-filter rules that pods' packets meet on the kernel path, and what follows;
    /// absent where there are none.
    #[serde(default)]
    pub network_policies: Option<String>,
    /// The translator of Services' addresses, and the reason.
    #[serde(default)]
    pub services: Option<String>,
    /// Services and EndpointSlices of which a part is refused.
    #[serde(default)]
    pub refused_services: RefusedServices,
    /// Peers that do not answer over the kernel path.
    #[serde(default)]
    pub unreachable: Vec<Peer>,
    /// Why no peer is sent an echo request; absent where peers are.
    #[serde(default)]
    pub unchecked: Option<String>,
}

/// A [`Rejected`] as tools show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLease {
    /// The lease's key, or the whole text of a key that is none.
    pub subject: String,
    /// Why, in a sentence.
    pub reason: String,
}

impl From<&Rejected> for RejectedLease {
    fn from(rejected: &Rejected) -> Self {
        Self {
            subject: rejected.subject.clone(),
            reason: rejected.reason.to_string(),
        }
    }
}

/// Services and EndpointSlices of which a part is refused. Only the first by name are listed,
/// because the number of such objects is up to their owners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedServices {
    /// At most [`RefusedServices::MOST`].
    pub told: Vec<RefusedObject>,
    /// Number of further objects, which are not listed.
    pub more: usize,
}

/// A Service or an EndpointSlice of which something is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedObject {
    /// Kind and name.
    pub subject: String,
    /// The refused parts and the reasons, each in a sentence.
    pub reasons: Vec<String>,
}

impl RefusedServices {
    /// At most so many objects are listed.
    pub const MOST: usize = 100;
}

impl From<&Refusals> for RefusedServices {
    fn from(refusals: &Refusals) -> Self {
        let mut all: Vec<_> = refusals.iter().collect();
        all.sort_unstable_by_key(|(subject, _)| *subject);
        let told = all.iter().take(Self::MOST);
        let told = told.map(|(subject, refusals)| RefusedObject {
            subject: subject.to_string(),
            reasons: refusals.iter().map(ToString::to_string).collect(),
        });
        Self {
            told: told.collect(),
            more: all.len().saturating_sub(Self::MOST),
        }
    }
}

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{call} {path}: {source}")]
pub struct Error {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl AgentFile {
    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// The call that failed.
    pub fn write(&self, run_dir: &Path) -> Result<(), Error> {
        let path = run_dir.join(NAME);
        let failed = |call| {
            let path = path.clone();
            move |source| Error { call, path, source }
        };
        let json = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .map_err(failed("encode"))?;
        let mut file = tempfile::NamedTempFile::new_in(run_dir).map_err(failed("create"))?;
        file.write_all(&json).map_err(failed("write"))?;
        file.persist(&path)
            .map_err(|error| failed("rename")(error.error))?;
        Ok(())
    }

    /// Reads the file; `None` where no agent has left one.
    ///
    /// # Errors
    /// The call that failed.
    pub fn read(run_dir: &Path) -> Result<Option<Self>, Error> {
        let path = run_dir.join(NAME);
        match fs::read(&path) {
            Ok(json) => Self::parse(&json).map(Some).map_err(|source| Error {
                call: "parse",
                path,
                source,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error {
                call: "read",
                path,
                source,
            }),
        }
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// What serde found wrong.
    pub fn parse(json: &[u8]) -> Result<Self, io::Error> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Removes the file; a missing file is no error.
    ///
    /// # Errors
    /// The call that failed.
    pub fn remove(run_dir: &Path) -> Result<(), Error> {
        let path = run_dir.join(NAME);
        files::remove(&path).map_err(|source| Error {
            call: "unlink",
            path,
            source,
        })
    }
}
