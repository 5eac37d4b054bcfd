//! The kernel modules in a machine's initramfs, in an order in which they can be loaded.
//!
//! Debian's packages contain no list of dependencies, but a module itself names the modules that it
//! needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The modules of the overlay and its labs. A module that a kernel has built in, or lacks, is left
/// out.
const WANTED: &[&str] = &[
    // Connection tracking's checksums request this by an alias, not as a dependency.
    "crc32c_generic",
    // For the machine: pipes to the host, a network card.
    "virtio_pci",
    "virtio_mmio",
    "virtio_net",
    "af_packet",
    // For links of the lab and of the overlay, and underlays of other kinds.
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "dummy",
    "tun",
    "wireguard",
    "ipip",
    // For queueing disciplines and filters.
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_fq",
    "sch_fq_codel",
    "sch_tbf",
    "sch_netem",
    "sch_prio",
    "cls_u32",
    "cls_matchall",
    // For packet filter, address translation, connection tracking.
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_counter",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_reject",
    "nft_reject_inet",
    "nft_limit",
    "nft_log",
    "nft_objref",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "nft_reject_ipv4",
    "nft_quota",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_numgen",
    "nft_hash",
    "nft_redir",
    "nft_set_hash",
    "nft_set_rbtree",
    "nf_conntrack_netlink",
    "nf_tables_set",
    "nf_nat_redirect",
    "ip_tables",
    "ipt_REJECT",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "iptable_raw",
    "x_tables",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_set",
    "xt_statistic",
    "xt_tcpudp",
    "xt_CT",
    "xt_NFLOG",
    "xt_LOG",
    "xt_limit",
    "xt_physdev",
    "xt_state",
    "xt_NFQUEUE",
    "xt_TCPMSS",
    "nfnetlink_log",
    "nfnetlink_queue",
    "nf_log_syslog",
    "nft_queue",
    "ip6_tables",
    "ip6t_REJECT",
    "ip6table_filter",
    "ip6table_mangle",
    "ip6table_nat",
    "arp_tables",
    "arptable_filter",
    // For IPsec's policies.
    "xfrm_user",
    // For devices of CNI plugins.
    "act_mirred",
    "ifb",
    "macvlan",
];

/// The modules for the host's file system as root.
pub const HOST_ROOT: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
];

/// A module, decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The wanted modules of a kernel and their dependencies, each after those that it needs.
pub fn collect(directory: &Path, more: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(directory, &mut files)?;
    let mut modules = Vec::new();
    for name in more.iter().chain(WANTED) {
        add(&normal(name), &files, &mut modules)?;
    }
    Ok(modules)
}

/// Finds every module below a directory, by its name.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let path = entry.path();
        if entry.file_type().context("the type of a file")?.is_dir() {
            find(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.split_once('.'))
        {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

/// The name with underscores, as in the kernel; file names have dashes.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Adds a module after its dependencies.
fn add(name: &str, files: &BTreeMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = read(path)?;
    for needed in needs(&content) {
        add(&needed, files, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("start `xz`")?;
    if !output.status.success() {
        bail!("xz cannot decompress {}", path.display());
    }
    Ok(output.stdout)
}

/// The modules that a module needs: `depends=` among the entries of its `.modinfo`, each of which
/// ends with a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            let text = format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(directory.path().join(format!("{name}.ko")), text).unwrap();
        };
        module("vxlan", "udp-tunnel,ip6_udp_tunnel");
        module("udp_tunnel", "");
        module("ip6_udp_tunnel", "udp_tunnel");
        let names: Vec<_> = collect(directory.path(), &["absent"])
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(names, ["udp_tunnel", "ip6_udp_tunnel", "vxlan"]);
    }
}
