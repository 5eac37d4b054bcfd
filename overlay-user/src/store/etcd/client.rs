//! A connection to whichever endpoint answers, and a deadline on everything asked of it.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Options;
use crate::store::Error;

/// Longest wait for one answer of one endpoint.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How long one endpoint has to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How often an open connection is probed. etcd hangs up on clients that probe twice within 5 s
/// (`--grpc-keepalive-min-time`).
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// The failure of an attempt at one endpoint.
enum Failure {
    /// Another endpoint, or the same one later, may do better.
    Unreachable(String),
    /// The cluster refused the request.
    Refused(String),
}

/// The endpoints, one of them in use.
#[derive(Debug)]
pub(super) struct Clients {
    options: Options,
    current: Mutex<Current>,
}

struct Current {
    endpoint: usize,
    client: Option<Client>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Clients {
    pub fn new(mut options: Options) -> Result<Self, Error> {
        options.endpoints = options
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim().to_owned())
            .filter(|endpoint| !endpoint.is_empty())
            .collect();
        if options.endpoints.is_empty() {
            return Err(Error::Options(
                "no etcd endpoint is given; see --etcd-endpoints".into(),
            ));
        }
        // Endpoints are told in logs and errors.
        if options.endpoints.iter().any(|url| url.contains('@')) {
            return Err(Error::Options(
                "an etcd endpoint carries a user name or password: give them by \
                --etcd-username and FLANNELD_ETCD_PASSWORD"
                    .into(),
            ));
        }
        if options.cert_file.is_some() != options.key_file.is_some() {
            return Err(Error::Options(
                "a client certificate needs both --etcd-certfile and --etcd-keyfile".into(),
            ));
        }
        let secure = options
            .endpoints
            .iter()
            .filter(|url| url.starts_with("https://"))
            .count();
        if secure < options.endpoints.len() && options.ca_file.is_some() {
            return Err(Error::Options(
                "--etcd-cafile is given, but not every endpoint begins with https://".into(),
            ));
        }
        Ok(Self {
            options,
            current: Mutex::new(Current {
                endpoint: 0,
                client: None,
            }),
        })
    }

    /// Asks the endpoint in use; if that does not answer in time, the others, once each. `call`
    /// names the request in errors.
    pub async fn call<T, F>(&self, call: String, ask: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut failures = Vec::new();
        for _ in &self.options.endpoints {
            let (endpoint, client) = self.client().await;
            let attempt = async { ask(client?).await.map_err(Failure::from) };
            match timeout(DEADLINE, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Refused(message))) => {
                    return Err(Error::Refused { call, message });
                }
                Ok(Err(Failure::Unreachable(message))) => {
                    failures.push(format!("{}: {message}", self.options.endpoints[endpoint]));
                }
                Err(_) => failures.push(format!(
                    "{}: no answer within {} s",
                    self.options.endpoints[endpoint],
                    DEADLINE.as_secs()
                )),
            }
            self.abandon(endpoint).await;
        }
        let message = format!(
            "{}; check --etcd-endpoints and that etcd runs",
            failures.join("; ")
        );
        Err(Error::Unreachable { call, message })
    }

    /// The client in use, made anew if need be.
    async fn client(&self) -> (usize, Result<Client, Failure>) {
        let mut current = self.current.lock().await;
        if let Some(client) = &current.client {
            return (current.endpoint, Ok(client.clone()));
        }
        let endpoint = current.endpoint;
        let made = match timeout(DEADLINE, self.connect(endpoint)).await {
            Ok(made) => made,
            Err(_) => Err(Failure::Unreachable("connecting takes too long".into())),
        };
        if let Ok(client) = &made {
            current.client = Some(client.clone());
        }
        (endpoint, made)
    }

    /// Turns to the next endpoint, unless another task already has.
    async fn abandon(&self, endpoint: usize) {
        let mut current = self.current.lock().await;
        if current.endpoint == endpoint {
            current.endpoint = (endpoint + 1) % self.options.endpoints.len();
            current.client = None;
        }
    }

    /// Certificates are read each time, so that renewed ones are taken up.
    async fn connect(&self, endpoint: usize) -> Result<Client, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_keep_alive(PROBE_EVERY, DEADLINE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let url = &self.options.endpoints[endpoint];
        if url.starts_with("https://") {
            let mut tls = match &self.options.ca_file {
                Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?)),
                None => TlsOptions::new().with_native_roots(),
            };
            if let (Some(cert), Some(key)) = (&self.options.cert_file, &self.options.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        if let Some((name, password)) = &self.options.user {
            options = options
                .with_user(name, password.reveal())
                .with_auto_token_refresh(true);
        }
        Client::connect([url], Some(options))
            .await
            .map_err(Failure::from)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::Unreachable(format!("cannot read {}: {error}", path.display())))
}

/// Whether an answer failed because it is larger than the client takes, 4 MiB: tonic then says
/// "decoded message length too large". gRPC's code for it, OutOfRange, is etcd's for a compacted
/// revision as well.
pub(super) fn is_too_large(message: &str) -> bool {
    message.contains("message length too large")
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        use etcd_client::Error as Etcd;
        match &error {
            Etcd::GRpcStatus(status) => {
                // gRPC's codes by which the cluster means what it says: InvalidArgument, NotFound,
                // AlreadyExists, PermissionDenied, ResourceExhausted, FailedPrecondition,
                // OutOfRange. All others come of connections, elections and time.
                let firm = matches!(status.code() as i32, 3 | 5 | 6 | 7 | 8 | 9 | 11);
                let message = status.message().to_owned();
                if firm {
                    Self::Refused(message)
                } else {
                    Self::Unreachable(message)
                }
            }
            Etcd::InvalidArgs(_) | Etcd::InvalidUri(_) | Etcd::LeaseKeepAliveError(_) => {
                Self::Refused(error.to_string())
            }
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: &str, ca: Option<&str>) -> Options {
        Options {
            endpoints: vec![endpoint.into()],
            prefix: "/x".into(),
            key_file: None,
            cert_file: None,
            ca_file: ca.map(Into::into),
            user: None,
        }
    }

    #[test]
    fn options_that_cannot_be_meant_are_refused() {
        assert!(Clients::new(options("http://a:1", None)).is_ok());
        assert!(
            Clients::new(options("https://a:1", Some("/ca.pem"))).is_ok(),
            "a CA is enough"
        );
        assert!(Clients::new(options(" ", None)).is_err());
        assert!(
            Clients::new(options("https://a:1", None)).is_ok(),
            "the system's authorities"
        );
        assert!(Clients::new(options("http://a:1", Some("/ca.pem"))).is_err());
        let half = Options {
            cert_file: Some("/c".into()),
            ..options("http://a:1", None)
        };
        assert!(Clients::new(half).is_err());
        let told = Clients::new(options("http://user:secret@a:1", None)).expect_err("a password");
        assert!(!told.to_string().contains("secret"), "{told}");
    }
}
