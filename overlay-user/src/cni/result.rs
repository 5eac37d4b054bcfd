//! What ADD prints, in each version of CNI.

use std::net::IpAddr;

use rscni_types::legacy;
use rscni_types::types::{CNIResult, CNIResultWithVersion, Route};
use rscni_types::version::{PluginInfo, SpecVersion};
use serde_json::{Map, Value, json};

/// The versions of CNI that the plugin supports: those of flannel's own plugin.
#[must_use]
pub fn versions() -> PluginInfo {
    let mut spoken = vec![SpecVersion::new(0, 1, 0), SpecVersion::new(0, 2, 0)];
    spoken.extend_from_slice(PluginInfo::default().supported_versions());
    PluginInfo::new(SpecVersion::CURRENT, spoken)
}

/// `result` in the form of `version` of CNI.
#[must_use]
pub fn to_json(version: SpecVersion, result: CNIResult) -> Value {
    if version < SpecVersion::new(0, 3, 0) {
        by_family(version, &result)
    } else if version.is_legacy() {
        json!(legacy::CNIResult::new(version, result))
    } else {
        json!(CNIResultWithVersion::new(version, result))
    }
}

/// Before 0.3.0 a result had one address for each family, and nothing about devices.
fn by_family(version: SpecVersion, result: &CNIResult) -> Value {
    let mut json = Map::new();
    json.insert("cniVersion".into(), json!(version));
    for (key, is_v4) in [("ip4", true), ("ip6", false)] {
        let of_family = |address: IpAddr| address.is_ipv4() == is_v4;
        let Some(ip) = result.ips.iter().find(|ip| of_family(ip.address.addr())) else {
            continue;
        };
        let routes: Vec<_> = result
            .routes
            .iter()
            .filter(|route| of_family(route.dst.addr()))
            .map(|Route { dst, gw, .. }| match gw {
                Some(gw) => json!({ "dst": dst, "gw": gw }),
                None => json!({ "dst": dst }),
            })
            .collect();
        json.insert(
            key.into(),
            json!({ "ip": ip.address, "gateway": ip.gateway, "routes": routes }),
        );
    }
    json.insert("dns".into(), json!(result.dns.clone().unwrap_or_default()));
    Value::Object(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> CNIResult {
        serde_json::from_value(json!({
            "interfaces": [
                { "name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/a" }
            ],
            "ips": [{ "interface": 0, "address": "10.244.1.5/24", "gateway": "10.244.1.1" }],
            "routes": [
                { "dst": "10.244.0.0/16" },
                { "dst": "0.0.0.0/0", "gw": "10.244.1.1" },
                { "dst": "fd00::/56" },
            ],
        }))
        .expect("a result")
    }

    #[test]
    fn the_first_versions_have_an_address_for_each_family() {
        assert_eq!(
            to_json(SpecVersion::new(0, 2, 0), result()),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {
                    "ip": "10.244.1.5/24",
                    "gateway": "10.244.1.1",
                    "routes": [
                        { "dst": "10.244.0.0/16" },
                        { "dst": "0.0.0.0/0", "gw": "10.244.1.1" },
                    ],
                },
                "dns": {},
            })
        );
    }

    #[test]
    fn up_to_version_0_4_addresses_name_their_family() {
        let json = to_json(SpecVersion::new(0, 3, 1), result());
        assert_eq!(json["ips"][0]["version"], "4");
        let json = to_json(SpecVersion::CURRENT, result());
        assert_eq!(json["ips"][0].get("version"), None);
    }
}
