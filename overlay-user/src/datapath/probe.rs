//! Probes of the kernel features that the fast path uses, each by trying the feature.
//!
//! The kernel's version does not answer this, because distributions backport features and missing
//! privileges disable them.

use std::io;

use aya::programs::{Program, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use overlay_common::V4;
use serde::Serialize;

use super::family::UserFamily as _;
use super::programs::Mechanism;
use super::{object, services, short};
use crate::privilege::{self, Capability};

/// The answer of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", content = "detail", rename_all = "snake_case")]
pub enum Answer {
    /// The feature works.
    Yes,
    /// The kernel does not have the feature.
    No(String),
    /// The probe failed for another reason than the feature.
    Error(String),
}

/// A feature that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The feature's name.
    pub feature: &'static str,
    /// The first mainline kernel that has it.
    pub since: &'static str,
    /// Whether the fast path needs it.
    pub needed: bool,
    /// The result.
    pub answer: Answer,
}

/// All features that were tried.
#[derive(Clone, Debug, Serialize)]
pub struct Probes(pub Vec<Probe>);

/// Names of features, as shown.
const LOAD: &str = "packet programs";
/// The youngest helper that any program calls is `bpf_ktime_get_coarse_ns`.
const LOAD_SINCE: &str = "5.11";
const ENCAP: &str = "encapsulation with an inner Ethernet header";
const DECAP: &str = "decapsulation with a fixed segment size";
const TCX: &str = "tcx links";
const SOCKETS: &str = "programs at the socket, for Services";
const XDP: &str = "early refusal by XDP, on a NIC whose driver has it";

impl Probes {
    /// Tries the features that the fast path needs. The only change of the node is a program on the
    /// loopback device, for a moment.
    #[must_use]
    pub fn run() -> Self {
        // The kernel's own words for it would send people after its version.
        let needed = [Capability::NetAdmin, Capability::Bpf, Capability::Perfmon];
        if let Some(missing) = privilege::missing(&needed) {
            return Self(vec![Probe {
                feature: LOAD,
                since: LOAD_SINCE,
                needed: true,
                answer: Answer::Error(format!(
                    "this process lacks {missing} (a container: give it these, and the host's \
                     /sys/fs/bpf)"
                )),
            }]);
        }
        let mut ebpf = match load() {
            Ok(ebpf) => ebpf,
            Err(answer) => {
                return Self(vec![Probe {
                    feature: LOAD,
                    since: LOAD_SINCE,
                    needed: true,
                    answer,
                }]);
            }
        };
        Self(vec![
            Probe {
                feature: LOAD,
                since: LOAD_SINCE,
                needed: true,
                answer: programs(&mut ebpf),
            },
            Probe {
                feature: ENCAP,
                since: "5.13",
                needed: true,
                answer: adjust(&mut ebpf, "ov_probe_encap"),
            },
            Probe {
                feature: DECAP,
                since: "5.8",
                needed: true,
                answer: adjust(&mut ebpf, "ov_probe_decap"),
            },
            Probe {
                feature: TCX,
                since: "6.6",
                needed: false,
                answer: tcx(&mut ebpf),
            },
            Probe {
                feature: XDP,
                since: "5.18",
                needed: false,
                answer: xdp(&mut ebpf),
            },
        ])
    }

    /// Tries also the optional features, which takes longer because many programs are loaded.
    #[must_use]
    pub fn all() -> Self {
        let Self(mut probes) = Self::run();
        probes.push(Probe {
            feature: SOCKETS,
            since: LOAD_SINCE,
            needed: false,
            answer: sockets(),
        });
        Self(probes)
    }

    /// How programs can be attached here, or why the fast path cannot run.
    ///
    /// # Errors
    /// A sentence that names what is missing.
    pub fn verdict(&self) -> Result<Mechanism, String> {
        let needed = || self.0.iter().filter(|probe| probe.needed);
        // An old kernel lacks several things. What came last says what to upgrade to.
        let lacking = needed().filter_map(|probe| match &probe.answer {
            Answer::No(detail) => Some((probe, detail)),
            _ => None,
        });
        if let Some((probe, detail)) = lacking.max_by_key(|(probe, _)| numbers(probe.since)) {
            return Err(format!(
                "this kernel has no {} (Linux {} has): {detail}",
                probe.feature, probe.since
            ));
        }
        for probe in needed() {
            if let Answer::Error(detail) = &probe.answer {
                return Err(format!("probing {}: {detail}", probe.feature));
            }
        }
        let tcx = self
            .0
            .iter()
            .any(|probe| probe.feature == TCX && probe.answer == Answer::Yes);
        Ok(if tcx {
            Mechanism::Tcx
        } else {
            Mechanism::Clsact
        })
    }
}

/// A kernel's version, to compare by.
fn numbers(version: &str) -> Vec<u32> {
    let numbers = version.split('.').map(str::parse);
    numbers.map(|number| number.unwrap_or(0)).collect()
}

fn load() -> Result<Ebpf, Answer> {
    let bytes = object::bytes().map_err(|error| Answer::Error(error.to_string()))?;
    let mut loader = EbpfLoader::new();
    // Scratch maps; the sizes do not matter.
    for name in V4::MAPS.hashes() {
        loader.map_max_entries(name, 1);
    }
    loader.load(bytes).map_err(|error| match error {
        aya::EbpfError::MapError(error) => classify_text(&short(&error), errno_of(&error)),
        error => classify_text(&short(&error), errno_of(&error)),
    })
}

