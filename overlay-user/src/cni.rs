//! The CNI plugin: adds a pod's interface on the overlay, and removes the interface.
//!
//! The plugin reads flannel's configuration, needs no daemon, and writes the same files as
//! flannel's plugins:
//!
//! | verb | module |
//! |---|---|
//! | ADD | [`add`] |
//! | DEL, GC | [`release`] |
//! | CHECK, STATUS | [`check`] |
//! | what guards a pod that no agent knows yet | [`guard`] |
//! | `overlay-cni install` | [`install`] |
//! | VERSION, and the form of a result | `result` |
//!
//! Specification: <https://github.com/containernetworking/cni/blob/v1.3.0/SPEC.md> (version 1.1.0).

mod abandoned;
pub mod add;
pub mod asked;
pub mod bridge;
pub mod check;
pub mod config;
mod error;
mod gc;
pub mod guard;
pub mod install;
pub mod masquerade;
pub mod release;
pub mod request;
mod result;
mod route;
pub mod sysctl;
pub mod veth;

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use rscni_types::types::{CNIResult, Cmd};
use rscni_types::version::SpecVersion;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use asked::Asked;
use config::NetConf;
pub use error::Error;
use guard::Agent;
use request::Request;
pub use result::versions;

use crate::deadline::Deadline;

/// Longest duration of a call: well below the two minutes after which runtimes give up, because
/// their error does not name what the call waited for.
const CALL: Duration = Duration::from_secs(30);

/// Answers one call: variables of the environment by way of `variable`, the configuration from
/// `input`. Returns the text for standard output, if there is any. `OVERLAY_BPFFS` is the directory
/// of the pins, and `OVERLAY_RUN_DIR` the agent's run directory, where they are not the default;
/// `OVERLAY_DEADLINE` is the longest duration of the call in seconds.
///
/// # Errors
///
/// The JSON of the error, which also goes to standard output.
pub async fn answer(
    variable: impl Fn(&str) -> Option<String>,
    input: impl Read + Send + 'static,
) -> Result<Option<Value>, Value> {
    let current = SpecVersion::CURRENT.to_string();
    let deadline = deadline(variable("OVERLAY_DEADLINE"));
    let request = Request::new(&variable).map_err(|error| error.to_json(&current))?;
    let Some(request) = request else {
        return Ok(Some(json!(versions())));
    };
    let agent = Agent::new(&variable);
    let limit = *deadline.as_ref().unwrap_or(&Deadline::after(CALL));
    let conf = read_until(limit, input).await;
    let conf = conf.map_err(|error| error.to_json(&current))?;
    let version = conf
        .version(request.command())
        .map_err(|error| error.to_json(&current))?;
    let answer = match deadline {
        Ok(deadline) => serve(deadline, &request, &conf, version, &agent).await,
        Err(error) => Err(error),
    };
    answer.map_err(|error| error.to_json(&version.to_string()))
}

fn deadline(seconds: Option<String>) -> Result<Deadline, Error> {
    let Some(text) = seconds else {
        return Ok(Deadline::after(CALL));
    };
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Deadline::after(Duration::from_secs(seconds))),
        _ => Err(Error::Config(format!(
            "OVERLAY_DEADLINE {text:?}: say how many seconds, 1 to 3600"
        ))),
    }
}

/// Reads the configuration on a thread of its own, because a read of standard input cannot be
/// cancelled at the deadline.
async fn read_until(
    deadline: Deadline,
    input: impl Read + Send + 'static,
) -> Result<NetConf, Error> {
    let (done, conf) = oneshot::channel();
    thread::spawn(move || {
        // The receiver has been dropped if the deadline has passed.
        let _ = done.send(NetConf::read(input));
    });
    let unfinished = || Error::Unfinished(deadline.allowed().as_secs());
    match tokio::time::timeout(deadline.left(), conf).await {
        Ok(Ok(conf)) => conf,
        Ok(Err(_)) | Err(_) => Err(unfinished()),
    }
}

