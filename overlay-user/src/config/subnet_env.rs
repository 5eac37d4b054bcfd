//! `/run/flannel/subnet.env`: the agent's message to the CNI plugin and to people's scripts.
//!
//! The agent writes the file exactly as flannel does, to the byte; the reader is as lenient as
//! flannel's.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::per_family::PerFamily;

/// flannel's path of the file.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The node's share of the overlay.
    pub nets: PerFamily<Nets>,
    /// MTU of pods in bytes (`FLANNEL_MTU`).
    pub mtu: u32,
    /// Whether the agent masquerades, so that the plugin must not (`FLANNEL_IPMASQ`).
    pub ip_masq: bool,
}

/// The node's share of the overlay, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nets {
    /// The overlay's networks (`FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`, each a comma-separated
    /// list).
    pub networks: Vec<IpNet>,
    /// The node's gateway with its subnet's prefix length (`FLANNEL_SUBNET`,
    /// `FLANNEL_IPV6_SUBNET`), as in `10.244.1.1/24`.
    pub subnet: IpNet,
}

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SubnetEnvError {
    /// The file cannot be read; most often the agent has not yet written it.
    #[error(
        "cannot read {path}: {source}; overlayd writes it once it holds a lease, so check that \
        overlayd runs and reaches its store"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be replaced.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A malformed line.
    #[error(
        "{path}, line {line}: {problem}: {text:?}; restart overlayd to have the file written anew"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The fault of the line.
        problem: &'static str,
        /// The line.
        text: String,
    },
    /// Required variables are missing.
    #[error("{path} lacks {}; restart overlayd to have the file written anew", names.join(", "))]
    Missing {
        /// The file.
        path: PathBuf,
        /// All the variables that are missing.
        names: Vec<&'static str>,
    },
}

impl SubnetEnv {
    /// Reads the file. Comments, blank lines, `export`, quotes and unknown variables are accepted,
    /// and networks of a list that are not CIDRs are skipped, as flannel's reader does.
    ///
    /// # Errors
    /// A [`SubnetEnvError`] that names the malformed line, or all missing variables.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, SubnetEnvError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| SubnetEnvError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Reads the file's text; `path` is for the errors.
    ///
    /// # Errors
    /// As [`SubnetEnv::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, SubnetEnvError> {
        // Values by variable. The variable's name suggests a family, but the family of the value
        // itself counts.
        let (mut networks, mut subnets) = ([Vec::new(), Vec::new()], [None, None]);
        let (mut mtu, mut ip_masq) = (None, None);
        for (index, raw) in text.lines().enumerate() {
            let bad = |problem| SubnetEnvError::Line {
                path: path.into(),
                line: index + 1,
                problem,
                text: raw.to_owned(),
            };
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=').ok_or_else(|| bad("not NAME=VALUE"))?;
            let value = unquote(value.trim());
            let cidr = || {
                value
                    .parse::<IpNet>()
                    .map_err(|_| bad("not an address with a prefix"))
            };
            match name.trim() {
                "FLANNEL_NETWORK" => networks[0] = list(value),
                "FLANNEL_IPV6_NETWORK" => networks[1] = list(value),
                "FLANNEL_SUBNET" => subnets[0] = Some(cidr()?),
                "FLANNEL_IPV6_SUBNET" => subnets[1] = Some(cidr()?),
                "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| bad("not a number"))?),
                "FLANNEL_IPMASQ" => {
                    ip_masq = Some(match value {
                        "true" | "TRUE" | "True" | "1" => true,
                        "false" | "FALSE" | "False" | "0" => false,
                        _ => return Err(bad("neither true nor false")),
                    });
                }
                _ => {}
            }
        }
        let (networks, subnets) = (
            networks.concat(),
            Vec::from_iter(subnets.into_iter().flatten()),
        );
        let nets = |is_v4: bool| {
            let is_of_family = |net: &&IpNet| net.addr().is_ipv4() == is_v4;
            Some(Nets {
                networks: networks.iter().filter(is_of_family).copied().collect(),
                subnet: *subnets.iter().find(is_of_family)?,
            })
        };
        let missing = [
            (networks.is_empty(), "FLANNEL_NETWORK"),
            (subnets.is_empty(), "FLANNEL_SUBNET"),
            (mtu.is_none(), "FLANNEL_MTU"),
            (ip_masq.is_none(), "FLANNEL_IPMASQ"),
        ];
        let nets = PerFamily::new(nets(true), nets(false));
        let (Some(nets), Some(mtu), Some(ip_masq), false) =
            (nets, mtu, ip_masq, networks.is_empty())
        else {
            let names = missing
                .iter()
                .filter(|(is, _)| *is)
                .map(|(_, name)| *name)
                .collect();
            return Err(SubnetEnvError::Missing {
                path: path.into(),
                names,
            });
        };
        Ok(Self { nets, mtu, ip_masq })
    }

    /// Replaces the file in one step, so that a reader sees either the whole old content or the
    /// whole new one. The file's mode is 0644; a new directory gets 0755.
    ///
    /// # Errors
    /// [`SubnetEnvError::Write`] with the system's error.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), SubnetEnvError> {
        let path = path.as_ref();
        self.replace(path).map_err(|source| SubnetEnvError::Write {
            path: path.into(),
            source,
        })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        // The parent of a bare name is empty, which stands for the working directory.
        let directory = path.parent().unwrap_or(path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(self.to_string().as_bytes())?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}

