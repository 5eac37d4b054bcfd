//! The possible ends of a socket's visit to a program: exactly one verdict, counted.

use crate::verdict::numbered;

/// The operation of a socket that a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Operation {
    /// connect(2).
    Connect = 0,
    /// sendmsg(2) and its like, of a datagram to an address.
    Send = 1,
    /// recvmsg(2) and its like, of a datagram.
    Receive = 2,
    /// getpeername(2).
    Name = 3,
    /// A packet leaves a socket, while the agent looks for connected sockets whose servers do not
    /// serve any more.
    Egress = 4,
}

impl Operation {
    /// Every operation, in the order of the counters.
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::Send,
        Self::Receive,
        Self::Name,
        Self::Egress,
    ];

    /// The verdict's name in metrics, tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Send => "sendmsg",
            Self::Receive => "recvmsg",
            Self::Name => "getpeername",
            Self::Egress => "egress",
        }
    }
}

// The numbers are the places of the counters in a map that outlives the agent: a verdict keeps its
// number, and a new one takes the next.
numbered! {
    "How a socket's visit ended.":
    /// The socket asked for a Service and got a server.
    Translated = 0 "translated",
    /// The socket talks to its server, and is told the Service's address.
    Named = 1 "named",
    /// The address is no Service's.
    NotService = 2 "not_service",
    /// The frontend has no server: left to kube-proxy, which refuses or drops.
    NoServers = 3 "no_servers",
    /// The Service changed meanwhile, or a server was missing: left to kube-proxy.
    Changing = 4 "changing",
    /// The socket talks to as many Services as it has room for: left to kube-proxy.
    Full = 5 "full",
    /// The kernel gave no room beside the socket: left to kube-proxy.
    NoRoom = 6 "no_room",
    /// The pod's own namespace translates Services, or the pod asks for kube-proxy.
    OptedOut = 7 "opted_out",
    /// Neither TCP nor UDP.
    OtherProtocol = 8 "other_protocol",
    /// The server has gone; the socket is told by an error.
    ServerGone = 9 "server_gone",
    /// Sent, and left as it is.
    Passed = 10 "passed",
}

/// Counters per operation, with spare places, so that new verdicts do not move old counters.
pub const SLOTS_PER_OPERATION: u32 = 16;
/// Counters in all.
pub const COUNTERS: u32 = SLOTS_PER_OPERATION * Operation::ALL.len() as u32;

const _: () = assert!(Verdict::ALL.len() <= SLOTS_PER_OPERATION as usize);

/// The place of a verdict's counter in `ov_socket_count`.
#[must_use]
#[inline(always)]
pub const fn counter_index(operation: Operation, verdict: Verdict) -> u32 {
    operation as u32 * SLOTS_PER_OPERATION + verdict as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The listed numbers never change; a change of the list may only add lines.
    #[test]
    fn numbers_are_frozen() {
        let verdicts: Vec<_> = Verdict::ALL.iter().map(|it| it.name()).collect();
        let frozen = [
            "translated",
            "named",
            "not_service",
            "no_servers",
            "changing",
            "full",
            "no_room",
            "opted_out",
            "other_protocol",
            "server_gone",
            "passed",
        ];
        assert_eq!(verdicts, frozen);
        let in_order = |(at, verdict): (usize, &Verdict)| *verdict as usize == at;
        assert!(Verdict::ALL.iter().enumerate().all(in_order));
        let operations = Operation::ALL.map(|it| (it as u32, it.name()));
        let frozen = [
            (0, "connect"),
            (1, "sendmsg"),
            (2, "recvmsg"),
            (3, "getpeername"),
            (4, "egress"),
        ];
        assert_eq!(operations, frozen);
    }

    #[test]
    fn every_pair_has_a_counter_of_its_own() {
        let mut indices = std::collections::HashSet::new();
        for operation in Operation::ALL {
            for verdict in Verdict::ALL {
                let index = counter_index(operation, *verdict);
                assert!(index < COUNTERS && indices.insert(index));
            }
        }
    }

    #[test]
    fn meanings_are_sentences() {
        for verdict in Verdict::ALL {
            assert!(verdict.meaning().ends_with('.'), "{verdict:?}");
        }
    }
}