/// Serves a request. Every wait for a lock, a program or the kernel ends at the deadline; undoing a
/// failed ADD has [`add::UNDO`] of its own.
async fn serve(
    deadline: Deadline,
    request: &Request,
    conf: &NetConf,
    version: SpecVersion,
    agent: &Agent,
) -> Result<Option<Value>, Error> {
    match request {
        Request::Add(attachment, netns, arguments) => {
            let asked = Asked::new(arguments, conf)?;
            let result = add::add(conf, attachment, netns, &asked, agent, deadline).await?;
            return Ok(Some(result::to_json(version, result)));
        }
        Request::Del(attachment, netns) => {
            release::del(conf, attachment, netns.as_deref(), agent, deadline).await?;
        }
        Request::Check(attachment, netns) => {
            check::check(conf, attachment, netns, deadline).await?
        }
        Request::Gc => gc::gc(conf, agent, deadline).await?,
        Request::Status => check::status(conf, deadline).await?,
    }
    Ok(None)
}

impl NetConf {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the input is not JSON of the right shape, [`Error::Config`] if the
    /// network's name could not be that of a directory.
    pub fn read(mut input: impl Read) -> Result<Self, Error> {
        let mut text = String::new();
        input
            .read_to_string(&mut text)
            .map_err(|source: io::Error| Error::File {
                action: "read",
                path: "standard input".into(),
                source,
            })?;
        let conf: Self = serde_json::from_str(&text)?;
        let name = &conf.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(plain) {
            return Err(Error::Config(format!(
                "{name:?} is not a network's name, which consists of letters, digits, `.`, `_` and \
                `-` and begins with a letter or digit"
            )));
        }
        Ok(conf)
    }

    /// The version of CNI to answer `command` in.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`], code 1, if the plugin does not support the version, or the version has
    /// no such command.
    pub fn version(&self, command: Cmd) -> Result<SpecVersion, Error> {
        let version = match self.cni_version.as_str() {
            // The specification's default.
            "" => SpecVersion::new(0, 1, 0),
            text => text.parse()?,
        };
        versions().validate(version)?;
        version.allows(command)?;
        Ok(version)
    }

    /// The result of the plugins before this one in the list.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the text is no result of CNI 0.3.0 or later.
    pub fn previous(&self) -> Result<Option<CNIResult>, Error> {
        Ok(self
            .prev_result
            .clone()
            .map(serde_json::from_value)
            .transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str, input: &str) -> Result<Option<Value>, Value> {
        call_with(command, io::Cursor::new(input.to_owned()))
    }

    fn call_with(command: &str, input: impl Read + Send + 'static) -> Result<Option<Value>, Value> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some("/none".to_owned()),
            "OVERLAY_DEADLINE" => Some("1".to_owned()),
            _ => None,
        };
        runtime.block_on(answer(variable, input))
    }

    fn code(command: &str, input: &str) -> Value {
        call(command, input).expect_err("an error")["code"].clone()
    }

    #[test]
    fn version_needs_nothing() {
        let versions = call("VERSION", "").expect("an answer").expect("a body");
        assert_eq!(versions["supportedVersions"][6], "1.1.0");
    }

    #[test]
    fn versions_limit_the_verbs() {
        for (command, version) in [
            ("ADD", "2.0.0"),
            ("CHECK", ""),
            ("CHECK", "0.3.1"),
            ("GC", "1.0.0"),
            ("STATUS", "1.0.0"),
        ] {
            let conf = json!({ "name": "cbr0", "cniVersion": version }).to_string();
            assert_eq!(code(command, &conf), 1, "{command} {version:?}");
        }
    }

    #[test]
    fn errors_are_answered_in_the_version_of_the_configuration() {
        let conf = r#"{"name":"cbr0","cniVersion":"0.4.0","subnetFile":"/none/subnet.env"}"#;
        let error = call("ADD", conf).expect_err("no lease yet");
        assert_eq!(
            (&error["cniVersion"], &error["code"]),
            (&json!("0.4.0"), &json!(11))
        );
    }

    #[test]
    fn a_configuration_without_an_end_is_not_waited_for() {
        let (input, _open) = io::pipe().expect("a pipe");
        let error = call_with("DEL", input).expect_err("no configuration");
        assert_eq!(error["code"], 11, "{error}");
        assert!(error["msg"].to_string().contains("within 1 s"), "{error}");
    }

    #[test]
    fn a_network_cannot_lead_elsewhere() {
        for name in ["", "..", "a/b", "-x"] {
            let conf = json!({ "name": name, "cniVersion": "1.0.0" }).to_string();
            assert_eq!(code("DEL", &conf), 7, "{name:?}");
        }
    }
}
