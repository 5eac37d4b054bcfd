//! Text that must not reach a log.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The environment variable with the password for etcd, named as in flanneld. Programs that we run
/// do not inherit it.
pub const ETCD_PASSWORD_ENV: &str = "FLANNELD_ETCD_PASSWORD";

/// A password or a similar secret. Its `Debug` form hides the text, and there is no `Display` form.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one call that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_and_not_shown() {
        let secret: Secret = "hunter2".parse().expect("a secret");
        assert_eq!(format!("{secret:?}"), "<hidden>");
        assert_eq!(secret.reveal(), "hunter2");
    }
}
