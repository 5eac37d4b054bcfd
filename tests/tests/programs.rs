//! The programs in this machine's kernel, run on invented packets, compared with the decision in
//! Rust. Needs root.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_cases::cases::{Case, all};
use overlay_cases::translate::translate;
use overlay_common::event::{EVENTS_LEN, Event};
use overlay_common::packet::ETHERNET_LEN;
use overlay_common::schema::{CONFIG_EVENTS, PeerEntry};
use overlay_common::snapshot::Snapshot;
use overlay_common::visit::Outcome;
use overlay_common::{Family as _, Hook, V4, V6, Verdict};
use overlay_differential::campaign::{self, Limit, Options, is_expressible};
use overlay_differential::check::check;
use overlay_differential::kernel::flow_order;
use overlay_differential::recording::{self, Recording};
use overlay_differential::{expected, in_kernel, in_kernel_for};
use overlay_user::datapath::family::UserFamily as _;

#[test]
fn every_case_ends_in_the_kernel_as_in_rust() -> Result<()> {
    in_kernel(|kernel| {
        let mut wrong = Vec::new();
        let cases: Vec<Case> = all()
            .into_iter()
            .filter(|case| is_expressible(&case.visit))
            .collect();
        ensure!(!cases.is_empty(), "no cases");
        for case in cases {
            if let Err(difference) = check(kernel, &case.world, std::slice::from_ref(&case.visit))?
            {
                let recording = Recording::of(case.name, &case.world, &[case.visit]);
                let text = serde_json::to_string_pretty(&recording)?;
                wrong.push(format!("{}\n{text}", difference.what));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

/// The programs for IPv6, which no agent loads yet.
#[test]
fn every_case_ends_in_the_kernel_as_in_rust_over_ipv6() -> Result<()> {
    in_kernel_for::<V6, _>(|kernel| {
        let mut wrong = Vec::new();
        let mut sent = BTreeMap::<(Hook, u32), u32>::new();
        let cases = all().into_iter().filter(|case| is_expressible(&case.visit));
        for case in cases {
            let Some((world, visit, want)) = translate::<V6, V6>(&case) else {
                continue;
            };
            kernel.set_world(&world)?;
            kernel.counted()?;
            let Some(ran) = kernel.run(&visit)? else {
                continue;
            };
            let verdict = match expected::verdict(&visit, &world, want, &ran) {
                Ok(verdict) => verdict,
                Err(what) => {
                    wrong.push(format!("{:?}, {}: {what}", visit.hook, case.name));
                    continue;
                }
            };
            let end = (visit.hook, verdict as u32);
            if !kernel.counted()?.keys().eq([&end]) {
                wrong.push(format!(
                    "{:?}, {}: counted otherwise",
                    visit.hook, case.name
                ));
            }
            if let Some(key) = want.remembered() {
                ensure!(
                    kernel.flows()?.contains_key(&flow_order(&key)),
                    "{}",
                    case.name
                );
            }
            *sent.entry(end).or_default() += 1;
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        for (hook, verdict) in [
            (Hook::PodIn, Verdict::Redirected),
            (Hook::PodIn, Verdict::Encapsulated),
            (Hook::PodIn, Verdict::Routed),
            (Hook::PodIn, Verdict::SpoofedSource),
            (Hook::PodIn, Verdict::SpoofedArp),
            (Hook::NetIn, Verdict::Decapsulated),
            (Hook::NetIn, Verdict::Redirected),
            (Hook::NetIn, Verdict::ForeignInnerSource),
            (Hook::NetXdp, Verdict::UnknownVtep),
            (Hook::PodOut, Verdict::Remembered),
            (Hook::VtepOut, Verdict::Remembered),
            (Hook::VtepOut, Verdict::EncapsulatedForStack),
        ] {
            ensure!(
                sent.contains_key(&(hook, verdict as u32)),
                "no {} {}",
                hook.name(),
                verdict.name()
            );
        }
        Ok(())
    })
}

#[test]
fn refused_packets_are_told_of_where_that_is_wanted() -> Result<()> {
    in_kernel(|kernel| {
        let is_refused = |case: &Case| matches!(case.want, Outcome::Refuse(_));
        let cases = all().into_iter().filter(is_refused);
        let mut count = 0;
        for mut case in cases.filter(|case| is_expressible(&case.visit)) {
            kernel.set_world(&case.world)?;
            kernel.run(&case.visit)?;
            ensure!(kernel.told().is_empty(), "{}: told unasked", case.name);

            let Some(config) = &mut case.world.config else {
                continue;
            };
            config.flags |= CONFIG_EVENTS;
            kernel.set_world(&case.world)?;
            if kernel.run(&case.visit)?.is_none() {
                continue;
            }
            let [told] = kernel.told()[..] else {
                bail!("{}: not told once", case.name);
            };
            ensure!(
                (told.hook, told.verdict) == (case.visit.hook, case.want.verdict())
                    && told.event.len as usize == case.visit.frame.len()
                    && told.event.at_ns > 0,
                "{}: {told:?}",
                case.name
            );
            if case.visit.frame.get(12..14) == Some(&V4::ETHERTYPE.to_be_bytes()) {
                let ip = V4::parse(&case.visit.packet(), ETHERNET_LEN);
                let ends = ip.map(|ip| [ip.source, ip.destination].map(V4::to_ip));
                let told_ends = [told.source, told.destination];
                ensure!(
                    Some(told_ends) == ends.map(|ends| ends.map(Some)),
                    "{}: {told:?}",
                    case.name
                );
            }
            count += 1;
        }
        ensure!(count > 20, "{count} cases");
        Ok(())
    })
}

/// One refused packet is repeated, and no process reads the events: those without room are counted.
#[test]
fn events_that_find_no_room_are_counted() -> Result<()> {
    /// A record with its header (`BPF_RINGBUF_HDR_SZ`).
    const RECORD: u32 = size_of::<Event>() as u32 + 8;
    const MORE: u32 = 7;
    in_kernel(|kernel| {
        let mut cases = all().into_iter();
        let case = cases.find(|case| case.want == Outcome::Refuse(Verdict::UnknownVtep));
        let mut case = case.expect("a case of it");
        case.world.config.as_mut().expect("a configuration").flags |= CONFIG_EVENTS;
        kernel.set_world(&case.world)?;
        let sent = EVENTS_LEN / RECORD + MORE;
        for _ in 0..sent {
            kernel.run(&case.visit)?;
        }
        let (told, lost) = (kernel.told().len() as u64, kernel.lost()?);
        ensure!(
            told + lost == u64::from(sent) && lost >= u64::from(MORE),
            "{told} told, {lost} lost of {sent}"
        );
        Ok(())
    })
}

/// Packets that the fuzzer once found, or that are too important for random choice.
#[test]
fn every_recorded_packet_ends_in_the_kernel_as_in_rust() -> Result<()> {
    let recordings =
        recording::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/programs"))?;
    ensure!(!recordings.is_empty(), "no recordings");
    in_kernel(move |kernel| {
        for (file, recording) in &recordings {
            let (world, visits) = (recording.world()?, recording.visits()?);
            if let Err(difference) = check(kernel, &world, &visits)? {
                bail!(
                    "{}: packet {}: {}",
                    file.display(),
                    difference.packet,
                    difference.what
                );
            }
        }
        Ok(())
    })
}

#[test]
fn made_up_packets_end_in_the_kernel_as_in_rust() -> Result<()> {
    let outcome = campaign::run(&Options {
        limit: Limit::Packets(100_000),
        // The seed is the same in every run; `cargo xtask fuzz` uses others.
        seed: 8472,
        jobs: 1,
        corpus: None,
        verbose: false,
    })?;
    println!("{}", outcome.report);
    if let Some(failure) = outcome.failure {
        let recording = Recording::of(&failure.what, &failure.world, &failure.visits);
        bail!(
            "{}\n{}",
            failure.what,
            serde_json::to_string_pretty(&recording)?
        );
    }
    // These verdicts must occur, because otherwise nothing would be tested about them.
    for (hook, verdict) in [
        (Hook::PodIn, Verdict::Redirected),
        (Hook::PodIn, Verdict::Encapsulated),
        (Hook::PodIn, Verdict::SpoofedSource),
        (Hook::NetIn, Verdict::Decapsulated),
        (Hook::NetIn, Verdict::ForeignInnerSource),
        (Hook::NetXdp, Verdict::ForeignInnerSource),
        (Hook::NetXdp, Verdict::UnknownVtep),
        (Hook::NetXdp, Verdict::Passed),
        (Hook::PodOut, Verdict::Remembered),
        (Hook::VtepOut, Verdict::Remembered),
        (Hook::VtepOut, Verdict::EncapsulatedForStack),
    ] {
        let times = outcome.report.of(hook, verdict);
        ensure!(
            times >= 100,
            "{} {}: {times} times",
            hook.name(),
            verdict.name()
        );
    }
    Ok(())
}

/// More peers than one system call reads.
#[test]
fn a_foreign_change_among_thousands_of_peers_is_found() -> Result<()> {
    in_kernel(|kernel| {
        let case = all().into_iter().find(|case| !case.world.peers.is_empty());
        let mut world = case.context("no case has a peer")?.world;
        let (_, peer) = world.peers.pop_first().context("no peer")?;
        for number in 0..3000_u32 {
            let [_, _, high, low] = number.to_be_bytes();
            world.peers.insert([10, 128 | high, low, 0], peer);
        }
        kernel.set_world(&world)?;
        let mut another = kernel.another()?;
        let mut less = world.clone();
        less.peers.pop_last();
        let (first, _) = world.peers.first_key_value().context("no peer")?;
        let changed = PeerEntry {
            mtu: peer.mtu + 1,
            ..peer
        };
        let changed = Snapshot {
            peers: world
                .peers
                .clone()
                .into_iter()
                .chain([(*first, changed)])
                .collect(),
            ..world.clone()
        };
        for (what, tables) in [("removed", &less), ("added", &world), ("changed", &changed)] {
            ensure!(
                !kernel.others_wrote()?,
                "nothing was changed before one was {what}"
            );
            another.fill_peers(tables)?;
            another.retire(tables)?;
            ensure!(kernel.others_wrote()?, "one was {what}");
        }
        ensure!(!kernel.others_wrote()?, "told twice");
        Ok(())
    })
}

#[test]
fn the_verifier_stays_far_from_its_limit() -> Result<()> {
    /// The kernel's limit of a million (`BPF_COMPLEXITY_LIMIT_INSNS` in include/linux/bpf.h).
    const LIMIT: u32 = 1_000_000;
    in_kernel(|kernel| {
        for (hook, verified) in kernel.verified_instructions()? {
            println!("{}: {verified} instructions verified", hook.name());
            ensure!(verified < LIMIT / 10, "{hook:?}: {verified}");
        }
        Ok(())
    })
}

/// For `cargo xtask bench --programs`: writes the cost of every case to the file that
/// `OVERLAY_COSTS` names.
#[test]
#[ignore = "measures, and fails for no figure"]
fn cost_of_every_case() -> Result<()> {
    /// Number of runs of each case; the shortest counts. The runs are single, because a second run
    /// in one call would see the changed packet.
    const RUNS: usize = 201;
    let path = std::env::var_os("OVERLAY_COSTS").expect("OVERLAY_COSTS names a file");
    in_kernel(move |kernel| {
        let verified: BTreeMap<&str, u32> = kernel
            .verified_instructions()?
            .into_iter()
            .map(|(hook, count)| (hook.name(), count))
            .collect();
        let mut runs = Vec::new();
        for case in all().into_iter().filter(|case| is_expressible(&case.visit)) {
            kernel.set_world(&case.world)?;
            let mut times = Vec::new();
            for _ in 0..RUNS {
                times.extend(kernel.run(&case.visit)?.map(|ran| ran.took));
            }
            let Some(fastest) = times.into_iter().min() else {
                continue;
            };
            runs.push(serde_json::json!({
                "program": case.visit.hook.name(),
                "verdict": case.want.verdict().name(),
                "packet": case.name,
                "nanoseconds": fastest.as_nanos() as u64,
            }));
        }
        let costs = serde_json::json!({"verified_instructions": verified, "runs": runs});
        std::fs::write(&path, costs.to_string())?;
        Ok(())
    })
}
