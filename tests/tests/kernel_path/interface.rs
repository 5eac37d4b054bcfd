//! The chosen device is the one that flannel would choose (its `match_test.go` has these
//! expectations).

use std::net::IpAddr;

use overlay_user::kernel::Kernel;
use overlay_user::kernel::interface::{Criteria, Error, Underlay};

use super::namespace::{in_namespace, run};

async fn select(criteria: Criteria) -> Result<Underlay, Error> {
    let kernel = Kernel::connect().expect("netlink");
    kernel
        .select_underlay(&criteria, "10.244.0.0/16".parse().expect("a network"))
        .await
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn interfaces_are_chosen_as_flannel_chooses_them() {
    in_namespace(|| async {
        run("ip link add dummy0 type bridge && ip link set dummy0 up");
        for address in [
            "1.10.100.1/24",
            "192.168.200.128/24",
            "172.16.30.18/24",
            "172.16.32.100/24",
        ] {
            run(&format!("ip addr add {address} dev dummy0"));
        }
        let regex = |pattern| Criteria {
            regexes: text(&[pattern]),
            ..Criteria::default()
        };
        let name = |name| Criteria {
            interfaces: text(&["none", name]),
            ..Criteria::default()
        };
        let reach = Criteria {
            can_reach: "172.16.32.254".parse().ok(),
            ..Criteria::default()
        };
        let public = "172.16.31.200".parse().ok();
        for (criteria, address, public) in [
            (
                regex(r"192\.168\.200\.\d+"),
                [192, 168, 200, 128],
                [192, 168, 200, 128],
            ),
            (regex(r"dummy\d+"), [1, 10, 100, 1], [1, 10, 100, 1]),
            (name("dummy0"), [1, 10, 100, 1], [1, 10, 100, 1]),
            (name("172.16.30.18"), [172, 16, 30, 18], [172, 16, 30, 18]),
            (reach, [172, 16, 32, 100], [172, 16, 32, 100]),
            (
                Criteria {
                    public_address: public,
                    ..regex(r"172\.16\.30\.\d+")
                },
                [172, 16, 30, 18],
                [172, 16, 31, 200],
            ),
        ] {
            let found = select(criteria).await.expect("a device");
            assert_eq!(found.name, "dummy0");
            assert_eq!(
                (found.address, found.public_address),
                (address.into(), public.into())
            );
        }
    });
}

#[test]
fn the_default_route_decides_and_failure_lists_the_devices() {
    in_namespace(|| async {
        run(
            "ip link add dummy0 type bridge && ip link set dummy0 up && ip addr add 192.0.2.1/24 \
            dev dummy0",
        );
        let error = select(Criteria::default())
            .await
            .expect_err("there is no default route");
        let told = error.to_string();
        assert!(
            told.contains("the default route") && told.contains("dummy0 (192.0.2.1)"),
            "{told}"
        );
        run("ip route add default via 192.0.2.254");
        let found = select(Criteria::default()).await.expect("a device");
        assert_eq!(
            (found.address, found.mtu),
            (IpAddr::from([192, 0, 2, 1]), 1500)
        );
    });
}
