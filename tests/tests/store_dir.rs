//! The directory store, with real files.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use overlay_user::lease::{Attributes, RejectReason};
use overlay_user::per_family::PerFamily;
use overlay_user::store::{Error, Location, StoreHealth};
use support::{
    LARGE, SMALL, WEB, attributes, config, open, race, run, see_each_other, serve, start, subnets,
    web_slice,
};

const TTL: Duration = Duration::from_secs(24 * 3600);
const SHORT: Duration = Duration::from_secs(2);

fn at(path: &Path) -> Location {
    Location::Dir(path.to_owned())
}

fn subnet(state: &overlay_user::store::LeaseState) -> Option<String> {
    state.own.as_ref().map(|own| own.subnets.to_string())
}

#[test]
fn the_configuration_is_read_or_asked_for() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(at(directory.path()), TTL);
        let error = store.network_config().await.expect_err("nothing is there");
        assert!(matches!(error, Error::NoConfig(_)), "{error}");
        fs::write(directory.path().join("config"), LARGE).expect("written");
        assert_eq!(store.network_config().await.expect("config"), config(LARGE));
    });
}

#[test]
fn a_lease_is_one_file_and_is_found_again() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, lease) = start(at(directory.path()), TTL, LARGE, 1).await;
        let file = directory
            .path()
            .join(format!("subnets/{}.json", lease.key()));
        assert_eq!(
            fs::read_to_string(&file).expect("the file"),
            "{\"PublicIP\":\"192.168.0.1\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"}}"
        );
        let (_, again) = start(at(directory.path()), TTL, LARGE, 1).await;
        assert_eq!(again.subnets, lease.subnets);
    });
}

#[test]
fn a_node_keeps_its_lease_when_its_public_ip_changes_and_a_stranger_cannot_take_it() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, lease) = start(at(directory.path()), TTL, LARGE, 1).await;
        drop(one);
        let take = async |attributes: &Attributes, previous: PerFamily<IpNet>| {
            let store = open(at(directory.path()), TTL);
            let taken = store
                .acquire(&config(LARGE), attributes.clone(), Some(previous))
                .await;
            taken.expect("a lease").subnets
        };
        let moved = Attributes {
            public_ip: PerFamily::V4([192, 168, 0, 101].into()),
            ..attributes(1)
        };
        // One node has the subnet's name but another MAC address, one has the MAC address but not
        // the subnet's name.
        assert_ne!(take(&attributes(2), lease.subnets).await, lease.subnets);
        let elsewhere = subnets("10.3.200.0/24");
        assert_eq!(take(&moved, elsewhere).await, elsewhere);
        let file = directory
            .path()
            .join(format!("subnets/{}.json", lease.key()));
        let text = || fs::read_to_string(&file).expect("the file");
        assert!(text().contains("192.168.0.1\""), "{}", text());

        assert_eq!(take(&moved, lease.subnets).await, lease.subnets);
        assert!(text().contains("192.168.0.101\""), "{}", text());
        // A foreign node cannot release the lease either, but its own node can, wherever that has
        // moved since.
        let store = open(at(directory.path()), TTL);
        let gives_up = async |attributes: &Attributes| {
            let released = store.release(&lease.subnets, attributes).await;
            released.expect("an answer")
        };
        let moved_on = Attributes {
            public_ip: PerFamily::V4([192, 168, 0, 102].into()),
            ..attributes(1)
        };
        assert!(!gives_up(&attributes(2)).await);
        assert!(gives_up(&moved_on).await);
        assert!(!file.exists());
    });
}

#[test]
fn ten_nodes_race_for_three_subnets() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let won = race(&at(directory.path()), TTL, SMALL, 10).await;
        assert_eq!(won.len(), 3);
    });
}

#[test]
fn nodes_see_each_other_come_change_and_go() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let ([one, two], [_, lease]) = see_each_other(&at(directory.path()), TTL).await;
        let released = two.store.release(&lease.subnets, &attributes(22)).await;
        drop(two);
        assert!(released.expect("released"));
        // The other node's keeper may have taken the subnet again before it was stopped, so its
        // file is removed.
        let _ = fs::remove_file(
            directory
                .path()
                .join(format!("subnets/{}.json", lease.key())),
        );
        one.until("the other node go", |state| state.leases.is_empty())
            .await;
    });
}

#[test]
fn terms_end_and_are_renewed() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, _) = start(at(directory.path()), SHORT, LARGE, 1).await;
        let (two, _) = start(at(directory.path()), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        tokio::time::sleep(SHORT + SHORT / 2).await;
        assert_eq!(one.state.borrow().leases.len(), 1, "kept by renewal");
        drop(two);
        one.until("the other node's term end", |state| state.leases.is_empty())
            .await;
        assert!(one.state.borrow().own.is_some(), "our own is renewed");
    });
}

#[test]
fn a_lost_lease_is_taken_again() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, lease) = start(at(directory.path()), TTL, LARGE, 1).await;
        let file = directory
            .path()
            .join(format!("subnets/{}.json", lease.key()));
        one.until("the first look", |state| state.synced).await;
        fs::remove_file(&file).expect("removed");
        let begun = SystemTime::now();
        while !file.exists() {
            assert!(
                begun.elapsed().unwrap_or_default() < Duration::from_secs(10),
                "not taken again"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fs::write(&file, r#"{"PublicIP":"192.168.0.99"}"#).expect("overwritten");
        let old = lease.subnets.to_string();
        one.until("another subnet", |state| {
            subnet(state).is_some_and(|it| it != old)
        })
        .await;
        assert!(
            fs::read_to_string(&file)
                .expect("the file")
                .contains("192.168.0.99")
        );
    });
}

