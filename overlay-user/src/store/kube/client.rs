//! A connection to the API server, with a deadline for every request.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use http::Request;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::WatchEvent;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

use super::Options;
use crate::lease::excerpt;
use crate::store::Error;

/// Longest wait for one answer of the server.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a connection to the server.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Interval of TCP probes on a silent connection, which cost the server's program nothing.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Number of consecutive probes without an answer after which the connection counts as broken.
const PROBES: u32 = 3;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server does not answer in time, or has an error of its own. Another attempt may succeed.
    Unreachable(String),
    /// The server refused the request.
    Refused {
        /// The status of HTTP.
        code: u16,
        /// The server's message, with the cure where there is one.
        message: String,
    },
}

impl Failure {
    /// The failure as the store's error; `call` names the request.
    pub fn of(self, call: impl Into<String>) -> Error {
        let call = call.into();
        match self {
            Self::Unreachable(message) => Error::Unreachable { call, message },
            Self::Refused { message, .. } => Error::Refused { call, message },
        }
    }

    /// Whether the server refused with this status.
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = match status.code {
                    401 => format!("{}; check the token or kubeconfig", status.message),
                    403 => format!(
                        "{}; the agent's ClusterRole must allow this",
                        status.message
                    ),
                    _ => status.message.clone(),
                };
                // Too many requests, and faults of the server itself, may pass.
                if status.code == 429 || status.code >= 500 {
                    Self::Unreachable(message)
                } else {
                    let code = status.code;
                    Self::Refused { code, message }
                }
            }
            error => Self::Unreachable(causes(&error)),
        }
    }
}

/// The error with all its causes, because the outermost error seldom names the actual fault.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// The API server.
pub(super) struct Api {
    api_url: Option<String>,
    kubeconfig: Option<std::path::PathBuf>,
    /// Created at the first call, and again after the server did not accept the credentials,
    /// because the files with credentials change.
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("api_url", &self.api_url)
            .field("kubeconfig", &self.kubeconfig)
            .finish_non_exhaustive()
    }
}

impl Api {
    pub fn new(options: &Options) -> Self {
        Self {
            api_url: options.api_url.clone(),
            kubeconfig: options.kubeconfig.clone(),
            client: Mutex::default(),
        }
    }

    /// Sends a request that has one answer.
    pub async fn call<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<T, Failure> {
        let client = self.client().await?;
        let text = self
            .in_time(async move { client.request_text(request).await })
            .await?;
        serde_json::from_str(&text).map_err(|error| {
            let error = excerpt(&error.to_string());
            Failure::Unreachable(format!("an answer that is none: {error}"))
        })
    }

    /// Opens a watch. The stream itself has no deadline.
    pub async fn watch<T: DeserializeOwned + Clone + 'static>(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, Failure>> + use<T>, Failure> {
        let client = self.client().await?;
        let stream = self
            .in_time(async move { client.request_events::<T>(request).await })
            .await?;
        Ok(stream.map(|event| event.map_err(Failure::from)))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let answer = match timeout(DEADLINE, answer).await {
            Ok(answer) => answer.map_err(Failure::from),
            Err(_) => Err(Failure::Unreachable(format!(
                "no answer within {} s",
                DEADLINE.as_secs()
            ))),
        };
        if answer.as_ref().is_err_and(|failure| failure.is(401)) {
            *self.client.lock().await = None;
        }
        answer
    }

    async fn client(&self) -> Result<Client, Failure> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let config = timeout(DEADLINE, self.config())
            .await
            .map_err(|_| Failure::Unreachable("reading the kubeconfig took too long".into()))?
            .map_err(Failure::Unreachable)?;
        let made = connect(config)
            .map_err(|error| Failure::Unreachable(format!("prepare a client: {error}")))?;
        Ok(client.insert(made).clone())
    }

    /// The configuration that flanneld would use: the kubeconfig, with the given URL instead of its
    /// own; the URL alone, without credentials; else a pod's service account.
    async fn config(&self) -> Result<Config, String> {
        let url = match &self.api_url {
            Some(url) => Some(
                url.parse::<http::Uri>()
                    .map_err(|error| format!("--kube-api-url {url}: {error}"))?,
            ),
            None => None,
        };
        match (&self.kubeconfig, url) {
            (Some(path), url) => {
                let wrong = |error| format!("--kubeconfig-file {}: {error}", path.display());
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                let mut config = Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(wrong)?;
                config.cluster_url = url.unwrap_or(config.cluster_url);
                Ok(config)
            }
            (None, Some(url)) => Ok(Config::new(url)),
            (None, None) => Config::incluster().map_err(|error| {
                format!("{error}; outside of a pod give --kubeconfig-file or --kube-api-url")
            }),
        }
    }
}

/// kube's client over a connector that detects a server that has disappeared silently.
fn connect(config: Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    connector.set_keepalive(Some(PROBE_EVERY));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(PROBE_EVERY * PROBES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