/// The file's bytes, in flannel's order.
impl std::fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (nets, infix) in [(self.nets.v4(), ""), (self.nets.v6(), "IPV6_")] {
            let Some(Nets { networks, subnet }) = nets else {
                continue;
            };
            let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
            writeln!(f, "FLANNEL_{infix}NETWORK={}", networks.join(","))?;
            writeln!(f, "FLANNEL_{infix}SUBNET={subnet}")?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

fn list(networks: &str) -> Vec<IpNet> {
    let parse = |network: &str| network.trim().parse().ok();
    networks.split(',').filter_map(parse).collect()
}

fn unquote(value: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn parse(text: &str) -> Result<SubnetEnv, SubnetEnvError> {
        SubnetEnv::parse(Path::new("subnet.env"), text)
    }

    #[test]
    fn the_bytes_are_flannels() {
        let env = parse(GOLDEN).expect("flannel's own file");
        assert_eq!(env.to_string(), GOLDEN);
        let nets = env.nets.v4().expect("IPv4").clone();
        assert_eq!(nets.networks.len(), 1);
        assert_eq!(Some(nets.subnet), "10.244.1.1/24".parse().ok());
        let v4 = SubnetEnv {
            nets: PerFamily::V4(nets),
            ..env
        };
        assert_eq!(
            v4.to_string(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn reading_is_lenient() {
        let env = parse(
            "# note\n\nexport FLANNEL_NETWORK=\"10.0.0.0/16, oops,10.1.0.0/16\"\n\
             FLANNEL_SUBNET='10.0.1.1/24'\n\
             FLANNEL_MTU=1450\r\nFLANNEL_IPMASQ=false\nOTHER=x",
        )
        .expect("readable");
        assert_eq!(env.nets.first().networks.len(), 2);
        assert!(!env.ip_masq);
    }

    #[test]
    fn errors_name_the_line_or_all_that_is_missing() {
        let error = parse("FLANNEL_NETWORK=10.0.0.0/16\nFLANNEL_SUBNET=10.0\n").expect_err("bad");
        assert!(error.to_string().contains("line 2"), "{error}");
        let error = parse("garbage").expect_err("bad");
        assert!(error.to_string().contains("line 1"), "{error}");
        let error = parse("").expect_err("empty").to_string();
        for name in [
            "FLANNEL_NETWORK",
            "FLANNEL_SUBNET",
            "FLANNEL_MTU",
            "FLANNEL_IPMASQ",
        ] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn writing_replaces_and_makes_the_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flannel/subnet.env");
        let env = parse(GOLDEN).expect("flannel's own file");
        env.write(&path).expect("written");
        SubnetEnv {
            mtu: 1400,
            ..env.clone()
        }
        .write(&path)
        .expect("written again");
        assert_eq!(SubnetEnv::read(&path).expect("read back").mtu, 1400);
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let left = fs::read_dir(path.parent().expect("a directory"))
            .expect("listed")
            .count();
        assert_eq!(left, 1, "no temporary file stays");
    }
}