/// Loads every tc program; those that the kernel takes serve the other probes, even if it does not
/// take all.
fn programs(ebpf: &mut Ebpf) -> Answer {
    let mut answer = Answer::Yes;
    for (name, program) in ebpf.programs_mut() {
        // Optional, and has a probe of its own.
        if matches!(program, Program::Xdp(_)) {
            continue;
        }
        let loaded = <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load);
        if let Err(error) = loaded {
            answer = classify_text(&format!("{name}: {}", short(&error)), errno_of(&error));
        }
    }
    answer
}

/// Runs a probing program on a packet that is long enough for anything.
fn adjust(ebpf: &mut Ebpf, name: &str) -> Answer {
    let Some(program) = ebpf.program_mut(name) else {
        return Answer::Error(format!("the eBPF object has no {name}"));
    };
    let Ok(program) = <&mut SchedClassifier>::try_from(program) else {
        return Answer::Error(format!("{name} is no tc program"));
    };
    let mut packet = [0_u8; 256];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    let options = TestRunOptions {
        data_in: Some(&packet),
        repeat: 1,
        ..TestRunOptions::default()
    };
    match program.test_run(options) {
        Ok(result) if result.return_value == 0 => Answer::Yes,
        Ok(result) => {
            Answer::No(io::Error::from_raw_os_error(result.return_value as i32).to_string())
        }
        Err(error) => classify_text(&short(&error), errno_of(&error)),
    }
}

/// Attaches a program to the egress of the loopback device and takes it away again. It does nothing
/// there: without a configuration it lets everything pass. It is the one that every kernel loads.
fn tcx(ebpf: &mut Ebpf) -> Answer {
    let Some(Ok(program)) = ebpf
        .program_mut("ov_pod_out")
        .map(<&mut SchedClassifier>::try_from)
    else {
        return Answer::Error("the eBPF object has no ov_pod_out".to_owned());
    };
    let order = aya::programs::links::LinkOrder::last();
    let options = aya::programs::tc::TcAttachOptions::TcxOrder(order);
    match program.attach_with_options("lo", TcAttachType::Egress, options) {
        Ok(link) => match program.detach(link) {
            Ok(()) => Answer::Yes,
            Err(error) => Answer::Error(short(&error)),
        },
        Err(error) => classify_text(&short(&error), errno_of(&error)),
    }
}

/// Loads the XDP program. Whether a driver takes it shows when it is attached.
fn xdp(ebpf: &mut Ebpf) -> Answer {
    let Some(Ok(program)) = ebpf.program_mut("ov_net_xdp").map(<&mut Xdp>::try_from) else {
        return Answer::Error("the eBPF object has no ov_net_xdp".to_owned());
    };
    match program.load() {
        Ok(()) => Answer::Yes,
        Err(error) => classify_text(&short(&error), errno_of(&error)),
    }
}

/// Loads the programs at the socket. Whether there is a hierarchy of control groups to attach them
/// to shows then.
fn sockets() -> Answer {
    match services::try_loading() {
        Ok(()) => Answer::Yes,
        Err(error) => classify_text(&error.to_string(), errno_of(&error)),
    }
}

/// "Not known here" and "not allowed" are different answers.
fn classify_text(detail: &str, errno: Option<i32>) -> Answer {
    use nix::errno::Errno;
    match errno.map(Errno::from_raw) {
        Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EACCES) => {
            Answer::No(detail.to_owned())
        }
        Some(Errno::EPERM) => Answer::Error(format!(
            "{detail}: needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        )),
        _ => Answer::Error(detail.to_owned()),
    }
}

/// The error number at the end of a chain of causes.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(encap: Answer, tcx: Answer) -> Probes {
        Probes(vec![
            Probe {
                feature: ENCAP,
                since: "5.13",
                needed: true,
                answer: encap,
            },
            Probe {
                feature: TCX,
                since: "6.6",
                needed: false,
                answer: tcx,
            },
        ])
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = probes(Answer::No("Invalid argument".into()), Answer::Yes).verdict();
        let error = error.expect_err("encapsulation is needed");
        assert!(error.contains(ENCAP) && error.contains("5.13"), "{error}");
    }

    #[test]
    fn the_youngest_of_what_is_missing_is_named() {
        let mut probes = probes(Answer::No("Invalid argument".into()), Answer::Yes);
        probes.0.insert(
            0,
            Probe {
                feature: LOAD,
                since: LOAD_SINCE,
                needed: true,
                answer: Answer::No("unknown func".into()),
            },
        );
        probes.0.push(Probe {
            feature: DECAP,
            since: "5.8",
            needed: true,
            answer: Answer::Error("not loaded".into()),
        });
        let error = probes.verdict().expect_err("much is missing");
        assert!(error.contains(ENCAP) && error.contains("5.13"), "{error}");
    }

    #[test]
    fn clsact_serves_where_tcx_is_missing() {
        let verdict = probes(Answer::Yes, Answer::No("Invalid argument".into())).verdict();
        assert_eq!(verdict, Ok(Mechanism::Clsact));
        assert_eq!(
            probes(Answer::Yes, Answer::Yes).verdict(),
            Ok(Mechanism::Tcx)
        );
    }
}
