//! A packet as text.

use anyhow::{Context as _, Result, ensure};
use overlay_cases::world::NIC_MAC;
use overlay_common::Hook;
use overlay_common::visit::Visit;
use serde::{Deserialize, Serialize};

use crate::expected::hex;
use crate::namespace::INTERFACES;

/// See [`Visit`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketText {
    hook: String,
    interface: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    segment_size: u32,
    /// Hexadecimal, cut at the ends of headers; spaces do not count.
    frame: Vec<String>,
}

pub(super) fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl PacketText {
    pub(super) fn of(visit: &Visit) -> Self {
        // Ethernet, IP, UDP and VXLAN, Ethernet, IP, the rest: where they stand in VXLAN, and near
        // enough in what is none.
        const ENDS: [usize; 5] = [14, 34, 50, 64, 84];
        let mut frame = Vec::new();
        let mut start = 0;
        for end in ENDS.into_iter().chain([visit.frame.len()]) {
            let end = end.min(visit.frame.len());
            if end > start {
                frame.push(hex(&visit.frame[start..end]));
                start = end;
            }
        }
        Self {
            hook: visit.hook.name().to_owned(),
            interface: visit.ifindex,
            segment_size: visit.gso_size,
            frame,
        }
    }

    pub(super) fn visit(&self) -> Result<Visit> {
        let hook = Hook::ALL.into_iter().find(|hook| hook.name() == self.hook);
        ensure!(
            INTERFACES.contains(&self.interface),
            "no interface {}",
            self.interface
        );
        Ok(Visit {
            hook: hook.with_context(|| format!("no hook {:?}", self.hook))?,
            frame: bytes(&self.frame.concat())?,
            ifindex: self.interface,
            device_mac: NIC_MAC,
            gso_size: self.segment_size,
            vlan: None,
            handed_over: 0,
        })
    }
}

/// Bytes from two digits each; spaces do not count.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    ensure!(
        digits.len().is_multiple_of(2),
        "an odd number of hexadecimal digits"
    );
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            u8::from_str_radix(pair, 16).with_context(|| format!("{pair:?} is not hexadecimal"))
        })
        .collect()
}
