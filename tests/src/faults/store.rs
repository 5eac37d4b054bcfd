//! etcd is stopped, or does not work correctly any more.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;
use nix::sys::signal::Signal;

use super::scene::{REPAIR, Scene, ensure_logged, text};
use super::stage::SHORT_LEASE;
use super::{Case, Stage, tools};
use crate::{Lab, Node, command, wait_until};

/// Longer than a lease.
pub(super) const OUTAGE: Duration = Duration::from_secs(SHORT_LEASE + 4);
/// The time for which leases are watched after the return of etcd.
pub(super) const AFTER: Duration = Duration::from_secs(3);
/// Bytes of a value that fills etcd; the command line allows no more at a time.
const JUNK: usize = 100_000;
/// Prefix of the keys with junk.
const JUNK_PREFIX: &str = "/junk/";

const BASE: Case = Case {
    stage: Stage::ShortLease,
    ..Case::USUAL
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "etcd-killed",
        fault: "etcd gets SIGKILL, is away for longer than the leases, and comes back",
        invariant: "no node changes its subnet, and none drops its peers",
        run: |scene| {
            Nodes::of(scene)?.keep_while(
                scene,
                || {
                    let etcd = scene.lab.store_process().context("etcd")?;
                    etcd.signal(Signal::SIGKILL)
                },
                || scene.lab.start_store(),
            )
        },
        ..BASE
    },
    Case {
        name: "etcd-frozen",
        fault: "etcd gets SIGSTOP for longer than the leases",
        invariant: "no node changes its subnet, and none drops its peers",
        run: |scene| {
            let etcd = scene.lab.store_process().context("etcd")?;
            Nodes::of(scene)?.keep_while(
                scene,
                || etcd.signal(Signal::SIGSTOP),
                || etcd.signal(Signal::SIGCONT),
            )
        },
        ..BASE
    },
    Case {
        name: "etcd-partitioned",
        fault: "etcd's cable is cut for longer than the leases",
        invariant: "no node changes its subnet, and none drops its peers",
        quick: false,
        run: |scene| {
            let wire = scene.lab.namespace("underlay")?;
            let set = |state: &str| -> Result<()> {
                command::ip(&format!("-n {} link set store {state}", wire.name())).map(drop)
            };
            Nodes::of(scene)?.keep_while(scene, || set("down"), || set("up"))
        },
        ..BASE
    },
    Case {
        name: "etcd-compacted",
        fault: "etcd is compacted up to now and restarted, so that watches cannot resume",
        invariant: "no node changes its subnet; the watch goes on with what is new",
        run: compacted,
        ..BASE
    },
    Case {
        name: "etcd-out-of-quota",
        fault: "etcd's database reaches its quota and takes no writes; an agent is restarted \
            meanwhile",
        invariant: "leases are kept alive; the agent says what is wrong, waits, and goes on when \
            there is room",
        quick: false,
        run: out_of_quota,
        ..BASE
    },
    Case {
        name: "etcd-disk-full",
        fault: "etcd's disk is full until it ends, and it is away for longer than the leases",
        invariant: "no node changes its subnet, and none drops its peers",
        quick: false,
        run: disk_full,
        ..BASE
    },
];

/// The subnet of every node.
pub(super) struct Nodes(Vec<(Node, Ipv4Net)>);

impl Nodes {
    pub(super) fn of(scene: &Scene<'_>) -> Result<Self> {
        let nodes = scene.lab.nodes().into_iter();
        let with_subnet = |node: Node| node.subnet().map(|subnet| (node, subnet));
        nodes.map(with_subnet).collect::<Result<_>>().map(Self)
    }

    /// Checks that every node holds the same subnet, and knows its peers.
    pub(super) fn ensure_kept(&self) -> Result<()> {
        for (node, before) in &self.0 {
            let (name, subnet) = (node.name(), node.subnet()?);
            ensure!(subnet == *before, "{name}: {before} became {subnet}");
            let routes = node.overlay_routes()?;
            ensure!(
                routes + 1 == self.0.len(),
                "{name} has {routes} routes to peers"
            );
        }
        Ok(())
    }

    /// Breaks the store for longer than the leases and repairs it; checks that no node loses its
    /// lease or a peer in the meantime, nor shortly afterwards.
    pub(super) fn keep_while(
        &self,
        scene: &Scene<'_>,
        breaks: impl FnOnce() -> Result<()>,
        mends: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        breaks()?;
        let kept = scene
            .holds_for(OUTAGE, || self.ensure_kept())
            .and_then(|()| tools::answer(&scene.node()));
        mends()?;
        kept.context("while the store was away")?;
        self.ensure_kept_after(scene)
    }

    /// Waits for every lease, and checks that none is removed again.
    pub(super) fn ensure_kept_after(&self, scene: &Scene<'_>) -> Result<()> {
        let count = self.0.len();
        wait_until(&format!("{count} leases"), REPAIR, || {
            leases(scene.lab).is_ok_and(|leases| leases == count)
        })?;
        scene
            .holds_for(AFTER, || {
                self.ensure_kept()?;
                ensure!(leases(scene.lab)? == count, "a lease went away");
                Ok(())
            })
            .context("after the store came back")
    }
}

