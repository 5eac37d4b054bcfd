//! The guard is written once; afterwards only changes are written.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay_user::kernel::guard::{self, Guard, GuardChange, GuardState, Reason};

use super::guard::{at, counted, state, vxlan};
use super::namespace::{in_namespace, node_with_peer, run};

/// Longer than the kernel needs until an element of one second has expired.
const RUN_OUT: Duration = Duration::from_millis(1500);

async fn applied(guard: &mut Guard, state: &GuardState) -> GuardChange {
    guard.apply(state).await.expect("apply")
}

fn node(number: u32) -> (Ipv4Addr, BTreeSet<Ipv4Net>) {
    let vtep = Ipv4Addr::from_bits(0xc0a8_0000 + number);
    let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0af4_0000 + (number << 4)), 28);
    (vtep, [subnet.expect("a prefix length")].into())
}

#[test]
fn only_what_changes_is_written_and_what_others_change_is_put_right() {
    in_namespace(|| async {
        let mut state = state();
        let mut guard = Guard::new();
        assert!(!guard.is_intact().await.expect("a look"));
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Whole);
        assert_eq!(applied(&mut guard, &state).await, GuardChange::None);

        state
            .pods
            .insert(("two".into(), Ipv4Addr::new(10, 244, 1, 6)));
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Elements(2));
        assert!(run("nft list set bridge overlay_guard pods").contains("two"));
        state.pods.pop_last();
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Elements(2));
        assert!(!run("nft list set bridge overlay_guard pods").contains("two"));

        // Foreign tables do not matter, whenever they change.
        run("nft add table inet others");
        assert!(guard.is_intact().await.expect("a look"));
        run("nft add chain inet others one");
        let subnet = "10.244.9.0/24".parse().expect("a net");
        state.peers.insert(at(9), [subnet].into());
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Elements(3));
        assert!(guard.is_intact().await.expect("a look"));

        for harm in [
            "nft flush ruleset",
            "nft delete table bridge overlay_guard",
            "nft flush chain ip overlay_guard checks",
            "nft flush chain bridge overlay_guard guard",
            "nft insert rule ip overlay_guard checks accept",
            "nft add table ip overlay_guard \\{ flags dormant\\; \\}",
        ] {
            run(harm);
            assert!(!guard.is_intact().await.expect("a look"), "{harm}");
            assert_eq!(
                applied(&mut guard, &state).await,
                GuardChange::Whole,
                "{harm}"
            );
            assert_eq!(
                applied(&mut guard, &state).await,
                GuardChange::None,
                "{harm}"
            );
        }
        // The plugin removes the element of a pod that it deletes, before the agent hears of the
        // deletion.
        state
            .pods
            .insert(("two".into(), Ipv4Addr::new(10, 244, 1, 6)));
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Elements(2));
        let (name, address) = state.pods.pop_last().expect("two pods");
        guard::pod::dismiss(&name, address).await.expect("dismiss");
        assert_eq!(applied(&mut guard, &state).await, GuardChange::None);
        // An element to remove may be missing already.
        run("nft flush set bridge overlay_guard pods");
        state.pods.clear();
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Elements(1));
        assert_eq!(applied(&mut guard, &state).await, GuardChange::None);
        guard::cleanup().await.expect("cleanup");
    });
}

#[test]
fn thousands_of_peers_come_and_go() {
    in_namespace(|| async {
        let mut state = state();
        let mut guard = Guard::new();
        state.peers = (1..3000).map(node).collect();
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Whole);
        for (vtep, subnets) in (3000..3300).map(node) {
            state.peers.insert(vtep, subnets);
        }
        assert_eq!(
            applied(&mut guard, &state).await,
            GuardChange::Elements(900)
        );
        let last = node(3299).0.to_string();
        assert!(run("nft list set ip overlay_guard sources_28").contains(&last));
        for (vtep, _) in (3000..3300).map(node) {
            state.peers.remove(&vtep);
        }
        assert_eq!(
            applied(&mut guard, &state).await,
            GuardChange::Elements(900)
        );
        assert!(!run("nft list set ip overlay_guard sources_28").contains(&last));
    });
}

#[test]
fn a_list_of_leases_that_nobody_keeps_is_not_believed_for_ever() {
    in_namespace(|| async {
        let peer = node_with_peer();
        peer.run("ip addr add 192.0.2.9/24 dev underlay");
        let mut state = state();
        state.lapse = Duration::from_secs(1);
        let mut guard = Guard::new();
        applied(&mut guard, &state).await;
        let send = |from: &'static str, payload: Vec<u8>| {
            peer.within(move || {
                let socket = UdpSocket::bind((from, 0)).expect("bind");
                socket.send_to(&payload, "192.0.2.1:8472").expect("send");
            });
        };
        let (known, unknown) = ("192.0.2.2", "192.0.2.9");
        let stranger = || send(unknown, vxlan(1, 0x0800, [10, 244, 3, 7], 0));
        stranger();
        assert_eq!(counted().await, [(Reason::UnknownVtep, 1)]);

        tokio::time::sleep(RUN_OUT).await;
        stranger();
        send(known, vxlan(1, 0x0800, [10, 244, 3, 7], 0));
        assert_eq!(counted().await, [(Reason::UnknownVtep, 1)]);
        // Rules that do not depend on leases stay in force.
        send(unknown, vxlan(1, 0x0800, [10, 244, 1, 7], 0));
        send(unknown, vxlan(1, 0x86dd, [10, 244, 1, 7], 0));
        let expected = [
            (Reason::UnknownVtep, 1),
            (Reason::InnerProtocol, 1),
            (Reason::OwnSubnet, 1),
        ];
        assert_eq!(counted().await, expected);

        // An agent runs again; while an agent runs, the element does not expire.
        for _ in 0..4 {
            guard.renew().await.expect("renew");
            assert!(guard.is_intact().await.expect("a look"));
            tokio::time::sleep(RUN_OUT / 4).await;
        }
        guard.renew().await.expect("renew");
        stranger();
        assert!(counted().await.contains(&(Reason::UnknownVtep, 2)));
    });
}

#[test]
fn pods_that_programs_judge_meet_no_chain_of_the_bridge() {
    in_namespace(|| async {
        let mut state = state();
        state.judged = Some(["pod".into()].into());
        let mut guard = Guard::new();
        applied(&mut guard, &state).await;
        assert!(!run("nft list ruleset bridge").contains("hook"));
        // This pod's program could not be attached.
        state
            .pods
            .insert(("two".into(), Ipv4Addr::new(10, 244, 1, 6)));
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Whole);
        let bridge = run("nft list ruleset bridge");
        assert!(bridge.contains("hook prerouting"), "{bridge}");
        assert!(bridge.contains("\"two\" . 10.244.1.6"), "{bridge}");
        assert!(!bridge.contains("\"pod\""), "{bridge}");
    });
}

#[test]
fn where_netfilter_translates_only_first_packets_are_judged_on_their_way_out() {
    in_namespace(|| async {
        let mut state = state();
        let mut guard = Guard::new();
        applied(&mut guard, &state).await;
        state.translates = true;
        assert_eq!(applied(&mut guard, &state).await, GuardChange::Whole);
        let chains = run("nft list chains ip");
        assert!(chains.contains("type nat hook postrouting"), "{chains}");
        assert!(!chains.contains("hook forward"), "{chains}");
    });
}
