//! A node's attributes in its lease: flannel's JSON, to the byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::config::fold_keys;
use crate::per_family::PerFamily;

/// A lease's value, as in
/// `{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",`
/// `"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}`.
///
/// Backend data keeps its own order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The destination of the node's encapsulated packets.
    pub public_ip: PerFamily<IpAddr>,
    /// How the node is reached: `vxlan`.
    pub backend_type: Option<String>,
    /// The backend's own data.
    pub backend_data: Option<PerFamily<BackendData>>,
}

/// A backend's own data in a lease, stored as text, because the parsed form takes ten times the
/// memory, and there is one value for every node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendData(Box<str>);

impl BackendData {
    /// The data as JSON text without spaces.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The data, parsed.
    #[must_use]
    pub fn value(&self) -> Value {
        // Parsing cannot fail, because the text was made from a value.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<Value> for BackendData {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Serialize for BackendData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// The written form of [`Attributes`]: fields in flannel's order, `PublicIPv6` even when null, the
/// last three omitted when absent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Option<&'a IpAddr>,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<&'a IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a BackendData>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a BackendData>,
}

/// [`Attributes`] with the keys lower-cased.
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
    /// The error of serde: the text is no JSON object, or has no valid `PublicIP`.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let folded: Folded = serde_json::from_value(fold_keys(serde_json::from_str(json)?))?;
        let v4 = folded.publicip.into();
        Ok(Self {
            public_ip: match folded.publicipv6 {
                None => PerFamily::V4(v4),
                Some(v6) => PerFamily::Both { v4, v6: v6.into() },
            },
            backend_type: folded.backendtype.filter(|kind| !kind.is_empty()),
            backend_data: PerFamily::new(
                folded.backenddata.map(BackendData::from),
                folded.backendv6data.map(BackendData::from),
            ),
        })
    }

    /// Whether the node is the one with this public IP: compared by the IPv4 address where there is
    /// one, as flannel recognises a node's lease.
    #[must_use]
    pub fn is_at(&self, public_ip: &PerFamily<IpAddr>) -> bool {
        let address = public_ip.first();
        self.public_ip.like(*address) == Some(address)
    }

    /// Whether `earlier` are the same node's attributes, from before its public IP changed: all
    /// attributes but the address, such as the MAC address of the VXLAN device, are the same.
    /// Without any such attribute the answer is no, because the nodes cannot be told apart.
    #[must_use]
    pub fn is_moved_from(&self, earlier: &Self) -> bool {
        let same_address = Self {
            public_ip: self.public_ip,
            ..earlier.clone()
        };
        earlier.public_ip != self.public_ip && self.backend_data.is_some() && same_address == *self
    }

    /// The value in the form that is written to the store.
    ///
    /// # Errors
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let data = self.backend_data.as_ref();
        serde_json::to_string(&Written {
            public_ip: self.public_ip.v4(),
            public_ipv6: self.public_ip.v6(),
            backend_type: self.backend_type.as_deref(),
            backend_data: data.and_then(PerFamily::v4),
            backend_v6_data: data.and_then(PerFamily::v6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_values_round_trip_to_the_byte() {
        for json in [
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            "{\"PublicIP\":\"192.168.64.3\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}}",
            "{\"PublicIP\":\"1.2.3.4\",\"PublicIPv6\":\"2001:db8::1\",\"BackendType\":\"vxlan\",\
            \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"},\
            \"BackendV6Data\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:45\"}}",
            "{\"PublicIP\":\"1.2.3.4\",\"PublicIPv6\":null,\"BackendType\":\"wireguard\",\
            \"BackendData\":{\"PublicKey\":\"b64=\",\"Port\":51820}}",
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
    fn a_node_is_found_by_its_ipv4_address() {
        let of = |json| Attributes::parse(json).expect("attributes");
        let own = of(r#"{"PublicIP":"1.2.3.4"}"#);
        let dual = of(r#"{"PublicIP":"1.2.3.4","PublicIPv6":"2001:db8::1"}"#);
        let other = of(r#"{"PublicIP":"1.2.3.5","PublicIPv6":"2001:db8::1"}"#);
        assert!(dual.is_at(&own.public_ip), "what a dual-stack flannel left");
        assert!(own.is_at(&dual.public_ip));
        assert!(!other.is_at(&dual.public_ip));
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
