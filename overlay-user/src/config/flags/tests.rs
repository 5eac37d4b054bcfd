use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, FromArgMatches as _};

use super::super::go_flags::double_dashes;
use super::*;

fn parse(args: &[&str]) -> Result<AgentFlags, clap::Error> {
    let command = AgentFlags::augment_args(Command::new("overlayd"));
    let args = std::iter::once("overlayd")
        .chain(args.iter().copied())
        .map(OsString::from);
    let args = double_dashes(&command, args);
    AgentFlags::from_arg_matches(&command.try_get_matches_from(args)?)
}

#[test]
fn defaults_are_flannelds() {
    let flags = parse(&[]).expect("no flag is required");
    assert_eq!(flags.store.store, StoreKind::Etcd);
    assert_eq!(
        flags.store.etcd_endpoints,
        ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
    );
    assert_eq!(flags.store.etcd_prefix, "/coreos.com/network");
    assert_eq!(flags.store.subnet_lease_renew_margin, 60);
    assert_eq!(flags.store.renew_every(), Duration::from_secs(8 * 3600));
    assert_eq!(
        flags.node.subnet_file,
        PathBuf::from("/run/flannel/subnet.env")
    );
    assert!(!flags.node.ip_masq);
    assert!(flags.node.iptables_forward_rules);
    assert_eq!(flags.node.iptables_resync, 5);
    assert_eq!(flags.node.healthz_port, 0);
    assert!(flags.underlay.iface.is_empty());
    assert_eq!(flags.check(), Ok(()));
}

#[test]
fn flannelds_command_lines_work() {
    let flags = parse(&[
        "-iface=eth1",
        "--iface",
        "10.0.0.7",
        "-ip-masq",
        "--iptables-forward-rules=false",
        "-etcd-endpoints=http://a:1,http://b:2",
        "-subnet-lease-renew-margin=1430",
        "-v=10",
        "-vmodule=x=1",
        "--kube-subnet-mgr=false",
    ])
    .expect("flanneld would start");
    assert_eq!(flags.underlay.iface, ["eth1", "10.0.0.7"]);
    assert!(flags.node.ip_masq);
    assert!(!flags.node.iptables_forward_rules);
    assert_eq!(flags.store.etcd_endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(flags.store.renew_every(), Duration::from_secs(600));
    assert_eq!(flags.check(), Ok(()));
}

#[test]
fn what_is_not_done_yet_is_refused() {
    for flag in ["--public-ipv6=fd00::1", "--ip-blackhole-route"] {
        let error = parse(&[flag])
            .expect("parsed")
            .check()
            .expect_err(flag)
            .to_string();
        assert!(error.contains("not supported yet"), "{error}");
    }
}

#[test]
fn bad_values_are_refused() {
    for flag in [
        "--subnet-lease-renew-margin=0",
        "--subnet-lease-renew-margin=1440",
        "--store=file:/x",
        "--store=dir:",
        "--lease-ttl=soon",
        "--ip-masq=maybe",
        "--public-ip=fd00::1",
        "--fast-path=on",
        "--unknown",
    ] {
        assert!(parse(&[flag]).is_err(), "{flag}");
    }
}

#[test]
fn the_password_is_hidden() {
    let flags = parse(&["--etcd-username=u", "--etcd-password=hunter2"]).expect("parsed");
    assert!(!format!("{flags:?}").contains("hunter2"));
    assert_eq!(flags.store.etcd_password.reveal(), "hunter2");
}

#[test]
fn a_directory_is_a_store_and_short_leases_are_renewed_by_thirds() {
    let flags = parse(&["--store", "dir:/srv/overlay", "--lease-ttl=10s"]).expect("parsed");
    assert_eq!(flags.store.store, StoreKind::Dir("/srv/overlay".into()));
    assert!(flags.store.renew_every() < Duration::from_secs(4));
}

#[test]
fn a_store_of_no_known_kind_is_refused() {
    for text in ["zookeeper", "dir", "dir:", "kube:x", ""] {
        assert!(text.parse::<StoreKind>().is_err(), "{text:?}");
    }
}

#[test]
fn every_flag_has_its_environment_variable() {
    let command = AgentFlags::augment_args(Command::new("overlayd"));
    for arg in command.get_arguments() {
        let long = arg
            .get_long()
            .expect("long flags only")
            .to_uppercase()
            .replace('-', "_");
        let env = arg
            .get_env()
            .and_then(|env| env.to_str())
            .unwrap_or_default();
        assert!(
            [format!("FLANNELD_{long}"), format!("OVERLAY_{long}")].contains(&env.to_owned()),
            "{long} has {env:?}"
        );
    }
}

#[test]
fn two_stores_are_refused_by_name() {
    let checked = |args: &[&str]| parse(args).expect("flags").check();
    let error = checked(&["--store=dir:/srv/overlay", "--kube-subnet-mgr"]).expect_err("two");
    let text = error.to_string();
    assert!(
        text.contains("dir:/srv/overlay") && text.contains("--kube-subnet-mgr"),
        "{text}"
    );
    for one in [
        &["--store=kube", "--kube-subnet-mgr"][..],
        &["--store=dir:/srv/overlay", "--kube-subnet-mgr=false"],
        &["--kube-subnet-mgr"],
    ] {
        assert_eq!(checked(one), Ok(()), "{one:?}");
    }
}
