//! The kernel that these tests run on, and the expected features of it.

use std::fmt;

use overlay_user::datapath::programs::Mechanism;

/// Mainline's number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The release of the running kernel.
    pub fn running() -> Self {
        let name = nix::sys::utsname::uname().expect("uname");
        let release = name.release().to_string_lossy().into_owned();
        Self::of(&release).expect("a release of Linux")
    }

    fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The expected way of attaching the fast path on the running kernel; `None` where there is no fast
/// path.
pub fn expected_mechanism() -> Option<Mechanism> {
    match Version::running() {
        Version(..=4, _) | Version(5, ..13) => None,
        Version(5, _) | Version(6, ..6) => Some(Mechanism::Clsact),
        _ => Some(Mechanism::Tcx),
    }
}
