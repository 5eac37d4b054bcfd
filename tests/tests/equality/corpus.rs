//! Packets to send, and the expected behaviour of the fast path for each.

/// Marks a packet without an IP identification; the number of the probe follows.
pub const MAGIC: [u8; 2] = [0xfa, 0xce];
/// The IP identification of probe 0.
pub const FIRST_ID: u16 = 0x4000;

/// How far the fast path is expected to carry a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fast {
    /// Not at all: the kernel carries the packet.
    No,
    /// Over the wire, where the other node's kernel takes the packet.
    Half,
    /// The whole path.
    Whole,
}

/// One packet, or the fragments of one.
#[derive(Clone, Debug)]
pub struct Probe {
    pub name: String,
    pub frames: Vec<Vec<u8>>,
    pub fast: Fast,
}

/// Collects probes and numbers them.
#[derive(Default)]
pub struct Corpus {
    pub probes: Vec<Probe>,
}

impl Corpus {
    /// The identification of the next probe.
    pub fn id(&self) -> u16 {
        FIRST_ID + self.probes.len() as u16
    }

    /// The mark of the next probe.
    pub fn mark(&self) -> [u8; 4] {
        let [hi, lo] = (self.probes.len() as u16).to_be_bytes();
        [MAGIC[0], MAGIC[1], hi, lo]
    }

    pub fn push(&mut self, name: String, frames: Vec<Vec<u8>>, fast: Fast) {
        self.probes.push(Probe { name, frames, fast });
    }
}
