//! A CNI call as the runtime makes it: variables of the environment and a configuration on standard
//! input.

use std::path::PathBuf;

use rscni_types::error::Error as ProtocolError;
use rscni_types::types::{
    CNI_ARGS, CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, Cmd, ContainerId, InterfaceName,
};

use super::Error;
use crate::ipam::Attachment;

/// The runtime's command, with the variables that belong to the command.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Add a pod's interface in a network namespace, with the text of `CNI_ARGS`.
    Add(Attachment, PathBuf, String),
    /// Delete an attachment; the network namespace may not exist any more.
    Del(Attachment, Option<PathBuf>),
    /// Compare an attachment with the result of its ADD.
    Check(Attachment, PathBuf),
    /// Delete attachments that are not valid any more.
    Gc,
    /// Tell whether ADD would work.
    Status,
}

impl Request {
    /// Makes a request of the `CNI_*` variables, which `variable` looks up; empty ones count as
    /// missing. VERSION is `None`: it has no variables, and needs no configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`], code 4, if a variable is missing or malformed.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let required = |name| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| ProtocolError::missing_env(&[name]))
        };
        let attachment = || {
            Ok::<_, ProtocolError>(Attachment {
                container: ContainerId::try_from(required(CNI_CONTAINERID)?)?.to_string(),
                interface: interface(required(CNI_IFNAME)?)?,
            })
        };
        let request = match required(CNI_COMMAND)?.parse()? {
            Cmd::Add => Self::Add(
                attachment()?,
                required(CNI_NETNS)?.into(),
                variable(CNI_ARGS).unwrap_or_default(),
            ),
            Cmd::Del => Self::Del(attachment()?, required(CNI_NETNS).ok().map(PathBuf::from)),
            Cmd::Check => Self::Check(attachment()?, required(CNI_NETNS)?.into()),
            Cmd::Gc => Self::Gc,
            Cmd::Status => Self::Status,
            Cmd::Version => return Ok(None),
        };
        Ok(Some(request))
    }

    /// The verb alone.
    #[must_use]
    pub fn command(&self) -> Cmd {
        match self {
            Self::Add(..) => Cmd::Add,
            Self::Del(..) => Cmd::Del,
            Self::Check(..) => Cmd::Check,
            Self::Gc => Cmd::Gc,
            Self::Status => Cmd::Status,
        }
    }
}

/// The name of an interface. Specification and kernel allow control characters in it, the files of
/// addresses do not: an address that such an interface holds would never be found again.
fn interface(name: String) -> Result<String, ProtocolError> {
    if name.contains(char::is_control) {
        return Err(ProtocolError::InvalidEnvValue(format!(
            "{CNI_IFNAME} {name:?} has control characters"
        )));
    }
    Ok(InterfaceName::try_from(name)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(variables: &[(&str, &str)]) -> Result<Option<Request>, Error> {
        Request::new(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    const ADD: [(&str, &str); 4] = [
        (CNI_COMMAND, "ADD"),
        (CNI_CONTAINERID, "c1"),
        (CNI_IFNAME, "eth0"),
        (CNI_NETNS, "/run/netns/a"),
    ];

    #[test]
    fn variables_make_a_request() {
        let attachment = Attachment {
            container: "c1".into(),
            interface: "eth0".into(),
        };
        let add = Request::Add(attachment, "/run/netns/a".into(), String::new());
        assert_eq!(request(&ADD).expect("valid"), Some(add));
    }

    #[test]
    fn missing_variables_are_named() {
        for missing in 0..ADD.len() {
            let mut variables = ADD;
            variables[missing].1 = "";
            let error = request(&variables).expect_err("incomplete");
            assert_eq!(error.code(), 4);
            assert!(error.to_string().contains(ADD[missing].0), "{error}");
        }
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for (name, value) in [
            (CNI_CONTAINERID, "../x"),
            (CNI_IFNAME, "../x"),
            (CNI_IFNAME, "a b"),
            (CNI_IFNAME, "et\u{6}h0"),
        ] {
            let mut variables = ADD;
            for variable in variables.iter_mut().filter(|variable| variable.0 == name) {
                variable.1 = value;
            }
            assert_eq!(
                request(&variables).expect_err("malformed").code(),
                4,
                "{name} {value}"
            );
        }
    }

    #[test]
    fn del_needs_no_namespace() {
        let mut variables = ADD;
        variables[0].1 = "DEL";
        variables[3].1 = "";
        assert!(matches!(
            request(&variables),
            Ok(Some(Request::Del(_, None)))
        ));
    }
}
