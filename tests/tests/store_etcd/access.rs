//! Agents that may access etcd, and agents that get the reason why they may not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission};
use overlay_user::store::{Error, Location, etcd};
use tokio::time::{sleep, timeout};

use crate::server::{Server, free_port};
use crate::support::{LARGE, attributes, config, open, run, start};
use crate::{PREFIX, TTL};

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

        // The same by the system's authorities, in a process of its own, because they are a
        // process's environment.
        let ask = |authorities: &Path| {
            let itself = std::env::current_exe().expect("this program");
            Command::new(itself)
                .args([
                    "--exact",
                    "--ignored",
                    "access::asks_by_the_systems_authorities",
                ])
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

/// Runs `openssl` in a directory, with arguments separated by spaces.
fn openssl(directory: &Path, line: &str) {
    let made = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory)
        .output()
        .expect("cannot run openssl; install it: `apt-get install openssl`");
    assert!(made.status.success(), "{line}: {made:?}");
}

/// An etcd that accepts only clients with a certificate of its own authority.
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
                    "req -x509 {new} -days 2 -subj /CN={authority} -keyout {authority}.key -out \
                    {authority}.pem"
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
                    "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key \
                    -CAcreateserial -days 2 -extfile san -out {name}.pem"
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
        // etcd is running, so that a refusal of an agent is final.
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
