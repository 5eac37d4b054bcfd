//! A minimal HTTP client: one request, for the agent's health and metrics and for etcd's JSON
//! gateway.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::allowed;

/// Longest time for connecting, and for each read.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// The bytes after the header.
    pub body: String,
}

/// One GET over HTTP/1.0, so that the answer ends with the connection.
///
/// # Errors
/// When no server answers, or not in HTTP.
pub fn get(server: SocketAddr, path: &str) -> Result<HttpAnswer> {
    request(
        server,
        &format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n"),
    )
}

/// One POST of JSON over HTTP/1.0.
///
/// # Errors
/// When no server answers, or not in HTTP.
pub fn post(server: SocketAddr, path: &str, json: &str) -> Result<HttpAnswer> {
    send(server, "POST", path, json)
}

/// One request with JSON, or with an empty body, over HTTP/1.0.
///
/// # Errors
/// When no server answers, or not in HTTP.
pub fn send(server: SocketAddr, method: &str, path: &str, json: &str) -> Result<HttpAnswer> {
    let length = json.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    request(server, &(head + json))
}

fn request(server: SocketAddr, text: &str) -> Result<HttpAnswer> {
    let mut stream = TcpStream::connect_timeout(&server, allowed(TIMEOUT))
        .with_context(|| format!("connect to {server}"))?;
    stream
        .set_read_timeout(Some(allowed(TIMEOUT)))
        .context("set a timeout")?;
    stream
        .write_all(text.as_bytes())
        .context("send a request")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read an answer")?;
    let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.context("an HTTP answer without a status")?;
    Ok(HttpAnswer {
        status,
        body: body.to_owned(),
    })
}
