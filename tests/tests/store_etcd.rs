//! The etcd store, against a real etcd.

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, GetOptions, KeyValue, Permission, PutOptions, Txn, TxnOp,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay_user::lease::AllocateError;
use overlay_user::store::{Error, Location, StoreHealth, etcd};
use support::{LARGE, SMALL, attributes, config, open, race, run, see_each_other, start};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(24 * 3600);
const SHORT: Duration = Duration::from_secs(6);
const PREFIX: &str = "/coreos.com/network";

/// An etcd of one test's own.
struct Server {
    child: Child,
    data: TempDir,
    scheme: &'static str,
    port: u16,
    peer_port: u16,
}

impl Server {
    async fn start() -> Self {
        let server = Self::spawn("http", &[]);
        server.ready().await;
        server
    }

    /// With TLS; whoever asks must find out by itself when it is up.
    async fn start_with_tls(cert: &Path, key: &Path) -> Self {
        let (cert, key) = (cert.display(), key.display());
        Self::spawn(
            "https",
            &[format!("--cert-file={cert}"), format!("--key-file={key}")],
        )
    }

    fn spawn(scheme: &'static str, more: &[String]) -> Self {
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

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.expect("a client")
    }

    async fn ready(&self) {
        let up = async {
            while self.client().await.get("x", None).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), up)
            .await
            .expect("etcd does not come up");
    }

    fn location(&self) -> Location {
        self.location_after(&[])
    }

    /// With other endpoints before the real one.
    fn location_after(&self, others: &[String]) -> Location {
        Location::Etcd(etcd::Options {
            endpoints: [others, &[self.url()]].concat(),
            prefix: PREFIX.into(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            user: None,
        })
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("signalled");
    }

    fn stop(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    async fn restart(&mut self) {
        self.child = spawn(
            self.scheme,
            self.data.path(),
            self.port,
            self.peer_port,
            &[],
        );
        self.ready().await;
    }

    async fn leases(&self) -> Vec<KeyValue> {
        let options = GetOptions::new().with_prefix();
        let mut found = self
            .client()
            .await
            .get(format!("{PREFIX}/subnets/"), Some(options))
            .await
            .expect("listed");
        found.take_kvs()
    }

    async fn put(&self, key: &str, value: &str) {
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
fn free_port() -> u16 {
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

fn key(kv: &KeyValue) -> &str {
    kv.key_str().expect("UTF-8")
}

#[test]
fn keys_and_values_are_flannels_to_the_byte() {
    run(async {
        let server = Server::start().await;
        let store = open(server.location(), TTL);
        let error = store.network_config().await.expect_err("nothing is there");
        assert!(matches!(error, Error::NoConfig(_)), "{error}");
        server.put("config", LARGE).await;
        let config = store.network_config().await.expect("config");
        let previous = "10.3.6.1/24".parse().ok();
        let lease = store
            .acquire(&config, attributes(1), previous)
            .await
            .expect("a lease");
        assert_eq!(lease.subnet.to_string(), "10.3.6.0/24");
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 1);
        assert_eq!(key(&kvs[0]), "/coreos.com/network/subnets/10.3.6.0-24");
        assert_eq!(
            kvs[0].value_str().expect("UTF-8"),
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
        );
        let ttl = server
            .client()
            .await
            .lease_time_to_live(kvs[0].lease(), None)
            .await;
        assert_eq!(ttl.expect("a term").granted_ttl(), 24 * 3600);
        // A second agent of the same node goes on with the same subnet and the same etcd lease.
        let again = open(server.location(), TTL);
        let lease = again
            .acquire(&config, attributes(1), None)
            .await
            .expect("a lease");
        assert_eq!(lease.subnet.to_string(), "10.3.6.0/24");
        assert_eq!(server.leases().await[0].lease(), kvs[0].lease());
        // The network moves: the old lease is of no use and goes.
        let moved = support::config(r#"{"Network":"10.9.0.0/16"}"#);
        let lease = again
            .acquire(&moved, attributes(1), previous)
            .await
            .expect("a lease");
        assert!(moved.pool.allows(&lease.subnet));
        assert_eq!(server.leases().await.len(), 1);
        assert!(
            again
                .release(lease.subnet, &attributes(1))
                .await
                .expect("released")
        );
        assert!(server.leases().await.is_empty());
    });
}

#[test]
fn ten_nodes_race_for_three_subnets() {
    run(async {
        let server = Server::start().await;
        let won = race(&server.location(), TTL, SMALL, 10).await;
        assert_eq!(won.len(), 3);
        assert_eq!(server.leases().await.len(), 3);
    });
}

#[test]
fn forty_nodes_all_get_a_subnet_of_their_own() {
    run(async {
        let server = Server::start().await;
        let won = race(&server.location(), TTL, LARGE, 40).await;
        assert_eq!(won.len(), 40);
    });
}

#[test]
fn subnets_of_different_lengths_never_overlap() {
    run(async {
        let server = Server::start().await;
        let races = (1..=20).map(|n| {
            let store = open(server.location(), TTL);
            let len = if n % 2 == 0 { 24 } else { 26 };
            let config = config(&format!(r#"{{"Network":"10.3.0.0/20","SubnetLen":{len}}}"#));
            async move { store.acquire(&config, attributes(n), None).await }
        });
        // Each takes a part of one of sixteen blocks, so that at least sixteen find room.
        let mut won = Vec::new();
        for outcome in futures::future::join_all(races).await {
            match outcome {
                Ok(lease) => won.push(lease),
                Err(Error::Allocate(AllocateError::OutOfSubnets { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(won.len() >= 16, "only {} find room", won.len());
        assert_eq!(
            server.leases().await.len(),
            won.len(),
            "no loser leaves anything"
        );
        for (at, one) in won.iter().enumerate() {
            assert!(
                won[at + 1..]
                    .iter()
                    .all(|other| !other.overlaps(&one.subnet)),
                "{won:#?}"
            );
        }
    });
}

/// The user that etcd asks for before it lets anybody in by name only.
async fn add_root(client: &mut etcd_client::Client) {
    client
        .user_add("root", "secret", None)
        .await
        .expect("added");
    client.role_add("root").await.expect("added");
    client
        .user_grant_role("root", "root")
        .await
        .expect("granted");
}

#[test]
fn a_user_and_a_password_are_enough_and_a_wrong_one_is_told() {
    run(async {
        let server = Server::start().await;
        server.put("config", LARGE).await;
        let mut client = server.client().await;
        add_root(&mut client).await;
        client.auth_enable().await.expect("enabled");
        let with = |password: &str| {
            let Location::Etcd(options) = server.location() else {
                unreachable!("etcd")
            };
            let Ok(password) = password.parse();
            open(
                Location::Etcd(etcd::Options {
                    user: Some(("root".into(), password)),
                    ..options
                }),
                TTL,
            )
        };
        with("secret").network_config().await.expect("config");
        let error = with("hunter2")
            .network_config()
            .await
            .expect_err("a wrong password");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = open(server.location(), TTL)
            .network_config()
            .await
            .expect_err("no user");
        assert!(error.to_string().contains("user"), "{error}");
    });
}

#[test]
fn a_refused_write_leaves_no_etcd_lease_behind() {
    run(async {
        let server = Server::start().await;
        let mut client = server.client().await;
        add_root(&mut client).await;
        client
            .user_add("reader", "secret", None)
            .await
            .expect("added");
        client.role_add("reader").await.expect("added");
        let read = Permission::read(PREFIX).with_prefix();
        client
            .role_grant_permission("reader", read)
            .await
            .expect("granted");
        client
            .user_grant_role("reader", "reader")
            .await
            .expect("granted");
        client.auth_enable().await.expect("enabled");
        let Location::Etcd(options) = server.location() else {
            unreachable!("etcd")
        };
        let Ok(password) = "secret".parse();
        let reader = Location::Etcd(etcd::Options {
            user: Some(("reader".into(), password)),
            ..options
        });
        let error = open(reader, TTL)
            .acquire(&config(LARGE), attributes(1), None)
            .await
            .expect_err("it may not write");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        let as_root = ConnectOptions::new().with_user("root", "secret");
        let mut root = Client::connect([server.url()], Some(as_root))
            .await
            .expect("a client");
        let left = root.leases().await.expect("listed");
        assert!(left.leases().is_empty(), "{left:?}");
    });
}

#[test]
fn a_certificate_authority_is_enough_for_tls() {
    run(async {
        let files = tempfile::tempdir().expect("a directory");
        let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=etcd", "-addext"])
            .arg("subjectAltName=IP:127.0.0.1")
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
            .arg(&cert)
            .arg("-keyout")
            .arg(&key)
            .output()
            .expect("cannot run openssl; install it: `apt-get install openssl`");
        assert!(made.status.success(), "{made:?}");
        let server = Server::start_with_tls(&cert, &key).await;
        let options = |ca_file| {
            Location::Etcd(etcd::Options {
                endpoints: vec![server.url()],
                prefix: PREFIX.into(),
                key_file: None,
                cert_file: None,
                ca_file,
                user: None,
            })
        };
        let asked = async {
            loop {
                match open(options(Some(cert.clone())), TTL)
                    .network_config()
                    .await
                {
                    Err(Error::NoConfig(_)) => break,
                    _ => sleep(Duration::from_millis(100)).await,
                }
            }
        };
        timeout(Duration::from_secs(20), asked)
            .await
            .expect("etcd does not answer by TLS");

        // The same by the system's authorities, in a process of its own, because they are a process's environment.
        let ask = |authorities: &Path| {
            let itself = std::env::current_exe().expect("this program");
            Command::new(itself)
                .args(["--exact", "--ignored", "asks_by_the_systems_authorities"])
                .env("SSL_CERT_FILE", authorities)
                .env(ASKED, server.url())
                .output()
                .expect("run this program again")
        };
        let answer = ask(&cert);
        assert!(answer.status.success(), "{answer:?}");
        let nobody = files.path().join("nobody.pem");
        std::fs::write(&nobody, "").expect("written");
        assert!(!ask(&nobody).status.success(), "believed without authority");
    });
}

/// The URL of an etcd for [`asks_by_the_systems_authorities`].
const ASKED: &str = "OVERLAY_TEST_ETCD";

#[test]
#[ignore = "a part of `a_certificate_authority_is_enough_for_tls`"]
fn asks_by_the_systems_authorities() {
    let url = std::env::var(ASKED).expect("the other test sets it");
    run(async {
        let location = Location::Etcd(etcd::Options {
            endpoints: vec![url],
            prefix: PREFIX.into(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            user: None,
        });
        let error = open(location, TTL)
            .network_config()
            .await
            .expect_err("no configuration");
        assert!(matches!(error, Error::NoConfig(_)), "{error}");
    });
}

/// Runs `openssl`, whose words are apart by spaces, in a directory.
fn openssl(directory: &Path, line: &str) {
    let made = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory)
        .output()
        .expect("cannot run openssl; install it: `apt-get install openssl`");
    assert!(made.status.success(), "{line}: {made:?}");
}

/// An etcd that takes clients of its own authority only, and nobody else.
#[test]
fn a_client_certificate_of_etcds_authority_is_taken_and_another_is_not() {
    run(async {
        let files = tempfile::tempdir().expect("a directory");
        let path = |name: &str| files.path().join(name);
        std::fs::write(path("san"), "subjectAltName=IP:127.0.0.1\n").expect("written");
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for authority in ["ca", "other-ca"] {
            openssl(
                files.path(),
                &format!(
                    "req -x509 {new} -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
                ),
            );
        }
        for (name, authority) in [("server", "ca"), ("node", "ca"), ("stranger", "other-ca")] {
            openssl(
                files.path(),
                &format!("req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
            );
            openssl(
                files.path(),
                &format!(
                    "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial \
                     -days 2 -extfile san -out {name}.pem"
                ),
            );
        }
        let flag = |flag: &str, file: &str| format!("--{flag}={}", path(file).display());
        let server = Server::spawn(
            "https",
            &[
                flag("cert-file", "server.pem"),
                flag("key-file", "server.key"),
                flag("trusted-ca-file", "ca.pem"),
                "--client-cert-auth".to_owned(),
            ],
        );
        let store = |who: Option<&str>| {
            let location = Location::Etcd(etcd::Options {
                endpoints: vec![server.url()],
                prefix: PREFIX.into(),
                key_file: who.map(|who| path(&format!("{who}.key"))),
                cert_file: who.map(|who| path(&format!("{who}.pem"))),
                ca_file: Some(path("ca.pem")),
                user: None,
            });
            open(location, TTL)
        };
        let asked = async {
            while !matches!(
                store(Some("node")).network_config().await,
                Err(Error::NoConfig(_))
            ) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(20), asked)
            .await
            .expect("etcd does not take a good certificate");
        // It is up, so that whoever is refused now is refused for good.
        for who in [None, Some("stranger")] {
            let answer = store(who).network_config().await;
            assert!(
                matches!(answer, Err(Error::Unreachable { .. })),
                "{who:?}: {answer:?}"
            );
        }
    });
}

#[test]
fn nodes_see_each_other_come_and_change() {
    run(async {
        let server = Server::start().await;
        let ([one, _two], _) = see_each_other(&server.location(), TTL).await;
        server.put("subnets/10.3.300.0-24", "{}").await;
        server.put("subnets/10.3.77.0-24", "not JSON").await;
        let state = one
            .until("the rejections", |state| state.rejected.len() == 2)
            .await;
        assert_eq!(state.leases.len(), 1, "bad entries cost no good one");
    });
}

/// Values as large as etcd takes them: four are more than a client takes in one answer.
async fn put_giants(server: &Server) {
    for n in 0..4 {
        server
            .put(&format!("subnets/giant{n}"), &"x".repeat(1_400_000))
            .await;
    }
}

#[test]
fn giant_values_cost_no_good_lease() {
    run(async {
        let server = Server::start().await;
        put_giants(&server).await;
        let ([one, _two], _) = see_each_other(&server.location(), TTL).await;
        one.until("the giants", |state| state.rejected.len() == 4)
            .await;
    });
}

#[test]
fn more_leases_than_one_answer_holds_are_all_seen() {
    run(async {
        let server = Server::start().await;
        let mut client = server.client().await;
        // etcd takes at most 128 operations in one transaction.
        for hundred in 0..12 {
            let puts: Vec<_> = (0..100)
                .map(|n| {
                    let key = format!("{PREFIX}/subnets/10.{}.{n}.0-24", 20 + hundred);
                    TxnOp::put(key, r#"{"PublicIP":"192.168.7.7"}"#, None)
                })
                .collect();
            client
                .txn(Txn::new().and_then(puts))
                .await
                .expect("written");
        }
        let (one, _) = start(server.location(), TTL, LARGE, 1).await;
        one.until("all leases", |state| state.leases.len() == 1200)
            .await;
    });
}

/// Passes connections on to `to` until it is dropped.
async fn relay(port: u16, to: u16) -> AbortOnDrop {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .expect("a free port");
    let task = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            open.spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    AbortOnDrop(task)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[test]
fn a_watch_catches_up_with_giant_values() {
    run(async {
        let server = Server::start().await;
        let port = free_port();
        let way = relay(port, server.port).await;
        let Location::Etcd(options) = server.location() else {
            unreachable!("etcd")
        };
        let by_relay = Location::Etcd(etcd::Options {
            endpoints: vec![format!("http://127.0.0.1:{port}")],
            ..options
        });
        let (one, _) = start(by_relay, TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        drop(way);
        one.until("the outage", |state| {
            matches!(state.store, StoreHealth::Unreachable { .. })
        })
        .await;
        put_giants(&server).await;
        server
            .put("subnets/10.3.77.0-24", r#"{"PublicIP":"192.168.0.2"}"#)
            .await;
        let _way = relay(port, server.port).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        one.until("the giants", |state| state.rejected.len() == 4)
            .await;
        one.until("an answer", |state| state.store == StoreHealth::Ok)
            .await;
    });
}

#[test]
fn a_peers_lease_ends_and_ours_is_kept() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        let (two, _) = start(server.location(), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        drop(two);
        one.until("the other node's lease end", |state| {
            state.leases.is_empty()
        })
        .await;
        assert_eq!(
            one.state.borrow().own.as_ref().map(|it| it.subnet),
            Some(own.subnet)
        );
    });
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    run(async {
        let server = Server::start().await;
        let dead = format!("http://127.0.0.1:{}", free_port());
        let (one, _) = start(server.location_after(&[dead]), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
    });
}

#[test]
fn no_etcd_is_an_error_in_time() {
    run(async {
        let dead = format!("http://127.0.0.1:{}", free_port());
        let options = etcd::Options {
            endpoints: vec![dead.clone()],
            prefix: PREFIX.into(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            user: None,
        };
        let store = open(Location::Etcd(options), TTL);
        let asked = timeout(Duration::from_secs(15), store.network_config()).await;
        let error = asked
            .expect("an answer in time")
            .expect_err("nobody is there")
            .to_string();
        assert!(
            error.contains(&dead) && error.contains("--etcd-endpoints"),
            "{error}"
        );
    });
}

#[test]
fn a_revoked_lease_is_taken_again() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let before = server.leases().await;
        server
            .client()
            .await
            .lease_revoke(before[0].lease())
            .await
            .expect("revoked");
        let back = async {
            loop {
                let now = server.leases().await;
                if now.len() == 1 && now[0].lease() != before[0].lease() {
                    break now;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let now = timeout(Duration::from_secs(10), back)
            .await
            .expect("not taken again");
        assert_eq!(key(&now[0]), key(&before[0]));
        let state = one
            .until("its own lease", |state| state.own.is_some())
            .await;
        assert_eq!(state.own.map(|it| it.subnet), Some(own.subnet));
    });
}

#[test]
fn a_stranger_on_our_key_is_not_overwritten() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let stranger = r#"{"PublicIP":"192.168.0.99","PublicIPv6":null}"#;
        server
            .put(&format!("subnets/{}", own.key()), stranger)
            .await;
        let state = one
            .until("another subnet", |state| {
                state.own.as_ref().is_some_and(|it| it.subnet != own.subnet)
            })
            .await;
        assert_eq!(state.leases.len(), 1);
        let kvs = server.leases().await;
        assert!(
            kvs.iter().any(|kv| kv.value() == stranger.as_bytes()),
            "the stranger's stays"
        );
        assert_eq!(kvs.len(), 2);
    });
}

#[test]
fn our_key_written_over_by_ourselves_is_set_right() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        one.until("a complete answer", |state| state.synced).await;
        let before = server.leases().await;
        let options = PutOptions::new().with_lease(before[0].lease());
        let wrong = r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#;
        server
            .client()
            .await
            .put(before[0].key(), wrong, Some(options))
            .await
            .expect("written");
        let right = async {
            while server.leases().await[0].value() != before[0].value() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), right)
            .await
            .expect("not set right");
        assert_eq!(
            one.state.borrow().own.as_ref().map(|it| it.subnet),
            Some(own.subnet)
        );
    });
}

#[test]
fn reservations_keep_their_nature() {
    run(async {
        let server = Server::start().await;
        server
            .put("subnets/10.3.9.0-24", r#"{"PublicIP":"192.168.0.1"}"#)
            .await;
        server.put("subnets/10.3.5.0-24", "held for later").await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        assert_eq!(own.subnet.to_string(), "10.3.9.0/24");
        assert!(own.reserved && own.expires.is_none());
        sleep(SHORT).await;
        one.until("a complete answer", |state| state.synced).await;
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 2);
        assert!(
            kvs.iter().all(|kv| kv.lease() == 0),
            "no reservation has got a term"
        );
        assert!(
            !one.store
                .release(own.subnet, &own.attributes)
                .await
                .expect("asked")
        );
    });
}

#[test]
fn a_restarted_etcd_is_followed() {
    run(async {
        let mut server = Server::start().await;
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        let (_two, _) = start(server.location(), TTL, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        server.stop();
        let state = one
            .until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        assert!(state.synced && state.own.is_some());
        assert_eq!(state.leases.len(), 1, "known leases stay");
        server.restart().await;
        one.until("the return", |state| state.store == StoreHealth::Ok)
            .await;
        let (_three, _) = start(server.location(), TTL, LARGE, 3).await;
        let state = one
            .until("a third node", |state| state.leases.len() == 2)
            .await;
        assert_eq!(state.own.map(|it| it.subnet), Some(own.subnet));
    });
}

#[test]
fn compaction_during_a_partition_loses_nothing() {
    run(async {
        let mut server = Server::start().await;
        let (one, _) = start(server.location(), TTL, LARGE, 1).await;
        // Seeing a peer shows that the watch has a place to go on from.
        server
            .put(
                "subnets/10.3.49.0-24",
                &attributes(49).to_json().expect("JSON"),
            )
            .await;
        one.until("the first peer", |state| state.leases.len() == 1)
            .await;
        // The agent hears nothing while a peer comes and the history is thrown away: the same server
        // speaks at another port meanwhile.
        server.stop();
        let port = std::mem::replace(&mut server.port, free_port());
        server.restart().await;
        server
            .put(
                "subnets/10.3.50.0-24",
                &attributes(50).to_json().expect("JSON"),
            )
            .await;
        for n in 0..5 {
            server.put("noise", &n.to_string()).await;
        }
        let mut client = server.client().await;
        let revision = client
            .get("x", None)
            .await
            .expect("asked")
            .header()
            .expect("a header")
            .revision();
        client.compact(revision, None).await.expect("compacted");
        server.stop();
        server.port = port;
        server.restart().await;
        let state = one
            .until("the second peer", |state| state.leases.len() == 2)
            .await;
        assert_eq!(state.leases.sorted()[1].attributes, attributes(50));
    });
}

#[test]
fn an_etcd_that_lost_its_data_is_filled_again() {
    run(async {
        let mut server = Server::start().await;
        for n in 0..20 {
            server.put("noise", &n.to_string()).await;
        }
        let (one, own) = start(server.location(), TTL, LARGE, 1).await;
        server
            .put(
                "subnets/10.3.50.0-24",
                &attributes(50).to_json().expect("JSON"),
            )
            .await;
        one.until("the peer", |state| state.leases.len() == 1).await;
        server.stop();
        server.data = tempfile::tempdir().expect("a directory");
        server.restart().await;
        let state = one
            .until("the peer go", |state| state.leases.is_empty())
            .await;
        assert_eq!(state.own.map(|it| it.subnet), Some(own.subnet));
        assert_eq!(server.leases().await.len(), 1, "our own lease is back");
    });
}

#[test]
fn an_etcd_that_stands_still_for_longer_than_the_lease_cuts_nobody() {
    run(async {
        let server = Server::start().await;
        let (one, own) = start(server.location(), SHORT, LARGE, 1).await;
        let (two, other) = start(server.location(), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        two.until("the other node", |state| state.leases.len() == 1)
            .await;
        server.signal(Signal::SIGSTOP);
        for node in [&one, &two] {
            node.until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        }
        sleep(SHORT * 2).await;
        let mut gaps = one.state.clone();
        gaps.mark_unchanged();
        server.signal(Signal::SIGCONT);
        let watched = async {
            loop {
                gaps.changed().await.expect("the store lives");
                assert_eq!(
                    gaps.borrow_and_update().leases.len(),
                    1,
                    "the peer never goes"
                );
            }
        };
        assert!(timeout(SHORT * 3, watched).await.is_err());
        let kvs = server.leases().await;
        assert_eq!(kvs.len(), 2);
        for (node, lease) in [(one, own), (two, other)] {
            let state = node.state.borrow();
            assert_eq!(state.store, StoreHealth::Ok);
            assert_eq!(state.own.as_ref().map(|it| it.subnet), Some(lease.subnet));
        }
    });
}
