//! flannel's CNI configuration, and what it comes to on this node.
//!
//! flannel's own plugin merges the configuration with `subnet.env` and hands the result to the
//! `bridge` and `host-local` plugins. [`Network`] is that result; the plugin then does the work of
//! both.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use rscni_types::types::{Dns, GcAttachment, Route};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Error;
use crate::config::{Nets, SubnetEnv, subnet_env};
use crate::marks::BRIDGE;

/// The part of the JSON on standard input that the plugin reads. Unknown keys are ignored, as by
/// flannel.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Version of CNI that the configuration is written in; empty means 0.1.0.
    #[serde(default)]
    pub cni_version: String,
    /// Name of the network; names the directory of addresses.
    pub name: String,
    /// The file in which the agent writes this node's subnet.
    #[serde(default = "default_subnet_file")]
    pub subnet_file: PathBuf,
    /// Where flannel's plugin keeps one file per container.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Options of the bridge.
    #[serde(default)]
    pub delegate: Option<Delegate>,
    /// Options of address management.
    #[serde(default)]
    pub ipam: Option<Ipam>,
    /// The result of the plugins before this one, or, for CHECK, of the whole list.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// Arguments for plugins from the author of the configuration; `args.cni` follows CNI's
    /// conventions.
    #[serde(default)]
    pub args: Value,
    /// Arguments from the runtime for plugins that have capabilities.
    #[serde(default)]
    pub runtime_config: Value,
    /// For GC: the valid attachments. `None` if the runtime did not name any.
    #[serde(
        default,
        rename = "cni.dev/valid-attachments",
        deserialize_with = "said"
    )]
    valid_attachments: Option<Vec<GcAttachment>>,
    /// The valid attachments under the key of the specification's first text; runtimes send both
    /// keys.
    #[serde(default, rename = "cni.dev/attachments", deserialize_with = "said")]
    attachments: Option<Vec<GcAttachment>>,
}

/// Options of the bridge, with the names that the `bridge` plugin gives them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    r#type: Option<String>,
    bridge: Option<String>,
    mtu: Option<u32>,
    is_gateway: Option<bool>,
    is_default_gateway: bool,
    ip_masq: Option<bool>,
    hairpin_mode: bool,
    promisc_mode: bool,
    force_address: bool,
    dns: Option<Dns>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Options of address management, with the names that the `host-local` plugin gives them. `ranges`
/// is not read, because flannel overwrites that key with the node's subnet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipam {
    r#type: Option<String>,
    data_dir: Option<PathBuf>,
    routes: Vec<Route>,
}

/// The configuration merged with `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Name of the bridge.
    pub bridge: String,
    /// MTU of both ends of a pod's veth pair, in bytes.
    pub mtu: u32,
    /// Whether the bridge has the gateway's address.
    pub is_gateway: bool,
    /// Whether packets that leave through the gateway are masqueraded pod by pod.
    pub ip_masq: bool,
    /// Whether a pod may reach itself by way of the bridge.
    pub hairpin: bool,
    /// Whether the bridge is in promiscuous mode.
    pub promiscuous: bool,
    /// Whether a wrong address of the bridge is replaced while pods use it.
    pub force_address: bool,
    /// The overlay's networks.
    pub networks: Vec<IpNet>,
    /// The node's subnet, written as the gateway's address with the prefix length.
    pub subnet: IpNet,
    /// Routes in the pod besides the one to its own subnet. Those that name no gateway go to the
    /// node's.
    pub routes: Vec<Route>,
    /// Name servers, which the plugin only passes on.
    pub dns: Option<Dns>,
}

/// Options of the `bridge` plugin that would change which hosts a pod can reach, and that this
/// plugin does not have.
const UNSUPPORTED: [&str; 6] = [
    "vlan",
    "vlanTrunk",
    "macspoofchk",
    "portIsolation",
    "disableContainerInterface",
    "enabledad",
];

fn default_subnet_file() -> PathBuf {
    subnet_env::DEFAULT_PATH.into()
}

fn default_data_dir() -> PathBuf {
    "/var/lib/cni/flannel".into()
}

/// Keeps `null`, which is how Go writes an empty list, apart from a key that is not there.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<GcAttachment>>, D::Error> {
    Option::deserialize(deserializer).map(|list| Some(list.unwrap_or_default()))
}

