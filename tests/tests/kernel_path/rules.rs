//! flannel's rules and the connections that they translate.

use std::net::{IpAddr, UdpSocket};

use overlay_user::kernel::conntrack;
use overlay_user::kernel::rules::{Driver, RuleSet, Witness};

use super::namespace::{in_namespace, run};

fn rules() -> RuleSet {
    RuleSet {
        network: "10.244.0.0/16".parse().expect("a network"),
        subnet: "10.244.1.0/24".parse().expect("a network"),
        masquerade: true,
        forward: true,
        random_fully: true,
    }
}

#[test]
fn iptables_rules_are_put_back_and_removed() {
    in_namespace(|| async {
        let ensure = async |rules| Driver::Iptables.ensure(&rules).await.expect("ensure");
        run("iptables -A FORWARD -j ACCEPT");
        assert!(ensure(rules()).await);
        assert!(!ensure(rules()).await);
        for loss in [
            "iptables -t nat -D POSTROUTING 1",
            "iptables -D FLANNEL-FWD 2",
            "iptables -t nat -F FLANNEL-POSTRTG",
            "iptables -A FLANNEL-FWD -j DROP",
        ] {
            run(loss);
            assert!(ensure(rules()).await, "{loss}");
            assert!(!ensure(rules()).await, "{loss}");
        }
        assert!(
            ensure(RuleSet {
                forward: false,
                ..rules()
            })
            .await
        );
        assert!(!run("iptables-save").contains("FLANNEL-FWD"));
        Driver::Iptables.remove().await.expect("remove");
        Driver::Iptables.remove().await.expect("remove again");
        let left = run("iptables-save");
        assert!(
            !left.contains("FLANNEL") && left.contains("-A FORWARD -j ACCEPT"),
            "{left}"
        );
    });
}

#[test]
fn a_legacy_rule_in_the_place_of_another_is_noticed() {
    if !super::policies::has_legacy() {
        return;
    }
    in_namespace(|| async {
        let look = async || Witness::look(None).await.expect("the kernel tells");
        run("iptables-legacy -A INPUT -d 127.0.0.1 -j ACCEPT");
        let before = look().await;
        run("ping -c 1 -W 2 127.0.0.1");
        assert!(!run("iptables-legacy -nvxL INPUT").contains(" 0 ACCEPT"));
        assert!(
            look().await.agrees_with(&before),
            "a rule that has counted is the same rule"
        );
        run("iptables-legacy -R INPUT 1 -d 127.0.0.2 -j ACCEPT");
        assert!(!look().await.agrees_with(&before));
    });
}

#[test]
fn nftables_rules_are_put_back_and_removed() {
    in_namespace(|| async {
        let ensure = async |rules| Driver::Nftables.ensure(&rules).await.expect("ensure");
        run("nft add table ip others");
        assert!(ensure(rules()).await);
        assert!(!ensure(rules()).await);
        run("nft flush chain ip flannel-ipv4 postrtg");
        assert!(ensure(rules()).await);
        assert!(
            ensure(RuleSet {
                random_fully: false,
                ..rules()
            })
            .await
        );
        Driver::Nftables.remove().await.expect("remove");
        Driver::Nftables.remove().await.expect("remove again");
        assert_eq!(run("nft list tables"), "table ip others\n");
    });
}

#[test]
fn only_translated_connections_are_listed() {
    in_namespace(|| async {
        run("ip addr add 10.9.9.9/32 dev lo");
        run("iptables -t nat -A OUTPUT -d 10.9.9.9 -p udp --dport 53 -j DNAT --to 127.0.0.1:5353");
        let socket = UdpSocket::bind("127.0.0.1:4000").expect("bind");
        socket.send_to(b"plain", "127.0.0.1:9").expect("send");
        socket.send_to(b"translated", "10.9.9.9:53").expect("send");
        let network = "10.9.0.0/16".parse().expect("a network");
        let found = conntrack::translated(network, Some).await.expect("dump");
        let [connection] = found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(connection.protocol, 17);
        assert_eq!(connection.original.destination, IpAddr::from([10, 9, 9, 9]));
        assert_eq!(connection.original.destination_port, 53);
        assert_eq!(connection.reply.source, IpAddr::from([127, 0, 0, 1]));
        assert_eq!(connection.reply.source_port, 5353);
        assert_eq!(connection.reply.destination_port, 4000);

        // ICMP has an identifier instead of ports.
        run("iptables -t nat -A OUTPUT -d 10.9.9.9 -p icmp -j DNAT --to 127.0.0.1");
        run("ping -c 1 -W 2 10.9.9.9");
        let found = conntrack::translated(network, Some).await.expect("dump");
        let echo = found
            .iter()
            .find(|connection| connection.protocol == 1)
            .expect("the echo");
        assert_eq!(echo.reply.source, IpAddr::from([127, 0, 0, 1]));
        assert_ne!(echo.original.source_port, 0);
        assert_eq!(echo.original.source_port, echo.reply.destination_port);
    });
}
