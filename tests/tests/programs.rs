//! The programs in this machine's kernel, run on made-up packets, against the decision in Rust. Needs root.
//!
//! `BPF_PROG_TEST_RUN` makes neither VLAN tags beside the packet nor verified checksums, and it carries out
//! no redirection: what a redirected packet arrives as is for the labs to test.

// The same packets that the decision is tested with.
#[path = "../../overlay-common/tests/decide"]
mod decide {
    pub mod cases;
    pub mod frames;
    pub mod world;
}
mod programs {
    pub mod expected;
    pub mod kernel;
    pub mod random;
}

use std::collections::BTreeMap;

use decide::cases::{Case, all};
use overlay_common::{Hook, Verdict};
use programs::expected::mismatch;
use programs::kernel::in_kernel;
use programs::random::Random;

/// Whether a made-up socket buffer can be like this packet's.
fn is_expressible(case: &Case) -> bool {
    /// More than that does not fit the page that the kernel makes them in.
    const LONGEST: usize = 3000;
    case.vlan.is_none() && !case.plain && case.frame.len() <= LONGEST
}

/// Everything that reproduces a case by hand.
fn describe(case: &Case, mismatch: &str) -> String {
    let hex: String = case.frame.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{:?}, {}: {mismatch}\n  interface {}, segment size {}, frame {hex}\n  {:?}",
        case.hook, case.name, case.ifindex, case.gso_size, case.world
    )
}

#[test]
fn every_case_ends_in_the_kernel_as_in_rust() {
    in_kernel(|kernel| {
        let cases: Vec<Case> = all().into_iter().filter(is_expressible).collect();
        assert!(!cases.is_empty());
        let mut wrong = Vec::new();
        for case in &cases {
            kernel.set_world(&case.world);
            let Some(ran) = kernel.run(case) else {
                continue;
            };
            if let Some(mismatch) = mismatch(case, &ran) {
                wrong.push(describe(case, &mismatch));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn random_packets_end_in_the_kernel_as_in_rust() {
    const WORLDS: usize = 150;
    const PACKETS: usize = 100;
    in_kernel(|kernel| {
        let mut random = Random::new(all().into_iter().filter(is_expressible).collect());
        let mut ends: BTreeMap<(Hook, &str), u32> = BTreeMap::new();
        for _ in 0..WORLDS {
            let world = random.world();
            kernel.set_world(&world);
            for _ in 0..PACKETS {
                let case = random.case(&world);
                let Some(ran) = kernel.run(&case) else {
                    continue;
                };
                if let Some(mismatch) = mismatch(&case, &ran) {
                    panic!("{}", describe(&case, &mismatch));
                }
                *ends.entry((case.hook, ran.verdict.name())).or_default() += 1;
            }
        }
        for ((hook, verdict), times) in &ends {
            println!("{} {verdict}: {times}", hook.name());
        }
        // Nothing is proved about packets that are never made.
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
        ] {
            let times = ends.get(&(hook, verdict.name())).copied();
            assert!(
                times.is_some_and(|times| times >= 50),
                "{hook:?} {verdict:?}: {times:?}"
            );
        }
    });
}

#[test]
fn the_verifier_stays_far_from_its_limit() {
    /// A kernel gives up after a million (`BPF_COMPLEXITY_LIMIT_INSNS` in include/linux/bpf.h).
    const LIMIT: u32 = 1_000_000;
    in_kernel(|kernel| {
        for (hook, verified) in kernel.verified_instructions() {
            println!("{}: {verified} instructions verified", hook.name());
            assert!(verified < LIMIT / 10, "{hook:?}: {verified}");
        }
    });
}

/// For `cargo xtask bench --programs`: writes what every case costs to the file that `OVERLAY_COSTS` names.
#[test]
#[ignore = "measures, and fails for no figure"]
fn cost_of_every_case() {
    /// Runs of each; the fastest is told. One at a time, for a second run would see the changed packet.
    const RUNS: usize = 201;
    let path = std::env::var_os("OVERLAY_COSTS").expect("OVERLAY_COSTS names a file");
    in_kernel(move |kernel| {
        let verified: BTreeMap<&str, u32> = kernel
            .verified_instructions()
            .into_iter()
            .map(|(hook, count)| (hook.name(), count))
            .collect();
        let mut runs = Vec::new();
        for case in all().into_iter().filter(is_expressible) {
            kernel.set_world(&case.world);
            let ran = (0..RUNS).filter_map(|_| kernel.run(&case));
            let Some(fastest) = ran.min_by_key(|ran| ran.took) else {
                continue;
            };
            runs.push(serde_json::json!({
                "program": case.hook.name(),
                "verdict": fastest.verdict.name(),
                "packet": case.name,
                "nanoseconds": fastest.took.as_nanos() as u64,
            }));
        }
        let costs = serde_json::json!({"verified_instructions": verified, "runs": runs});
        std::fs::write(&path, costs.to_string()).expect("write the costs");
    });
}