/// How many leases etcd holds.
fn leases(lab: &Lab) -> Result<usize> {
    let prefix = "/coreos.com/network/subnets/";
    let list = lab.etcdctl(&["get", "--prefix", "--keys-only", prefix])?;
    Ok(list.split_whitespace().count())
}

/// etcd's count of changes.
fn revision(lab: &Lab) -> Result<String> {
    let status = lab.etcdctl(&["endpoint", "status", "--write-out=json"])?;
    let status: serde_json::Value = serde_json::from_str(&status).context("etcd's status")?;
    let revision = &status[0]["Status"]["header"]["revision"];
    Ok(revision.as_u64().context("etcd's revision")?.to_string())
}

fn compacted(scene: &Scene<'_>) -> Result<()> {
    let nodes = Nodes::of(scene)?;
    for i in 0..20 {
        scene.lab.etcdctl(&["put", "/elsewhere", &i.to_string()])?;
    }
    scene.lab.etcdctl(&["compact", &revision(scene.lab)?])?;
    scene.lab.stop_store()?;
    scene.lab.start_store()?;
    nodes.ensure_kept_after(scene)?;
    // A working watch notices a node that leaves.
    let watchers = [scene.node(), scene.lab.node(2)];
    let routes = |count: usize| {
        wait_until(&format!("{count} routes to peers"), REPAIR, || {
            let has = |node: &Node| node.overlay_routes().is_ok_and(|routes| routes == count);
            watchers.iter().all(has)
        })
    };
    let reserved = "/coreos.com/network/subnets/10.244.250.0-24";
    let value = "{\"PublicIP\":\"192.0.2.9\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
        \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:09\"}}";
    scene.lab.etcdctl(&["put", reserved, value])?;
    routes(2)?;
    scene.lab.etcdctl(&["del", reserved])?;
    routes(1)
}

/// Writes junk until etcd refuses more; returns etcd's error.
fn fill(lab: &Lab) -> Result<String> {
    let junk = "x".repeat(JUNK);
    for i in 0..5_000 {
        let key = format!("{JUNK_PREFIX}{i}");
        if let Err(error) = lab.etcdctl(&["put", &key, &junk]) {
            // The end of the line, because the line begins with the command, including the junk.
            let said = format!("{error:#}");
            let start = said.len().saturating_sub(300);
            return Ok(said.get(start..).unwrap_or_default().to_owned());
        }
    }
    anyhow::bail!("etcd took {} bytes", 5_000 * JUNK)
}

fn out_of_quota(scene: &Scene<'_>) -> Result<()> {
    let (lab, node, nodes) = (scene.lab, scene.node(), Nodes::of(scene)?);
    lab.stop_store()?;
    lab.start_store_through(&["env", "ETCD_QUOTA_BACKEND_BYTES=4000000"])?;
    let refusal = fill(lab)?;
    ensure!(refusal.contains("space exceeded"), "{refusal}");

    node.stop_agent(Signal::SIGKILL)?;
    node.start_agent_unready(&[])?;
    let kept = scene.holds_for(Duration::from_secs(SHORT_LEASE / 2), || nodes.ensure_kept());
    let told = ensure_logged(&node, "space exceeded").and_then(|()| tools::answer(&node));

    lab.etcdctl(&["del", "--prefix", JUNK_PREFIX])?;
    lab.etcdctl(&["compact", &revision(lab)?])?;
    lab.etcdctl(&["defrag"])?;
    lab.etcdctl(&["alarm", "disarm"])?;
    kept.and(told)?;
    node.wait_ready(REPAIR)?;
    lab.stop_store()?;
    lab.start_store()?;
    nodes.ensure_kept_after(scene)
}

fn disk_full(scene: &Scene<'_>) -> Result<()> {
    let (lab, nodes) = (scene.lab, Nodes::of(scene)?);
    let (data, small) = (lab.store_data(1), lab.directory().join("small"));
    let (data, small) = (text(&data), text(&small));
    fs::create_dir(&small).with_context(|| format!("create {small}"))?;
    let run = |line: &str| command::run("sh", ["-ec", line]).map(drop);

    lab.stop_store()?;
    // etcd preallocates 64 MB for the write-ahead log.
    run(&format!(
        "mount -t tmpfs -o size=200m overlay-lab {small}
         cp -a {data}/. {small}; mount --bind {small} {data}"
    ))?;
    let full = || -> Result<()> {
        lab.start_store()?;
        run(&format!(
            "head -c 200m /dev/zero > {small}/other-files || true"
        ))?;
        let refusal = fill(lab)?;
        println!("etcd on a full disk: {refusal}");
        let etcd = lab.store_process().context("etcd")?;
        nodes.keep_while(
            scene,
            || wait_until("etcd to end", REPAIR, || !etcd.is_alive()),
            || {
                run(&format!("rm {small}/other-files"))?;
                lab.start_store()
            },
        )?;
        lab.etcdctl(&["del", "--prefix", JUNK_PREFIX]).map(drop)
    };
    let result = full();
    lab.stop_store()?;
    run(&format!(
        "umount {data}; rm -r {data}; mkdir {data}; cp -a {small}/. {data}; umount {small}; rmdir \
        {small}"
    ))?;
    lab.start_store()?;
    result
}