impl NetConf {
    /// Name of the bridge.
    #[must_use]
    pub fn bridge(&self) -> &str {
        self.delegate
            .as_ref()
            .and_then(|delegate| delegate.bridge.as_deref())
            .unwrap_or(BRIDGE)
    }

    /// For GC: the valid attachments. `None` if the runtime did not name any.
    #[must_use]
    pub fn valid_attachments(&self) -> Option<&[GcAttachment]> {
        let said = self.valid_attachments.as_ref();
        said.or(self.attachments.as_ref()).map(Vec::as_slice)
    }

    /// The directory of this network's addresses.
    #[must_use]
    pub fn ipam_dir(&self) -> PathBuf {
        let dir = self.ipam.as_ref().and_then(|ipam| ipam.data_dir.clone());
        dir.unwrap_or_else(|| "/var/lib/cni/networks".into())
            .join(&self.name)
    }

    /// Merges the configuration with the agent's `subnet.env`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the configuration has an option that this plugin does not support,
    /// [`Error::SubnetEnv`] if `subnet.env` is missing or malformed.
    pub fn network(&self) -> Result<Network, Error> {
        let delegate = self.delegate.clone().unwrap_or_default();
        let ipam = self.ipam.clone().unwrap_or_default();
        delegate.validate()?;
        if let Some(kind) = ipam.r#type.as_deref().filter(|kind| *kind != "host-local") {
            return Err(Error::Config(format!(
                "ipam.type {kind:?} is not supported; overlay-cni manages addresses itself, in the \
                format of \"host-local\""
            )));
        }
        merge(
            delegate,
            ipam,
            SubnetEnv::read(&self.subnet_file)?,
            self.bridge(),
        )
    }
}

impl Delegate {
    fn validate(&self) -> Result<(), Error> {
        if let Some(kind) = self.r#type.as_deref().filter(|kind| *kind != "bridge") {
            return Err(Error::Config(format!(
                "delegate.type {kind:?} is not supported; overlay-cni does the work of \"bridge\" \
                itself"
            )));
        }
        for key in ["name", "ipam"] {
            if self.other.contains_key(key) {
                return Err(Error::Config(format!(
                    "delegate.{key} is not allowed; write {key} beside delegate, not in it"
                )));
            }
        }
        let is_set =
            |value: &&Value| !matches!(value, Value::Null | Value::Bool(false)) && **value != 0;
        if let Some(key) = UNSUPPORTED
            .iter()
            .find(|key| self.other.get(**key).filter(is_set).is_some())
        {
            return Err(Error::Unsupported {
                key: format!("delegate.{key}"),
                value: self.other[*key].to_string(),
            });
        }
        if self.hairpin_mode && self.promisc_mode {
            return Err(Error::Config(
                "delegate.hairpinMode and delegate.promiscMode exclude each other".into(),
            ));
        }
        Ok(())
    }
}

/// flannel's rules: what the configuration leaves open comes from the agent, and every network of
/// the overlay is routed by way of the node.
fn merge(delegate: Delegate, ipam: Ipam, env: SubnetEnv, bridge: &str) -> Result<Network, Error> {
    // A pod has one address; where the node leases both families, that is the IPv4 one.
    let Nets { networks, subnet } = env.nets.first().clone();
    let mut routes = ipam.routes;
    routes.extend(networks.iter().map(|net| route(*net, None)));
    if delegate.is_default_gateway {
        let everything = IpNet::new_assert(
            if subnet.addr().is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0; 16])
            },
            0,
        );
        if !routes.iter().any(|route| route.dst == everything) {
            routes.push(route(everything, Some(subnet.addr())));
        }
    }
    Ok(Network {
        bridge: bridge.to_owned(),
        mtu: delegate.mtu.filter(|mtu| *mtu > 0).unwrap_or(env.mtu),
        is_gateway: delegate.is_gateway.unwrap_or(true) || delegate.is_default_gateway,
        ip_masq: delegate.ip_masq.unwrap_or(!env.ip_masq),
        hairpin: delegate.hairpin_mode,
        promiscuous: delegate.promisc_mode,
        force_address: delegate.force_address,
        networks,
        subnet,
        routes,
        dns: delegate.dns,
    })
}