#[test]
fn reservations_and_peers_placed_by_hand_never_end() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("static");
        fs::create_dir_all(&place).expect("made");
        fs::write(
            place.join("10.3.9.0-24.json"),
            "{\"PublicIP\":\"192.168.0.1\"}\n",
        )
        .expect("written");
        fs::write(
            place.join("10.3.5.0-24.json"),
            r#"{"PublicIP":"192.168.0.7"}"#,
        )
        .expect("written");
        let (one, lease) = start(at(directory.path()), SHORT, LARGE, 1).await;
        assert_eq!(lease.subnets.to_string(), "10.3.9.0/24");
        assert!(lease.reserved);
        assert_eq!(lease.expires, None);
        tokio::time::sleep(SHORT * 2).await;
        let state = one.until("the peer", |state| state.leases.len() == 1).await;
        assert!(state.leases.sorted()[0].reserved);
        assert_eq!(subnet(&state).as_deref(), Some("10.3.9.0/24"));
        assert!(!directory.path().join("subnets/10.3.9.0-24.json").exists());
        assert!(
            !one.store
                .release(&lease.subnets, &lease.attributes)
                .await
                .expect("asked")
        );
    });
}

#[test]
fn bad_files_are_reported_and_harm_nobody() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, _) = start(at(directory.path()), TTL, LARGE, 1).await;
        let place = directory.path().join("subnets");
        fs::write(place.join("10.3.300.0-24.json"), "{}").expect("written");
        fs::write(place.join("10.3.7.0-24.json"), [0xff; 100_000]).expect("written");
        // A directory cannot be replaced by a lease: it keeps its subnet, and is reported.
        fs::create_dir(place.join("10.3.8.0-24.json")).expect("made");
        nix::unistd::mkfifo(
            &place.join("10.3.9.0-24.json"),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .expect("made");
        let state = one
            .until("all rejections", |state| state.rejected.len() == 3)
            .await;
        assert!(matches!(
            state.rejected.sorted()[0].reason,
            RejectReason::Key | RejectReason::Value(_)
        ));
        assert!(state.own.is_some());
        assert_eq!(state.store, StoreHealth::Ok);
    });
}

#[test]
fn a_directory_that_goes_and_returns_is_ridden_out() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, away) = (
            directory.path().join("store"),
            directory.path().join("away"),
        );
        let (one, lease) = start(at(&path), SHORT, LARGE, 1).await;
        let (_two, _) = start(at(&path), SHORT, LARGE, 2).await;
        one.until("the other node", |state| state.leases.len() == 1)
            .await;
        fs::rename(&path, &away).expect("moved");
        fs::write(&path, "in the way").expect("written");
        let state = one
            .until("the outage", |state| {
                matches!(state.store, StoreHealth::Unreachable { .. })
            })
            .await;
        assert_eq!(state.leases.len(), 1, "known leases stay");
        assert!(state.synced && state.own.is_some());
        tokio::time::sleep(SHORT + SHORT / 2).await;
        fs::remove_file(&path).expect("removed");
        fs::rename(&away, &path).expect("moved back");
        let state = one
            .until("the return", |state| state.store == StoreHealth::Ok)
            .await;
        assert_eq!(state.own.map(|own| own.subnets), Some(lease.subnets));
        assert_eq!(state.leases.len(), 1, "no gap for the peer");
    });
}

#[test]
fn services_are_small_files_and_followed() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (node, _) = start(at(directory.path()), TTL, LARGE, 1).await;
        let services = directory.path().join("services");
        let slices = directory.path().join("endpointslices");
        for path in [&services, &slices] {
            fs::create_dir(path).expect("a directory");
        }
        fs::write(services.join("web.json"), WEB).expect("written");
        fs::write(services.join(".web.json.swp"), "half").expect("written");
        let served = serve(&node);
        served.until_web(Some(&[])).await;
        fs::write(slices.join("web-1.json"), web_slice("10.244.1.2")).expect("written");
        served.until_web(Some(&["10.244.1.2:8080"])).await;
        fs::write(slices.join("new"), web_slice("10.244.1.3")).expect("written");
        fs::rename(slices.join("new"), slices.join("web-1.json")).expect("renamed");
        served.until_web(Some(&["10.244.1.3:8080"])).await;
        fs::write(slices.join("web-2.json"), "nonsense").expect("written");
        let refused = |state: &overlay_user::store::ServiceState| state.refused.len() == 1;
        served.until("one that is refused", refused).await;
        served.until_web(Some(&["10.244.1.3:8080"])).await;
        fs::remove_file(slices.join("web-2.json")).expect("removed");
        served
            .until("nothing refused", |state| state.refused.is_empty())
            .await;
        fs::remove_dir_all(&slices).expect("removed");
        served.until_web(Some(&[])).await;
        // The agent may have created the directory first.
        fs::create_dir_all(&slices).expect("a directory");
        fs::write(slices.join("web-3.json"), web_slice("10.244.1.5")).expect("written");
        served.until_web(Some(&["10.244.1.5:8080"])).await;
        fs::write(
            services.join("web.json"),
            r#"{"metadata":{"name":"other"}}"#,
        )
        .expect("written");
        served.until_web(None).await;
        served.until("a wrong name", refused).await;
    });
}
