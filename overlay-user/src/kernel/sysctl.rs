//! The sysctls that the overlay needs, below `/proc/sys` of the thread's network namespace.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::Error;

const IPV4_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_FORWARD: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const TCP_LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const BRIDGE_CALLS_IPTABLES: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The file that switches forwarding for the family of `address`.
fn forwarding_file(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => IPV4_FORWARD,
        IpAddr::V6(_) => IPV6_FORWARD,
    }
}

/// Whether packets of the family of `address` are forwarded.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn forwarding(address: IpAddr) -> Result<bool, Error> {
    Ok(read(forwarding_file(address))? != "0")
}

/// Switches forwarding on for the family of `address`.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn enable_forwarding(address: IpAddr) -> Result<(), Error> {
    write(forwarding_file(address), "1")
}

/// Disables IPv6 autoconfiguration of a device: no router advertisements of other nodes, no
/// link-local address. A kernel without IPv6 has no such setting.
///
/// In a container that is not privileged these files are read-only, and no init container can write
/// them before the device is made. The device then stays as it is. Only a second line of defence is
/// missing then, because programs and guard refuse IPv6 inside VXLAN where the overlay carries
/// none.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn forbid_autoconfiguration(device: &str) -> Result<(), Error> {
    let directory = format!("/proc/sys/net/ipv6/conf/{device}");
    if !Path::new(&directory).exists() {
        return Ok(());
    }
    // IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
    for (name, value) in [("accept_ra", "0"), ("addr_gen_mode", "1")] {
        match write(&format!("{directory}/{name}"), value) {
            Err(Error::Sysctl { path, source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                tracing::debug!(path, "read-only");
            }
            result => result?,
        }
    }
    Ok(())
}

/// Makes connection tracking accept TCP segments outside the window it knows of. Connection
/// tracking sees only a part of a connection when the fast path carries the rest, and would
/// otherwise call the remainder invalid.
///
/// # Errors
/// [`Error::Sysctl`]. While connection tracking is not loaded there is nothing to set.
pub fn be_liberal_with_tcp() -> Result<(), Error> {
    match read(TCP_BE_LIBERAL) {
        Ok(value) if value == "1" => Ok(()),
        Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => write(TCP_BE_LIBERAL, "1"),
    }
}

/// What an operator should know where connection tracking does not take up a TCP connection in its
/// middle. Such pick-up is the kernel's default, so that an operator has switched it off on
/// purpose, and it stays off (unlike the setting of [`be_liberal_with_tcp`], which is off by
/// default). flannel needs no such thing, because connection tracking sees all that flannel
/// carries.
#[must_use]
pub fn no_tcp_pick_up() -> Option<&'static str> {
    let picks_up = read(TCP_LOOSE).map_or(true, |value| value != "0");
    (!picks_up).then_some(
        "nf_conntrack_tcp_loose is 0: a TCP connection that leaves the fast path in its middle is \
        invalid to connection tracking, and lost where rules drop what is invalid; `sysctl -w \
         net.netfilter.nf_conntrack_tcp_loose=1` keeps it",
    )
}

/// Whether bridged packets pass iptables, which kube-proxy needs for Services between pods of one
/// node. `None` when `br_netfilter` is not loaded. Worth a warning, not a failure.
#[must_use]
pub fn bridge_calls_iptables() -> Option<bool> {
    read(BRIDGE_CALLS_IPTABLES).ok().map(|value| value != "0")
}

fn read(path: &'static str) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::Sysctl {
            call: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    fs::write(Path::new(path), value).map_err(|source| Error::Sysctl {
        call: "write",
        path: path.to_owned(),
        source,
    })
}

/// The kernel's range of source ports, both ends included; the source ports of the VXLAN device are
/// in that range, too.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn local_port_range() -> Result<(u16, u16), Error> {
    let text = read(LOCAL_PORT_RANGE)?;
    let mut ports = text.split_whitespace().map(str::parse::<u16>);
    match (ports.next(), ports.next()) {
        (Some(Ok(low)), Some(Ok(high))) if low < high => Ok((low, high)),
        _ => Err(Error::Sysctl {
            call: "parse",
            path: LOCAL_PORT_RANGE.to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, text),
        }),
    }
}