fn route(dst: IpNet, gw: Option<IpAddr>) -> Route {
    Route {
        dst,
        gw,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::per_family::PerFamily;

    fn merged(conf: Value, ip_masq: bool) -> Network {
        let conf: NetConf = serde_json::from_value(conf).expect("a configuration");
        let env = SubnetEnv {
            nets: PerFamily::V4(Nets {
                networks: vec!["10.244.0.0/16".parse().expect("a network")],
                subnet: "10.244.1.1/24".parse().expect("a subnet"),
            }),
            mtu: 1450,
            ip_masq,
        };
        let bridge = conf.bridge().to_owned();
        let delegate = conf.delegate.unwrap_or_default();
        delegate.validate().expect("a supported delegate");
        merge(delegate, conf.ipam.unwrap_or_default(), env, &bridge).expect("a network")
    }

    fn refusal(delegate: Value) -> String {
        let delegate: Delegate = serde_json::from_value(delegate).expect("a delegate");
        delegate.validate().expect_err("not supported").to_string()
    }

    /// What flannel makes of the configuration in its own Kubernetes manifest.
    #[test]
    fn kubernetes_configuration_merges_as_by_flannel() {
        let network = merged(
            json!({
                "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
                "delegate": { "hairpinMode": true, "isDefaultGateway": true },
            }),
            true,
        );
        assert_eq!(
            network,
            Network {
                bridge: "cni0".into(),
                mtu: 1450,
                is_gateway: true,
                ip_masq: false,
                hairpin: true,
                promiscuous: false,
                force_address: false,
                networks: vec!["10.244.0.0/16".parse().expect("a network")],
                subnet: "10.244.1.1/24".parse().expect("a subnet"),
                routes: vec![
                    route("10.244.0.0/16".parse().expect("a network"), None),
                    route(
                        "0.0.0.0/0".parse().expect("a network"),
                        "10.244.1.1".parse().ok()
                    ),
                ],
                dns: None,
            }
        );
    }

    #[test]
    fn what_the_configuration_says_wins() {
        let network = merged(
            json!({
                "name": "x", "type": "flannel",
                "delegate": { "bridge": "br1", "mtu": 1400, "isGateway": false, "ipMasq": false },
                "ipam": { "routes": [{ "dst": "192.168.0.0/16", "gw": "10.244.1.9" }] },
            }),
            false,
        );
        assert_eq!((network.bridge.as_str(), network.mtu), ("br1", 1400));
        assert!(!network.is_gateway && !network.ip_masq);
        let routes: Vec<_> = network
            .routes
            .iter()
            .map(|route| route.dst.to_string())
            .collect();
        assert_eq!(routes, ["192.168.0.0/16", "10.244.0.0/16"]);
    }

    #[test]
    fn the_plugin_masquerades_when_the_agent_does_not() {
        assert!(merged(json!({ "name": "x", "type": "flannel" }), false).ip_masq);
    }

    #[test]
    fn what_the_plugin_cannot_do_is_refused() {
        assert!(refusal(json!({ "type": "ipvlan" })).contains("\"ipvlan\""));
        assert!(refusal(json!({ "ipam": {} })).contains("delegate.ipam"));
        assert!(refusal(json!({ "vlan": 7 })).contains("delegate.vlan"));
        assert!(refusal(json!({ "hairpinMode": true, "promiscMode": true })).contains("exclude"));
    }

    #[test]
    fn options_that_are_off_are_no_reason_to_refuse() {
        merged(
            json!({ "name": "x", "delegate": { "vlan": 0, "macspoofchk": false } }),
            true,
        );
    }

    #[test]
    fn no_valid_attachments_differ_from_an_empty_list() {
        let conf = |text| serde_json::from_str::<NetConf>(text).expect("a configuration");
        assert!(conf(r#"{"name":"x"}"#).valid_attachments().is_none());
        let none = conf(r#"{"name":"x","cni.dev/valid-attachments":null}"#);
        assert_eq!(none.valid_attachments(), Some(&[][..]));
        let one = r#"[{"containerID":"c","ifname":"eth0"}]"#;
        let old = conf(&format!(r#"{{"name":"x","cni.dev/attachments":{one}}}"#));
        assert_eq!(old.valid_attachments().map(<[_]>::len), Some(1));
    }
}
