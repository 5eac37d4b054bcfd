//! The capabilities (capabilities(7)) of this process, so that an error can name the missing one.

use std::fmt;
use std::fs;

/// A capability that a part of the overlay needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Changing the kernel's network in any way, and attaching programs.
    NetAdmin = 12,
    /// Entering another network namespace; reading programs by id.
    SysAdmin = 21,
    /// Using pointers in programs, as all packet programs do (Linux 5.8).
    Perfmon = 38,
    /// Loading programs and making maps (Linux 5.8).
    Bpf = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// The capabilities of `wanted` that this process lacks, as text; `None` where none is lacking, or
/// where `/proc` cannot be read.
#[must_use]
pub fn missing(wanted: &[Capability]) -> Option<String> {
    let effective = effective(&fs::read_to_string("/proc/self/status").ok()?)?;
    let names: Vec<String> = wanted
        .iter()
        .filter(|capability| !has(effective, **capability))
        .map(ToString::to_string)
        .collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

fn has(effective: u64, capability: Capability) -> bool {
    let bit = |capability: Capability| effective >> capability as u32 & 1 == 1;
    // `CAP_SYS_ADMIN` implies the two that were split off from it in Linux 5.8 (`bpf_capable()`,
    // `perfmon_capable()`).
    bit(capability)
        || matches!(capability, Capability::Bpf | Capability::Perfmon) && bit(Capability::SysAdmin)
}

/// The line `CapEff:` of `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t0000008000001000\n";
        let set = effective(status).expect("a set");
        assert!(has(set, Capability::NetAdmin) && has(set, Capability::Bpf));
        assert!(!has(set, Capability::SysAdmin) && !has(set, Capability::Perfmon));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn sys_admin_stands_for_what_was_split_off() {
        let set = 1 << Capability::SysAdmin as u32;
        assert!(has(set, Capability::Bpf) && has(set, Capability::Perfmon));
        assert!(!has(set, Capability::NetAdmin));
    }
}
