//! The network's configuration: flannel's `net-conf.json`, key `<prefix>/config` in etcd.
//!
//! Keys are matched without regard to case and unknown ones are ignored, as flannel does. A setting
//! that flannel knows and this project does not support yet is an error, never ignored, because the
//! nodes of one network must agree.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::fold_keys;
use super::pool::{PoolError, SubnetPool};
use crate::per_family::PerFamily;

/// VNI of the overlay unless the configuration names another.
pub const DEFAULT_VNI: u32 = 1;
/// UDP port of VXLAN in Linux and flannel (not IANA's 4789) unless the configuration names another.
pub const DEFAULT_PORT: u16 = 8472;
/// VNIs have 24 bits (RFC 7348, section 5).
const MAX_VNI: u32 = (1 << 24) - 1;

/// The configuration that all nodes of the network share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay's networks and the subnets in them that nodes lease.
    pub pools: PerFamily<SubnetPool>,
    /// Packet-filter rules by nftables instead of iptables (`EnableNFTables`).
    pub nftables: bool,
    /// How peers are reached.
    pub backend: BackendConfig,
    /// Remarks for the operator on this configuration, one sentence each.
    pub notes: Vec<String>,
}

/// The backend and its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// `vxlan`.
    Vxlan(VxlanConfig),
    /// `host-gw`, which has no options.
    HostGw,
}

/// Options of the vxlan backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// MTU of the *underlay* in bytes; absent: that of the chosen interface.
    pub mtu: Option<u32>,
    /// Peers on the link that the underlay's device is on are reached without encapsulation.
    pub direct_routing: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
            mtu: None,
            direct_routing: false,
        }
    }
}

/// Why a network configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetConfError {
    /// Not JSON, or a value of the wrong type.
    #[error("the network configuration is not valid JSON of the expected shape: {0}")]
    Json(#[from] serde_json::Error),
    /// `Network` is absent.
    #[error(
        "the network configuration has no Network; set it, for example \
        {{\"Network\":\"10.244.0.0/16\"}}"
    )]
    NoNetwork,
    /// `Network` is of the wrong address family.
    #[error("Network {0} is not IPv4; an IPv6 network belongs in IPv6Network")]
    NetworkFamily(IpNet),
    /// The range of subnets is not valid.
    #[error("the network configuration is wrong: {0}")]
    Pool(#[from] PoolError),
    /// A VNI that does not fit into 24 bits.
    #[error("VNI {0} is out of range; use 0 to {MAX_VNI}")]
    Vni(u32),
    /// A setting of flannel's that this version does not support.
    #[error("{setting} is not supported yet; {cure}")]
    NotSupported {
        /// The setting and its value.
        setting: String,
        /// The cure.
        cure: &'static str,
    },
}

#[derive(Deserialize)]
struct RawConfig {
    network: Option<IpNet>,
    subnetlen: Option<u8>,
    subnetmin: Option<IpAddr>,
    subnetmax: Option<IpAddr>,
    enableipv4: Option<bool>,
    enableipv6: Option<bool>,
    enablenftables: Option<bool>,
    backend: Option<Value>,
}

#[derive(Deserialize)]
struct RawBackend {
    r#type: Option<String>,
    vni: Option<u32>,
    port: Option<u16>,
    mtu: Option<u32>,
    #[serde(default)]
    learning: bool,
    #[serde(default)]
    gbp: bool,
    #[serde(default)]
    directrouting: bool,
}

impl NetworkConfig {
    /// Reads flannel's JSON, checks it and fills in the defaults.
    ///
    /// # Errors
    /// A [`NetConfError`] that names the setting at fault and the cure.
    pub fn parse(json: &str) -> Result<Self, NetConfError> {
        let raw: RawConfig = serde_json::from_value(fold_keys(serde_json::from_str(json)?))?;
        if raw.enableipv4 == Some(false) || raw.enableipv6 == Some(true) {
            return Err(NetConfError::NotSupported {
                setting: "IPv6 (EnableIPv6, or EnableIPv4 set to false)".into(),
                cure: "remove EnableIPv4 and EnableIPv6 from the network configuration",
            });
        }
        let network = raw.network.ok_or(NetConfError::NoNetwork)?;
        if matches!(network, IpNet::V6(_)) {
            return Err(NetConfError::NetworkFamily(network));
        }
        // flannel takes zero for "not set".
        let set = |address: &IpAddr| !address.is_unspecified();
        let pool = SubnetPool::new(
            network,
            raw.subnetlen.filter(|len| *len > 0),
            raw.subnetmin.filter(set),
            raw.subnetmax.filter(set),
        )?;
        let mut notes = Vec::new();
        let backend = match raw.backend {
            Some(backend) => BackendConfig::parse(backend)?,
            None => {
                notes.push(
                    "the network configuration names no Backend: using vxlan, as flannel's \
                     documentation says (flanneld itself would take udp)"
                        .to_owned(),
                );
                BackendConfig::Vxlan(VxlanConfig::default())
            }
        };
        Ok(Self {
            pools: PerFamily::V4(pool),
            nftables: raw.enablenftables.unwrap_or(false),
            backend,
            notes,
        })
    }

    /// The overlay's whole network, of the address family that the agent serves.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.pools.first().network()
    }

    /// Options of the vxlan backend; `None` for another backend.
    #[must_use]
    pub fn vxlan(&self) -> Option<&VxlanConfig> {
        match &self.backend {
            BackendConfig::Vxlan(vxlan) => Some(vxlan),
            BackendConfig::HostGw => None,
        }
    }
}

