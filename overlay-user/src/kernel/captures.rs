//! Sockets that capture packets, as `tcpdump` does.

use std::fs;
use std::io;

/// The packet sockets of the network namespace: see packet_seq_show() in net/packet/af_packet.c.
const SOCKETS: &str = "/proc/thread-self/net/packet";
/// All protocols (`ETH_P_ALL` of include/uapi/linux/if_ether.h): no other socket sees what is sent.
const ALL: u16 = 0x0003;

/// Whether a socket captures the packets that leave by the device `ifindex`. A program at the
/// device's tc egress runs before such sockets.
///
/// # Errors
/// When the list cannot be read.
pub fn are_on(ifindex: u32) -> io::Result<bool> {
    fs::read_to_string(SOCKETS).map(|sockets| is_listed(&sockets, ifindex))
}

/// Columns: socket, references, type, protocol (hexadecimal), interface index (0 for all of them),
/// whether it is bound, memory, user, inode.
fn is_listed(sockets: &str, ifindex: u32) -> bool {
    sockets.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace().skip(3);
        let protocol = columns
            .next()
            .and_then(|it| u16::from_str_radix(it, 16).ok());
        let interface = columns.next().and_then(|it| it.parse::<u32>().ok());
        let is_bound = columns.next() == Some("1");
        protocol == Some(ALL) && is_bound && interface.is_some_and(|it| it == 0 || it == ifindex)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_all_that_is_sent_here_count() {
        let line = |protocol, interface, bound| {
            format!(
                "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                 000000009f6ea9c6 3      3    {protocol}   {interface}     {bound} 0      0      \
                 84209\n"
            )
        };
        assert!(is_listed(&line("0003", 7, 1), 7));
        assert!(is_listed(&line("0003", 0, 1), 7), "on all interfaces");
        assert!(!is_listed(&line("0003", 8, 1), 7), "on another interface");
        assert!(!is_listed(&line("0003", 7, 0), 7), "not bound");
        assert!(
            !is_listed(&line("88cc", 7, 1), 7),
            "LLDP comes, and is not sent"
        );
        assert!(!is_listed("", 7));
    }
}
