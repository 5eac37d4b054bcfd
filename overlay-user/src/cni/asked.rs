//! The addresses that a runtime asks for, if it asks for any.
//!
//! By CNI's conventions (`CONVENTIONS.md`), as `host-local` and `bridge` read them: `IP` and `MAC`
//! in `CNI_ARGS`, `ips` and `mac` in `args.cni` and in `runtimeConfig` of the configuration. Of
//! several MAC addresses the last one counts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rscni_types::error::Error as ProtocolError;
use serde::Deserialize;
use serde_json::Value;

use super::Error;
use super::config::NetConf;
use crate::mac::MacAddr;

/// Annotation of a pod: who translates addresses of Services for it, `kube-proxy` or `socket`.
const SERVICES_ANNOTATION: &str = "overlay.io/services";
/// Annotations of pods whose own namespace redirects what is sent to a Service's address: they say
/// that a service mesh (Istio, Linkerd) has put its proxy into the pod.
const MESH_ANNOTATIONS: [&str; 2] = ["sidecar.istio.io/status", "linkerd.io/proxy-version"];
/// The capability by which a runtime tells the pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The requests of the runtime; the plugin chooses what is not requested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The pod's address.
    pub address: Option<IpAddr>,
    /// The MAC address of the pod's end.
    pub mac: Option<MacAddr>,
    /// Whether addresses of Services are to be left to kube-proxy.
    pub by_kube_proxy: bool,
}

/// What `args.cni` and `runtimeConfig` have in common.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wishes {
    ips: Option<Vec<String>>,
    mac: Option<String>,
}

impl Asked {
    /// Reads `CNI_ARGS` and the configuration.
    ///
    /// # Errors
    /// [`Error::Protocol`] for malformed `CNI_ARGS`, [`Error::Config`] for what no pod can have,
    /// [`Error::Decode`] for a configuration of another shape.
    pub fn new(arguments: &str, conf: &NetConf) -> Result<Self, Error> {
        let mut addresses = BTreeSet::new();
        let mut mac = None;
        for (key, value) in pairs(arguments)? {
            match key {
                "IP" => addresses.extend(each(value)?),
                "MAC" => mac = Some(unicast(value)?),
                // Kubernetes tells much that only others read.
                _ => {}
            }
        }
        for source in [&conf.args["cni"], &conf.runtime_config] {
            let wishes: Wishes = match source {
                Value::Null => continue,
                source => serde_json::from_value(source.clone())?,
            };
            for text in wishes.ips.iter().flatten() {
                addresses.insert(address(text)?);
            }
            if let Some(text) = wishes.mac.filter(|text| !text.is_empty()) {
                mac = Some(unicast(&text)?);
            }
        }
        if addresses.len() > 1 {
            let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            return Err(Error::Config(format!(
                "asked for {}: a pod has one address",
                all.join(" and ")
            )));
        }
        Ok(Self {
            address: addresses.pop_first(),
            mac,
            by_kube_proxy: is_left_to_kube_proxy(&conf.runtime_config[ANNOTATIONS]),
        })
    }
}

/// Whether a pod's annotations leave its Services to kube-proxy.
fn is_left_to_kube_proxy(annotations: &Value) -> bool {
    match annotations[SERVICES_ANNOTATION].as_str() {
        Some(by) => by == "kube-proxy",
        None => MESH_ANNOTATIONS
            .iter()
            .any(|mesh| annotations[mesh].is_string()),
    }
}

/// `KEY=value` with semicolons between.
fn pairs(arguments: &str) -> Result<Vec<(&str, &str)>, Error> {
    let words = arguments.split(';').filter(|word| !word.is_empty());
    words
        .map(|word| {
            word.split_once('=').ok_or_else(|| {
                let text = format!("CNI_ARGS {word:?} is not of the form KEY=value");
                ProtocolError::InvalidEnvValue(text).into()
            })
        })
        .collect()
}

fn each(list: &str) -> Result<Vec<IpAddr>, Error> {
    list.split(',').map(address).collect()
}

/// An address, with or without a prefix length: the node's subnet has its own.
fn address(text: &str) -> Result<IpAddr, Error> {
    let plain = || text.parse::<IpAddr>().ok();
    let with_prefix = || text.parse::<IpNet>().ok().map(|net| net.addr());
    plain()
        .or_else(with_prefix)
        .ok_or_else(|| Error::Config(format!("asked for the address {text:?}, which is none")))
}

fn unicast(text: &str) -> Result<MacAddr, Error> {
    match text.parse::<MacAddr>() {
        Ok(mac) if mac.is_unicast() => Ok(mac),
        Ok(mac) => Err(Error::Config(format!(
            "asked for the MAC address {mac}, which no interface can have: zero, or of a group"
        ))),
        Err(error) => Err(Error::Config(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(arguments: &str, more: Value) -> Result<Asked, Error> {
        let mut conf = json!({ "name": "cbr0" });
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        let conf = serde_json::from_value(conf).expect("a configuration");
        Asked::new(arguments, &conf)
    }

    #[test]
    fn annotations_leave_services_to_kube_proxy() {
        let is_left = |annotations: Value| {
            asked("", json!({ "runtimeConfig": { ANNOTATIONS: annotations } }))
                .expect("a wish")
                .by_kube_proxy
        };
        let injected = "sidecar.istio.io/status";
        assert!(is_left(json!({ "overlay.io/services": "kube-proxy" })));
        assert!(is_left(json!({ injected: "{}" })));
        assert!(is_left(json!({ "linkerd.io/proxy-version": "edge" })));
        assert!(!is_left(
            json!({ injected: "{}", "overlay.io/services": "socket" })
        ));
        assert!(!is_left(json!({ "app": "web" })));
        assert!(!asked("", json!({})).expect("no wish").by_kube_proxy);
    }

    #[test]
    fn runtimes_ask_in_three_ways() {
        let wanted = Asked {
            address: Some([10, 244, 1, 9].into()),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            by_kube_proxy: false,
        };
        let (ip, mac) = ("10.244.1.9", "02:00:00:00:00:09");
        let wish = json!({ "ips": [ip], "mac": mac });
        let by_variable = format!("IgnoreUnknown=1;IP={ip};K8S_POD_NAME=x;MAC={mac}");
        for (arguments, conf) in [
            (by_variable.as_str(), json!({})),
            ("", json!({ "args": { "cni": wish } })),
            (
                "",
                json!({ "runtimeConfig": { "ips": ["10.244.1.9/24"], "mac": mac } }),
            ),
            // The same wish twice is one wish; the last MAC address counts.
            (
                "IP=10.244.1.9;MAC=02:00:00:00:00:01",
                json!({ "args": { "cni": { "labels": [] } }, "runtimeConfig": wish }),
            ),
        ] {
            assert_eq!(
                asked(arguments, conf).expect("a wish"),
                wanted,
                "{arguments}"
            );
        }
        let nothing = asked("", json!({ "runtimeConfig": { "ips": null, "mac": "" } }));
        assert_eq!(nothing.expect("no wish"), Asked::default());
    }

    #[test]
    fn what_no_pod_can_have_is_refused() {
        let code = |arguments| asked(arguments, json!({})).expect_err("refused").code();
        assert_eq!(code("nonsense"), 4);
        for arguments in [
            "IP=x",
            "IP=10.0.0.1,10.0.0.2",
            "MAC=01:00:5e:00:00:01",
            "MAC=00:00:00:00:00:00",
            "MAC=x",
        ] {
            assert_eq!(code(arguments), 7, "{arguments}");
        }
    }
}