impl BackendConfig {
    fn parse(backend: Value) -> Result<Self, NetConfError> {
        let raw: RawBackend = serde_json::from_value(fold_keys(backend))?;
        let kind = raw.r#type.as_deref().unwrap_or_default().to_lowercase();
        match kind.as_str() {
            "vxlan" => Ok(Self::Vxlan(VxlanConfig::new(&raw)?)),
            "host-gw" => Ok(Self::HostGw),
            _ => Err(NetConfError::NotSupported {
                setting: format!("backend type {kind:?}"),
                cure: "set Backend to {\"Type\":\"vxlan\"} or {\"Type\":\"host-gw\"}",
            }),
        }
    }
}

impl VxlanConfig {
    fn new(raw: &RawBackend) -> Result<Self, NetConfError> {
        for (name, asked) in [("Learning", raw.learning), ("GBP", raw.gbp)] {
            if asked {
                return Err(NetConfError::NotSupported {
                    setting: format!("{name}=true of the vxlan backend"),
                    cure: "remove it from Backend in the network configuration",
                });
            }
        }
        let vni = raw.vni.unwrap_or(DEFAULT_VNI);
        if vni > MAX_VNI {
            return Err(NetConfError::Vni(vni));
        }
        Ok(Self {
            vni,
            port: raw.port.filter(|port| *port > 0).unwrap_or(DEFAULT_PORT),
            mtu: raw.mtu.filter(|mtu| *mtu > 0),
            direct_routing: raw.directrouting,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_null_is_none() {
        for text in [
            r#"{"Network":"10.0.0.0/8"}"#,
            r#"{"Network":"10.0.0.0/8","Backend":null}"#,
        ] {
            let config = NetworkConfig::parse(text).expect("a configuration");
            assert_eq!(config.backend, BackendConfig::Vxlan(VxlanConfig::default()));
            assert!(
                config
                    .notes
                    .iter()
                    .any(|it| it.contains("names no Backend"))
            );
        }
    }

    #[test]
    fn keys_fold_and_unknown_ones_are_ignored() {
        let config = NetworkConfig::parse(
            r#"{"network":"10.3.0.0/16","SUBNETLEN":28,"subnetMin":"10.3.5.0",
                "SubnetMax":"10.3.8.0",
                "enableNFTables":true,"Whatever":[1],
                "backend":{"type":"VXLAN","vni":7,"PORT":4789,"Mtu":1400,"Name":"x"}}"#,
        )
        .expect("a usable configuration");
        assert_eq!(config.network().to_string(), "10.3.0.0/16");
        let pool = config.pools.first();
        assert_eq!(pool.subnet_len(), 28);
        assert_eq!(pool.min().to_string(), "10.3.5.0");
        assert_eq!(pool.max().to_string(), "10.3.8.0");
        assert!(config.nftables);
        let expected = VxlanConfig {
            vni: 7,
            port: 4789,
            mtu: Some(1400),
            direct_routing: false,
        };
        assert_eq!(config.vxlan(), Some(&expected));
        assert!(config.notes.is_empty());
    }

    #[test]
    fn an_absent_backend_is_vxlan_and_is_said() {
        let config = NetworkConfig::parse(r#"{"network":"10.3.0.0/16"}"#).expect("usable");
        let expected = VxlanConfig {
            vni: 1,
            port: 8472,
            mtu: None,
            direct_routing: false,
        };
        assert_eq!(config.vxlan(), Some(&expected));
        assert_eq!(config.pools.first().min().to_string(), "10.3.1.0");
        assert_eq!(config.notes.len(), 1);
    }

    #[test]
    fn zero_means_default() {
        let config = NetworkConfig::parse(
            r#"{"Network":"10.3.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0",
                "Backend":{"Type":"vxlan","Port":0,"MTU":0}}"#,
        )
        .expect("usable");
        assert_eq!(config.pools.first().subnet_len(), 24);
        assert_eq!(config.vxlan(), Some(&VxlanConfig::default()));
    }

    #[test]
    fn backends_are_told_by_their_type() {
        let parse = |backend: &str| {
            let json = format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#);
            NetworkConfig::parse(&json).expect("usable").backend
        };
        assert_eq!(parse(r#"{"Type":"host-gw"}"#), BackendConfig::HostGw);
        let direct = VxlanConfig {
            direct_routing: true,
            ..VxlanConfig::default()
        };
        assert_eq!(
            parse(r#"{"Type":"vxlan","Directrouting":true}"#),
            BackendConfig::Vxlan(direct)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, word) in [
            ("", "valid JSON"),
            ("[]", "valid JSON"),
            ("{}", "Network"),
            (r#"{"Network":"10.3.0.0"}"#, "valid JSON"),
            (r#"{"Network":"fd00::/48"}"#, "IPv6Network"),
            (r#"{"Network":"10.3.0.0/29"}"#, "too small"),
            (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "IPv6"),
            (r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#, "IPv4"),
            (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, "backend type"),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"wireguard"}}"#,
                "wireguard",
            ),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","GBP":true}}"#,
                "GBP",
            ),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Learning":true}}"#,
                "Learning",
            ),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
                "VNI",
            ),
        ] {
            let error = NetworkConfig::parse(json).expect_err(json).to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
    }
}
