//! A MAC address with the text form that `ip link`, etcd leases and CNI results use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet address, bytes in the order of transmission.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

/// The error for a text that is not six hexadecimal bytes joined by colons.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a MAC address: {0:?} (want six hexadecimal bytes such as 02:00:5e:10:00:01)")]
pub struct ParseMacError(String);

impl MacAddr {
    /// Whether this can be the address of one device: neither zero nor a group address.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac: MacAddr = "C6:d2:32:6f:8f:44".parse().expect("a valid address");
        assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
        assert_eq!(format!("{mac:?}"), mac.to_string());
    }

    #[test]
    fn one_device_has_neither_zero_nor_a_groups_address() {
        let is_unicast = |first, last| MacAddr([first, 0, 0, 0, 0, last]).is_unicast();
        assert!(is_unicast(0xc6, 0) && is_unicast(0, 1));
        assert!(!is_unicast(0, 0) && !is_unicast(0x01, 1) && !is_unicast(0xff, 0xff));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "1:2:3:4:5:6",
            "c6:d2:32:6f:8f",
            "c6:d2:32:6f:8f:44:00",
            "+1:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?}");
        }
    }
}
