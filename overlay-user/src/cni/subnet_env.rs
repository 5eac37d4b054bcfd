//! `subnet.env`: what the agent tells the CNI plugin about this node's lease.
//!
//! Lines of `KEY=VALUE`; empty lines and lines that begin with `#` are skipped, unknown keys ignored:
//!
//! ```text
//! FLANNEL_NETWORK=10.244.0.0/16
//! FLANNEL_SUBNET=10.244.1.1/24
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=true
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use ipnet::IpNet;

/// The content of `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay's networks, IPv4 first.
    pub networks: Vec<IpNet>,
    /// This node's subnet, written as the gateway's address with the prefix length; the IPv4 one if there
    /// are two.
    pub subnet: Option<IpNet>,
    /// MTU of the pods' interfaces, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades what leaves the overlay, so that the plugin need not.
    pub ip_masq: bool,
}

/// Why `subnet.env` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error(
        "{0} is not there: the agent on this node has not got its lease yet; look at its state with \
         `overlayctl status` or at the log of overlayd"
    )]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line says nothing that makes sense.
    #[error(
        "{path}, line {line}: {text:?} is not {want}; restarting overlayd writes the file anew"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is expected there.
        want: &'static str,
    },
    /// Lines that must be there are not.
    #[error("{path} has no {missing}; restarting overlayd writes the file anew")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Names of the keys.
        missing: String,
    },
}

impl SubnetEnv {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// See [`Error`]; a file that is not there is [`Error::Missing`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::Missing(path.to_owned()))
            }
            Err(source) => Err(Error::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let (mut networks, mut networks_v6) = (Vec::new(), Vec::new());
        let (mut subnet, mut subnet_v6, mut mtu, mut ip_masq) = (None, None, None, None);
        for (line, text) in iter::zip(1.., text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let bad = |want| Error::Line {
                path: path.to_owned(),
                line,
                text: text.to_owned(),
                want,
            };
            let (key, value) = text.split_once('=').ok_or_else(|| bad("KEY=VALUE"))?;
            let value = value.trim().trim_matches(['"', '\'']);
            match key.trim() {
                "FLANNEL_NETWORK" => {
                    networks =
                        nets(value, IpNet::V4).ok_or_else(|| bad("a list of IPv4 networks"))?;
                }
                "FLANNEL_IPV6_NETWORK" => {
                    networks_v6 =
                        nets(value, IpNet::V6).ok_or_else(|| bad("a list of IPv6 networks"))?;
                }
                "FLANNEL_SUBNET" => {
                    subnet = Some(net(value, IpNet::V4).ok_or_else(|| bad("an IPv4 subnet"))?);
                }
                "FLANNEL_IPV6_SUBNET" => {
                    subnet_v6 = Some(net(value, IpNet::V6).ok_or_else(|| bad("an IPv6 subnet"))?);
                }
                "FLANNEL_MTU" => {
                    mtu = Some(value.parse().map_err(|_| bad("a number of bytes"))?);
                }
                "FLANNEL_IPMASQ" => {
                    ip_masq = Some(value.parse().map_err(|_| bad("true or false"))?);
                }
                _ => {}
            }
        }
        networks.append(&mut networks_v6);
        let subnet = subnet.or(subnet_v6);
        let (Some(_), Some(mtu), Some(ip_masq), false) =
            (subnet, mtu, ip_masq, networks.is_empty())
        else {
            let keys = [
                (
                    networks.is_empty(),
                    "FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK",
                ),
                (subnet.is_none(), "FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET"),
                (mtu.is_none(), "FLANNEL_MTU"),
                (ip_masq.is_none(), "FLANNEL_IPMASQ"),
            ];
            let missing: Vec<_> = keys.iter().filter(|key| key.0).map(|key| key.1).collect();
            return Err(Error::Incomplete {
                path: path.to_owned(),
                missing: missing.join(", "),
            });
        };
        Ok(Self {
            networks,
            subnet,
            mtu,
            ip_masq,
        })
    }
}

fn net<T: std::str::FromStr>(text: &str, family: fn(T) -> IpNet) -> Option<IpNet> {
    text.parse().ok().map(family)
}

fn nets<T: std::str::FromStr>(list: &str, family: fn(T) -> IpNet) -> Option<Vec<IpNet>> {
    list.split(',')
        .map(|text| net(text.trim(), family))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SubnetEnv, String> {
        SubnetEnv::parse(Path::new("subnet.env"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn both_families_are_read() {
        let env = parse(
            "FLANNEL_NETWORK=10.244.0.0/16,10.8.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )
        .expect("a good file");
        let networks: Vec<_> = env.networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.244.0.0/16", "10.8.0.0/16", "fd00::/56"]);
        assert_eq!(
            env.subnet.map(|subnet| subnet.to_string()).as_deref(),
            Some("10.244.1.1/24")
        );
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
    }

    #[test]
    fn the_bad_line_is_named() {
        let error = parse("# written by overlayd\n\nFLANNEL_MTU=14x\n").expect_err("a bad MTU");
        assert!(
            error.contains("line 3") && error.contains("FLANNEL_MTU=14x"),
            "{error}"
        );
        for text in [
            "garbage",
            "FLANNEL_SUBNET=10.244.1.1",
            "FLANNEL_NETWORK=fd00::/56",
        ] {
            assert!(parse(text).expect_err(text).contains("line 1"), "{text}");
        }
    }

    #[test]
    fn every_missing_key_is_named() {
        let error = parse("FLANNEL_NETWORK=10.244.0.0/16\n").expect_err("three keys are missing");
        for key in ["FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            assert!(error.contains(key), "{error}");
        }
    }
}
