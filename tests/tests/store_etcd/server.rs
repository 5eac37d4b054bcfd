//! A separate etcd for one test.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use etcd_client::{Client, GetOptions, KeyValue};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_user::store::{Location, etcd};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::PREFIX;

/// A separate etcd for one test.
pub struct Server {
    child: Child,
    pub data: TempDir,
    scheme: &'static str,
    pub port: u16,
    peer_port: u16,
}

impl Server {
    pub async fn start() -> Self {
        let server = Self::spawn("http", &[]);
        server.ready().await;
        server
    }

    /// Starts an etcd with TLS; the caller must find out itself when it is running.
    pub async fn start_with_tls(cert: &Path, key: &Path) -> Self {
        let (cert, key) = (cert.display(), key.display());
        Self::spawn(
            "https",
            &[format!("--cert-file={cert}"), format!("--key-file={key}")],
        )
    }

    pub fn spawn(scheme: &'static str, more: &[String]) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let (port, peer_port) = (free_port(), free_port());
        let child = spawn(scheme, data.path(), port, peer_port, more);
        Self {
            child,
            data,
            scheme,
            port,
            peer_port,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.expect("a client")
    }

    pub async fn ready(&self) {
        let up = async {
            while self.client().await.get("x", None).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), up)
            .await
            .expect("etcd does not come up");
    }

    pub fn location(&self) -> Location {
        self.location_after(&[])
    }

    /// With other endpoints before the real one.
    pub fn location_after(&self, others: &[String]) -> Location {
        Location::Etcd(etcd::Options {
            endpoints: [others, &[self.url()]].concat(),
            prefix: PREFIX.into(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            user: None,
        })
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("signalled");
    }

    pub fn stop(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    pub async fn restart(&mut self) {
        self.child = spawn(
            self.scheme,
            self.data.path(),
            self.port,
            self.peer_port,
            &[],
        );
        self.ready().await;
    }

    pub async fn leases(&self) -> Vec<KeyValue> {
        let options = GetOptions::new().with_prefix();
        let mut found = self
            .client()
            .await
            .get(format!("{PREFIX}/subnets/"), Some(options))
            .await
            .expect("listed");
        found.take_kvs()
    }

    pub async fn put(&self, key: &str, value: &str) {
        self.client()
            .await
            .put(format!("{PREFIX}/{key}"), value, None)
            .await
            .expect("written");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Also ends a stopped process. A test that stopped it for good has waited for it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port below those that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 10_000).expect("small");
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn spawn(scheme: &str, data: &Path, port: u16, peer_port: u16, more: &[String]) -> Child {
    let url = format!("{scheme}://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(data)
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args([
            "--initial-cluster",
            &format!("default={peer}"),
            "--log-level",
            "error",
        ])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect(
            "cannot start etcd; install it: `apt-get install etcd-server` or `cargo xtask setup`",
        )
}

pub fn key(kv: &KeyValue) -> &str {
    kv.key_str().expect("UTF-8")
}
