//! Headers added, taken away and put into each other.

use rand::RngExt as _;

use super::layout::{self, Layer};
use super::{LONGEST, Mutator, Pool, SHORTEST};
use overlay_cases::world::{NIC_MAC, PEER_NIC_MAC};

impl Mutator {
    /// Gives a frame another structure.
    pub(super) fn reshape(&mut self, frame: &mut Vec<u8>, pool: &Pool) {
        let layers = layout::layers(frame, pool.port);
        let Some(layer) = self.pick(&layers).copied() else {
            return;
        };
        match self.below(10) {
            0 => self.add_tag(frame, &layer),
            1 => {
                // The tag behind the addresses, if there is one.
                if layer.ethertype >= layer.ethernet + 16 {
                    frame.drain(layer.ethernet + 12..layer.ethernet + 16);
                }
            }
            2 | 3 => self.add_options(frame, &layer),
            4 => self.wrap(frame, pool),
            5 => {
                // What is in VXLAN comes out.
                if let Some(vxlan) = layer.vxlan {
                    frame.drain(layer.ethernet..vxlan + 8);
                }
            }
            6 | 7 => self.quote(frame, &layer, pool),
            _ => self.resize(frame, &layer),
        }
    }

    fn add_tag(&mut self, frame: &mut Vec<u8>, layer: &Layer) {
        let [hi, lo] = self.one_of([0x8100_u16, 0x88a8]).to_be_bytes();
        let random: u16 = self.random.random();
        let [tag_hi, tag_lo] = self.one_of([0, 5, 0x2000, 0xe000, random]).to_be_bytes();
        let at = layer.ethernet + 12;
        frame.splice(at..at, [hi, lo, tag_hi, tag_lo]);
    }

    fn add_options(&mut self, frame: &mut Vec<u8>, layer: &Layer) {
        let (Some(ip), Some(at)) = (layer.ip, layer.transport) else {
            return;
        };
        let words = self.one_of([1, 2, 5, 10]);
        let present = usize::from(frame[ip] & 0x0f).max(5);
        let words = words.min(15 - present);
        let fill: u8 = self.one_of([1, 0, 0x44, 0x83]);
        frame.splice(at..at, vec![fill; words * 4]);
        frame[ip] = 0x40 | (present + words) as u8;
    }

    /// Puts the whole frame into VXLAN, which may be in VXLAN already.
    fn wrap(&mut self, frame: &mut Vec<u8>, pool: &Pool) {
        let (Some(from), Some(to)) = (
            self.pick(&pool.addresses).copied(),
            self.pick(&pool.addresses).copied(),
        ) else {
            return;
        };
        let [port_hi, port_lo] = pool.port.to_be_bytes();
        let [_, a, b, c] = pool.vni.to_be_bytes();
        let ecn = self.one_of([0, 0, 1, 2, 3]);
        let head: [&[u8]; 9] = [
            &NIC_MAC,
            &PEER_NIC_MAC,
            &[8, 0],
            &[0x45, ecn, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0],
            &from,
            &to,
            &[0xc0, 0, port_hi, port_lo, 0, 0, 0, 0],
            &[8, 0, 0, 0],
            &[a, b, c, 0],
        ];
        frame.splice(..0, head.concat());
    }

    /// Makes the payload an ICMP error about a packet.
    fn quote(&mut self, frame: &mut Vec<u8>, layer: &Layer, pool: &Pool) {
        let (Some(ip), Some(at)) = (layer.ip, layer.transport) else {
            return;
        };
        // About one that went the other way, as it should be, or any other.
        let mut quoted = frame[ip..ip + 20].to_vec();
        let (source, destination) = quoted[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        quoted[0] = 0x45;
        quoted[9] = self.one_of([6, 17, 1, 132, 47]);
        if self.chance(1, 4)
            && let Some(address) = self.pick(&pool.addresses)
        {
            let end = self.one_of([12, 16]);
            quoted[end..end + 4].copy_from_slice(address);
        }
        if self.chance(1, 8) {
            let bits = self.one_of([0x2000, 0x0001, 0x4000]);
            layout::put(&mut quoted, 6, bits);
        }
        let ports: [u8; 8] =
            self.one_of([[0, 80, 0x9c, 0x40, 0, 1, 2, 3], [8, 0, 0, 0, 0, 7, 0, 1]]);
        let kind = self.one_of([3, 3, 3, 4, 5, 11, 12]);
        frame.truncate(at);
        frame.extend([kind, self.one_of([0, 3, 4]), 0, 0, 0, 0, 0, 0]);
        frame.extend(quoted);
        frame.extend(ports);
        if self.chance(1, 8) {
            let cut = self.below(36);
            frame.truncate(frame.len() - cut);
        }
        frame[ip + 9] = 1;
    }

    /// Another length of the payload, often around what a path takes.
    fn resize(&mut self, frame: &mut Vec<u8>, layer: &Layer) {
        let Some(ip) = layer.ip else {
            return;
        };
        let length = match self.below(3) {
            0 => self.one_of([28, 40, 1280, 1400, 1450, 1500, 3000]),
            1 => self.random.random_range(20..1600),
            _ => self.random.random_range(1446..1454),
        };
        let offset = self.below(3);
        frame.resize((ip + length + offset).min(LONGEST), 0x5a);
    }

    /// Cuts a frame off, often between two headers, or puts something behind it.
    pub(super) fn cut_or_pad(&mut self, frame: &mut Vec<u8>) {
        const ENDS: [usize; 12] = [33, 34, 37, 38, 41, 42, 49, 50, 63, 64, 83, 84];
        let length = match self.below(4) {
            0 => self.one_of(ENDS),
            1 => self
                .random
                .random_range(SHORTEST..=frame.len().max(SHORTEST)),
            2 => frame.len() + self.below(64),
            _ => frame.len().saturating_sub(self.below(8)),
        };
        frame.resize(length, 0);
    }
}
