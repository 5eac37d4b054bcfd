//! What a node says about itself in its lease: flannel's JSON, to the byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::fold_keys;

/// A lease's value, as in
/// `{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}`.
///
/// Fields are in flannel's order. `PublicIPv6` is written even when it is null; the last three are
/// left out when absent. Backend data keeps its own order of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attributes {
    /// Where the node's encapsulated packets go.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// The same over IPv6.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// How the node is reached: `vxlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_type: Option<String>,
    /// The backend's own data for IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Value>,
    /// The backend's own data for IPv6.
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Value>,
}

/// [`Attributes`] with its keys lower-cased.
#[derive(Deserialize)]
struct Folded {
    publicip: Ipv4Addr,
    publicipv6: Option<Ipv6Addr>,
    backendtype: Option<String>,
    backenddata: Option<Value>,
    backendv6data: Option<Value>,
}

impl Attributes {
    /// Reads a lease's value; keys are matched without regard to case and unknown ones are ignored.
    ///
    /// # Errors
    /// What serde found wrong: no JSON object, or no valid `PublicIP`.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let folded: Folded = serde_json::from_value(fold_keys(serde_json::from_str(json)?))?;
        Ok(Self {
            public_ip: folded.publicip,
            public_ipv6: folded.publicipv6,
            backend_type: folded.backendtype.filter(|kind| !kind.is_empty()),
            backend_data: folded.backenddata,
            backend_v6_data: folded.backendv6data,
        })
    }

    /// Whether `earlier` are the same node's, from before its public IP changed: all that it says
    /// of itself but the address, such as the MAC address of its VXLAN device, is the same. Without
    /// any such data nobody can tell.
    #[must_use]
    pub fn is_moved_from(&self, earlier: &Self) -> bool {
        let same_address = Self {
            public_ip: self.public_ip,
            ..earlier.clone()
        };
        earlier.public_ip != self.public_ip && self.backend_data.is_some() && same_address == *self
    }

    /// The value as it goes into the store.
    ///
    /// # Errors
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_values_round_trip_to_the_byte() {
        for json in [
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"b64=","Port":51820}}"#,
        ] {
            let attributes = Attributes::parse(json).expect(json);
            assert_eq!(attributes.to_json().expect("JSON"), json);
        }
    }

    #[test]
    fn a_node_is_known_by_its_mac_address_when_its_public_ip_changes() {
        let with = |ip: &str, data: &str| {
            let json =
                format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{data}}}"#);
            Attributes::parse(&json).expect("attributes")
        };
        let mac = |last: u8| format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{last}"}}"#);
        let now = with("1.2.3.4", &mac(1));
        assert!(now.is_moved_from(&with("1.2.3.5", &mac(1))));
        assert!(!now.is_moved_from(&now), "nothing changed");
        assert!(!now.is_moved_from(&with("1.2.3.5", &mac(2))), "a stranger");
        let anybody = with("1.2.3.4", "null");
        assert!(!anybody.is_moved_from(&with("1.2.3.5", "null")));
    }

    #[test]
    fn reading_folds_case_and_ignores_the_unknown() {
        let odd = r#"{"publicip":"1.2.3.4","Extra":1,"BACKENDTYPE":"","BackendData":null}"#;
        let attributes = Attributes::parse(odd).expect("readable");
        assert_eq!(
            attributes.to_json().expect("JSON"),
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#
        );
    }

    #[test]
    fn malformed_values_are_refused() {
        for json in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"PublicIP":"x"}"#,
            r#"{"PublicIP":"1.2.3.4/24"}"#,
        ] {
            assert!(Attributes::parse(json).is_err(), "{json}");
        }
    }
}
