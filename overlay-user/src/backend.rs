//! x
use crate::mac::MacAddr;
use ipnet::IpNet;
use std::net::IpAddr;
/// x
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// x
    pub subnet: IpNet,
    /// x
    pub vtep: IpAddr,
    /// x
    pub mac: MacAddr,
}
