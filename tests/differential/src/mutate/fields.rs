//! One field of one header changed, by what the field means.

use overlay_common::packet::{ETHERTYPE_ARP, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN};
use rand::RngExt as _;

use super::layout::{self, Layer};
use super::{Mutator, Pool};

impl Mutator {
    /// Changes a field of some layer, or a byte anywhere in the headers.
    pub(super) fn change_field(&mut self, frame: &mut [u8], pool: &Pool) {
        let layers = layout::layers(frame, pool.port);
        let Some(layer) = self.pick(&layers).copied() else {
            return self.change_byte(frame);
        };
        match self.below(16) {
            0..3 => self.change_mac(frame, &layer, pool),
            3 => self.change_ethertype(frame, &layer),
            4..8 => self.change_address(frame, &layer, pool),
            8..12 => self.change_ip(frame, &layer),
            12 | 13 => self.change_transport(frame, &layer, pool),
            14 => self.change_vxlan(frame, &layer, pool),
            _ => self.change_byte(frame),
        }
    }

    fn change_byte(&mut self, frame: &mut [u8]) {
        /// Nothing behind is looked at, but for nested headers with options.
        const HEADERS: usize = 150;
        if frame.is_empty() {
            return;
        }
        let at = self.below(HEADERS.min(frame.len()));
        let bit = self.below(8);
        let byte = match self.below(4) {
            0 => self.random.random(),
            1 => frame[at] ^ (1 << bit),
            2 => frame[at].wrapping_add(1),
            _ => self.one_of([0, 1, 0x7f, 0x80, 0xff]),
        };
        frame[at] = byte;
    }

    fn change_mac(&mut self, frame: &mut [u8], layer: &Layer, pool: &Pool) {
        let at = layer.ethernet + self.one_of([0, 0, 6]);
        let Some(field) = frame.get_mut(at..at + 6) else {
            return;
        };
        if self.chance(3, 4)
            && let Some(mac) = self.pick(&pool.macs)
        {
            field.copy_from_slice(mac);
        } else {
            field[self.below(6)] ^= 1 << self.below(8);
        }
    }

    fn change_ethertype(&mut self, frame: &mut [u8], layer: &Layer) {
        let random = self.random.random();
        let kinds = [
            0x0800,
            0x86dd,
            ETHERTYPE_ARP,
            ETHERTYPE_VLAN,
            ETHERTYPE_SERVICE_VLAN,
            random,
        ];
        layout::put(frame, layer.ethertype, self.one_of(kinds));
    }

    fn change_address(&mut self, frame: &mut [u8], layer: &Layer, pool: &Pool) {
        // Where there is no IP there may be ARP: its sender's address.
        let at = match layer.ip {
            Some(ip) => ip + self.one_of([12, 16]),
            None => layer.ethertype + 2 + 14,
        };
        let bit = self.below(32);
        let Some(field) = frame.get_mut(at..at + 4) else {
            return;
        };
        if let Some(address) = self.pick(&pool.addresses)
            && self.chance(7, 8)
        {
            field.copy_from_slice(address);
        }
        if self.chance(1, 4) {
            // Next to it, or on the other side of some mask.
            field[bit / 8] ^= 0x80 >> (bit % 8);
        }
    }

    fn change_ip(&mut self, frame: &mut [u8], layer: &Layer) {
        let Some(ip) = layer.ip else {
            return;
        };
        let random: u16 = self.random.random();
        match self.below(9) {
            0 => frame[ip] = self.one_of([0x45, 0x44, 0x46, 0x4f, 0x40, 0x55, 0x65, random as u8]),
            1 => frame[ip + 1] = self.one_of([0, 1, 2, 3, 0xb8 | random as u8 & 3, random as u8]),
            2 => self.change_length(frame, ip + 2),
            3 => layout::put(frame, ip + 4, self.one_of([0, 1, 0xffff, random])),
            // Don't fragment, more fragments, offsets, the reserved bit.
            4 => {
                let offset = random & 0x1fff;
                let kinds = [
                    0x4000,
                    0x2000,
                    1,
                    0x2001,
                    0x8000,
                    offset,
                    0x2000 | offset,
                    0x1fff,
                ];
                layout::put(frame, ip + 6, self.one_of(kinds));
            }
            5 => frame[ip + 8] = self.one_of([0, 1, 2, 3, 64, 255, random as u8]),
            6 => {
                let kinds = [1, 6, 17, 33, 132, 136, 4, 47, 0, 255, random as u8];
                frame[ip + 9] = self.one_of(kinds);
            }
            // Zero and all ones are the same sum.
            7 => layout::put(frame, ip + 10, self.one_of([0, 0xffff, random])),
            _ => {
                let sum = layout::word(frame, ip + 10).unwrap_or(0);
                layout::put(
                    frame,
                    ip + 10,
                    self.one_of([sum ^ 1, !sum, sum.swap_bytes()]),
                );
            }
        }
        // What is changed in a header may well have a right checksum.
        if self.chance(1, 2) {
            layout::sign(frame, ip);
        }
    }

    fn change_transport(&mut self, frame: &mut [u8], layer: &Layer, pool: &Pool) {
        let Some(at) = layer.transport else {
            return;
        };
        let random: u16 = self.random.random();
        match self.below(6) {
            0 => layout::put(frame, at, self.one_of([0, 80, 40000, pool.port, random])),
            1 => layout::put(
                frame,
                at + 2,
                self.one_of([0, 80, 40000, pool.port, pool.port ^ 1, random]),
            ),
            2 => self.change_length(frame, at + 4),
            3 => layout::put(frame, at + 6, self.one_of([0, 0xffff, random])),
            // ICMP's type, or the first byte of a port.
            4 => frame[at] = self.one_of([0, 3, 4, 5, 8, 11, 12, 13, 17, random as u8]),
            // TCP's header length.
            _ => {
                if let Some(byte) = frame.get_mut(at + 12) {
                    *byte = self.one_of([0x50, 0x80, 0xf0, 0, 0x40, random as u8]);
                }
            }
        }
    }

    fn change_vxlan(&mut self, frame: &mut [u8], layer: &Layer, pool: &Pool) {
        let Some(at) = layer.vxlan else {
            return;
        };
        match self.below(3) {
            0 => frame[at] = self.one_of([0, 8, 0x88, 0x0c, 0xff]),
            1 => {
                let byte = self.one_of([at, at + 1, at + 2, at + 3, at + 7]);
                frame[byte] ^= 1 << self.below(8);
            }
            _ => {
                let random = self.random.random::<u32>() & 0x00ff_ffff;
                let vnis = [
                    0,
                    1,
                    pool.vni,
                    pool.vni + 1,
                    pool.vni << 8,
                    0x00ff_ffff,
                    random,
                ];
                let [_, a, b, c] = self.one_of(vnis).to_be_bytes();
                frame[at + 4..at + 7].copy_from_slice(&[a, b, c]);
            }
        }
    }

    /// A length that lies.
    fn change_length(&mut self, frame: &mut [u8], at: usize) {
        let Some(length) = layout::word(frame, at) else {
            return;
        };
        let step = self.one_of([1, 2, 4, 8, 20, 50]);
        let random = self.random.random();
        let lies = [
            0,
            1,
            7,
            8,
            19,
            20,
            0xffff,
            0xffff - 50,
            length.wrapping_add(step),
            length.wrapping_sub(step),
            random,
        ];
        layout::put(frame, at, self.one_of(lies));
    }
}
