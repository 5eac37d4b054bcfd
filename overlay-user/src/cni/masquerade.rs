//! Masquerading pod by pod, for nodes whose agent does not do it for all (`FLANNEL_IPMASQ=false`).
//!
//! Each pod has a chain in the table `nat`. A packet inside the overlay keeps its source address,
//! because the receiver must see the pod's address on both paths.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Error, veth};
use crate::deadline::Deadline;
use crate::ipam::Attachment;
use crate::kernel::ToolError;
use crate::kernel::tool::run_until;
use crate::marks::POD_CHAIN_PREFIX;

/// Sets up the pod's chain and the jump to it, in one transaction.
///
/// # Errors
///
/// [`Error::Tool`] with the error of `iptables-restore`, or if the program does not end in time.
pub async fn add(
    attachment: &Attachment,
    address: IpAddr,
    networks: &[IpNet],
    deadline: Deadline,
) -> Result<(), Error> {
    Ok(restore(address, &rules(attachment, address, networks), deadline).await?)
}

/// Removes chain and jump; a pod that is not masqueraded has none, and a node without iptables no
/// such pod.
///
/// # Errors
///
/// [`Error::Tool`] if iptables fails or does not end in time: then the rules may still exist, and
/// another pod with this address would be subject to them.
pub async fn remove(
    attachment: &Attachment,
    address: IpAddr,
    deadline: Deadline,
) -> Result<(), Error> {
    let chain = chain(attachment);
    let list = ["-w", "-t", "nat", "-S", &chain];
    match run_until(deadline, program(address), &list, "").await {
        Ok(_) => {}
        Err(error) if error.is_inconclusive() => return Err(error.into()),
        // Releases differ in how they say that there is no such chain.
        Err(error) => {
            tracing::debug!(%error, "not masqueraded");
            return Ok(());
        }
    }
    let rules = format!(
        "*nat\n-F {chain}\n-D {}\n-X {chain}\nCOMMIT\n",
        jump(&chain, attachment, address)
    );
    match restore(address, &rules, deadline).await {
        Err(error) if error.is_inconclusive() => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, chain, "the masquerading of a deleted pod stays");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn rules(attachment: &Attachment, address: IpAddr, networks: &[IpNet]) -> String {
    let chain = chain(attachment);
    let multicast = if address.is_ipv4() {
        "224.0.0.0/4"
    } else {
        "ff00::/8"
    };
    let inside: String = networks
        .iter()
        .filter(|net| net.addr().is_ipv4() == address.is_ipv4())
        .map(|net| format!("-A {chain} -d {} -j RETURN\n", net.trunc()))
        .collect();
    let jump = jump(&chain, attachment, address);
    format!(
        "*nat\n:{chain} - [0:0]\n{inside}-A {chain} -d {multicast} -j RETURN\n-A {chain} -j \
        MASQUERADE\n\
         -A {jump}\nCOMMIT\n"
    )
}

/// The rule that leads to the chain, without the command in front.
fn jump(chain: &str, attachment: &Attachment, address: IpAddr) -> String {
    let comment = &attachment.container;
    format!("POSTROUTING -s {address} -m comment --comment {comment:?} -j {chain}")
}

fn chain(attachment: &Attachment) -> String {
    format!("{POD_CHAIN_PREFIX}{}", veth::host_name(attachment))
}

fn program(address: IpAddr) -> &'static str {
    if address.is_ipv4() {
        "iptables"
    } else {
        "ip6tables"
    }
}

async fn restore(address: IpAddr, rules: &str, deadline: Deadline) -> Result<(), ToolError> {
    let program = if address.is_ipv4() {
        "iptables-restore"
    } else {
        "ip6tables-restore"
    };
    run_until(deadline, program, &["-w", "--noflush"], rules)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_is_not_masqueraded() {
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        };
        let networks = ["10.244.0.0/16", "fd00::/56"].map(|net| net.parse().expect("a network"));
        let chain = chain(&attachment);
        assert!(chain.len() <= 28, "iptables takes no longer names: {chain}");
        assert_eq!(
            rules(&attachment, [10, 244, 1, 2].into(), &networks),
            format!(
                "*nat\n:{chain} - [0:0]\n-A {chain} -d 10.244.0.0/16 -j RETURN\n\
                 -A {chain} -d 224.0.0.0/4 -j RETURN\n-A {chain} -j MASQUERADE\n\
                 -A POSTROUTING -s 10.244.1.2 -m comment --comment \"c0ffee\" -j {chain}\nCOMMIT\n"
            )
        );
    }
}
