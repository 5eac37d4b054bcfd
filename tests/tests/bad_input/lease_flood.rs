//! A writer of the store that does not stop.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etcd_client::Client;
use overlay_tests::{Node, StoreKind, wait_until};

use crate::leases::{SUBNETS, lease};
use crate::witness::{all_is_well, talks};
use crate::{PATIENCE, lab};

/// Number of leases that are written, as fast as etcd accepts them.
const STORM: usize = 20_000;
/// Number of concurrent writes.
const AT_A_TIME: usize = 32;
/// Largest growth of an agent's memory, in KiB: several times the size of its leases, but far less
/// than all that was written.
const GROWTH: u64 = 64 * 1024;

/// The resources that an agent has used.
struct Usage {
    resident_kib: u64,
    cpu: Duration,
}

fn usage(node: &Node) -> Result<Usage> {
    let pid = node.agent().context("an agent")?.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("no VmRSS")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no name")?.1;
    // utime and stime, in hundredths of a second (`USER_HZ`).
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(Usage {
        resident_kib: resident.parse()?,
        cpu: Duration::from_millis(10 * ticks),
    })
}

/// The key and value of the `number`-th write: believable leases that move all the time, and
/// malformed ones. The nodes' own subnets are left out, because a writer of those takes them away,
/// which another test covers.
fn write(number: usize, taken: [usize; 2]) -> (String, String) {
    let free: Vec<usize> = (20..220).filter(|it| !taken.contains(it)).collect();
    let subnet = free[number % free.len()];
    let host = number % 250 + 1;
    let mac = format!(
        "02:00:{:02x}:{:02x}:00:{host:02x}",
        number >> 16 & 0xff,
        number >> 8 & 0xff
    );
    let value = match number % 10 {
        0 => "x".repeat(50_000),
        1 => lease("127.0.0.1", &mac),
        2 => format!(r#"{{"PublicIP":"{}"}}"#, "[".repeat(1000)),
        _ => lease(&format!("172.20.{}.{host}", number / 250 % 256), &mac),
    };
    let key = match number % 25 {
        3 => format!("{SUBNETS}/\u{1b}[2J{number}\n"),
        4 => format!(
            "{SUBNETS}/10.244.{subnet}.0-24/{}",
            "deeper/".repeat(number % 50)
        ),
        _ => format!("{SUBNETS}/10.244.{subnet}.0-24"),
    };
    (key, value)
}

/// Makes all writes of the storm.
async fn storm(endpoint: &str, taken: [usize; 2]) -> Result<()> {
    let client = Client::connect([endpoint], None).await?;
    let writer = |first: usize| {
        let mut client = client.clone();
        async move {
            for number in (first..STORM).step_by(AT_A_TIME) {
                let (key, value) = write(number, taken);
                client.put(key, value, None).await?;
            }
            anyhow::Ok(())
        }
    };
    let writers = (0..AT_A_TIME).map(writer);
    futures::future::try_join_all(writers).await.map(drop)
}

#[test]
fn a_storm_of_leases_disturbs_nobody() -> Result<()> {
    let lab = lab("bad-storm", 2, StoreKind::Etcd)?;
    let first = lab.node(1);
    let (own, other) = (first.subnet()?, lab.node(2).subnet()?);
    let talks = talks(&lab)?;
    let before = usage(&first)?;
    let endpoint = lab.store_endpoint();
    let taken = [own, other].map(|net| usize::from(net.network().octets()[2]));
    let started = Instant::now();
    lab.namespace("store")?.inside(|| -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(storm(&endpoint, taken))
    })??;
    let took = started.elapsed();
    let after = usage(&first)?;
    println!(
        "{:.0} writes a second for {:.1} s: the agent used {:.0} % of a core and grew from {} to \
        {} KiB",
        STORM as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        100.0 * (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64(),
        before.resident_kib,
        after.resident_kib,
    );
    ensure!(
        after.resident_kib < before.resident_kib + GROWTH,
        "the agent grew from {} to {} KiB",
        before.resident_kib,
        after.resident_kib
    );
    // The remaining leases are served, and removed when they are deleted.
    first.wait_ready(6 * PATIENCE)?;
    let keys = lab.etcdctl(&["get", "--prefix", "--keys-only", SUBNETS])?;
    ensure!(keys.lines().count() > 100, "the storm left nothing: {keys}");
    let keep = [own, other].map(|net| format!("{SUBNETS}/{}-{}", net.network(), net.prefix_len()));
    let (low, high) = (format!("{SUBNETS}/"), format!("{SUBNETS}0"));
    delete_all_but(&lab, &low, &high, keep)?;
    wait_until("the routes' end", 6 * PATIENCE, || {
        first.overlay_routes().is_ok_and(|routes| routes == 1)
    })
    .with_context(|| format!("{:?}", first.overlay_routes()))?;
    all_is_well(&lab, talks)
}

/// Deletes the keys from `low` to `high` except two.
fn delete_all_but(
    lab: &overlay_tests::Lab,
    low: &str,
    high: &str,
    mut keep: [String; 2],
) -> Result<()> {
    keep.sort();
    let [first, second] = &keep;
    for (from, to) in [
        (low.to_owned(), first.clone()),
        (format!("{first}\u{1}"), second.clone()),
        (format!("{second}\u{1}"), high.to_owned()),
    ] {
        lab.etcdctl(&["del", &from, &to])?;
    }
    Ok(())
}
