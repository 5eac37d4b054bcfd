//! Masquerading pod by pod, for nodes whose agent does not do it for all (`FLANNEL_IPMASQ=false`).
//!
//! Each pod has a chain in the table `nat`. What stays inside the overlay keeps its source address: the peer
//! must see the pod, whichever path the packet takes.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};

use ipnet::IpNet;

use super::{Error, veth};
use crate::ipam::Attachment;

/// Sets up the pod's chain and the jump to it, in one transaction.
///
/// # Errors
///
/// [`Error::Conflict`] with what `iptables-restore` says, [`Error::File`] if there is no such program.
pub fn add(attachment: &Attachment, address: IpAddr, networks: &[IpNet]) -> Result<(), Error> {
    restore(address, &rules(attachment, address, networks))
}

/// Removes chain and jump; a pod that is not masqueraded has none, and a node without iptables no such pod.
pub fn remove(attachment: &Attachment, address: IpAddr) {
    let chain = chain(attachment);
    let listed = Command::new(program(address))
        .args(["-w", "-t", "nat", "-S", &chain])
        .output();
    if !listed.is_ok_and(|output| output.status.success()) {
        return;
    }
    let rules = format!(
        "*nat\n-F {chain}\n-D {}\n-X {chain}\nCOMMIT\n",
        jump(&chain, attachment, address)
    );
    if let Err(error) = restore(address, &rules) {
        tracing::warn!(%error, chain, "the masquerading of a deleted pod stays");
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
        "*nat\n:{chain} - [0:0]\n{inside}-A {chain} -d {multicast} -j RETURN\n-A {chain} -j MASQUERADE\n\
         -A {jump}\nCOMMIT\n"
    )
}

/// The rule that leads to the chain, without the command in front.
fn jump(chain: &str, attachment: &Attachment, address: IpAddr) -> String {
    let comment = &attachment.container;
    format!("POSTROUTING -s {address} -m comment --comment {comment:?} -j {chain}")
}

fn chain(attachment: &Attachment) -> String {
    format!("OVERLAY-{}", veth::host_name(attachment))
}

fn program(address: IpAddr) -> &'static str {
    if address.is_ipv4() {
        "iptables"
    } else {
        "ip6tables"
    }
}

fn restore(address: IpAddr, rules: &str) -> Result<(), Error> {
    let program = format!("{}-restore", program(address));
    let failed = |source| Error::File {
        action: "run",
        path: program.clone().into(),
        source,
    };
    let mut child = Command::new(&program)
        .args(["-w", "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(failed)?;
    }
    let Output { status, stderr, .. } = child.wait_with_output().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let says = String::from_utf8_lossy(&stderr);
    Err(Error::Conflict(format!(
        "{program} failed: {}",
        says.trim()
    )))
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
