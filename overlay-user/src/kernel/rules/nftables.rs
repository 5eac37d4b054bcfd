//! flannel's tables, in nftables, equivalent to flannel's iptables rules.

use ipnet::IpNet;

use super::RuleSet;
use crate::kernel::ToolError;
use crate::kernel::tool::run;

const NFT: &str = "nft";

/// The names that depend on the address family.
struct FamilyNames {
    name: &'static str,
    table: &'static str,
    multicast: &'static str,
}

const IPV4: FamilyNames = FamilyNames {
    name: "ip",
    table: "flannel-ipv4",
    multicast: "224.0.0.0/4",
};
const IPV6: FamilyNames = FamilyNames {
    name: "ip6",
    table: "flannel-ipv6",
    multicast: "ff00::/8",
};

pub(super) async fn ensure(rules: &RuleSet) -> Result<bool, ToolError> {
    let family = match rules.network {
        IpNet::V4(_) => &IPV4,
        IpNet::V6(_) => &IPV6,
    };
    let wanted = table(family, rules);
    let held = run(
        NFT,
        &["--stateless", "list", "table", family.name, family.table],
        "",
    )
    .await;
    if held.is_ok_and(|held| normal(&held) == normal(&wanted)) {
        return Ok(false);
    }
    run(NFT, &["-f", "-"], &(removal(family) + &wanted)).await?;
    Ok(true)
}

pub(super) async fn remove() -> Result<(), ToolError> {
    run(NFT, &["-f", "-"], &(removal(&IPV4) + &removal(&IPV6)))
        .await
        .map(drop)
}

/// Deletes a table whether it is there or not.
fn removal(FamilyNames { name, table, .. }: &FamilyNames) -> String {
    format!("table {name} {table}\ndelete table {name} {table}\n")
}

/// The table, in the text that `nft list` prints. Only bit 0x4000 of the mark is kube-proxy's, and
/// traffic from outside to pods of this node keeps its source; both as in iptables.
fn table(family: &FamilyNames, rules: &RuleSet) -> String {
    let FamilyNames {
        name: ip,
        table,
        multicast,
    } = family;
    let (n, p) = (rules.network.trunc(), rules.subnet.trunc());
    let random = if rules.random_fully {
        " fully-random"
    } else {
        ""
    };
    let mut chains = String::new();
    if rules.masquerade {
        chains += &format!(
            "chain postrtg {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             meta mark & 0x00004000 == 0x00004000 return\n\
             {ip} saddr {p} {ip} daddr {n} return\n\
             {ip} saddr {n} {ip} daddr {p} return\n\
             {ip} saddr != {n} {ip} daddr {p} return\n\
             {ip} saddr {n} {ip} daddr != {multicast} masquerade{random}\n\
             {ip} saddr != {n} {ip} daddr {n} masquerade{random}\n\
             }}\n"
        );
    }
    if rules.forward {
        chains += &format!(
            "chain forward {{\n\
             type filter hook forward priority filter; policy accept;\n\
             {ip} saddr {n} accept\n\
             {ip} daddr {n} accept\n\
             }}\n"
        );
    }
    format!("table {ip} {table} {{\n{chains}}}\n")
}

/// Text without what only looks different: indentation and empty lines.
fn normal(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}
