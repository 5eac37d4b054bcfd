//! Where headers stand in a frame, as far as it can be told, and making them fit each other again.

use overlay_common::packet::{ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, UDP};

/// VXLAN in VXLAN in VXLAN is as deep as we look.
const DEEPEST: usize = 3;
const UDP_LEN: usize = 8;
const VXLAN_LEN: usize = 8;

/// An Ethernet frame in a frame: offsets from the start of the outermost one.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Of its Ethernet header.
    pub ethernet: usize,
    /// Of the last Ethernet type, behind the tags.
    pub ethertype: usize,
    /// Of the IP header, if there is one of at least 20 bytes.
    pub ip: Option<usize>,
    /// Of what is behind the IP header.
    pub transport: Option<usize>,
    /// Of the VXLAN header, if UDP goes to its port.
    pub vxlan: Option<usize>,
}

/// The frames in a frame, the outermost first.
pub fn layers(frame: &[u8], port: u16) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut start = 0;
    while layers.len() < DEEPEST {
        let Some(layer) = layer(frame, start, port) else {
            break;
        };
        layers.push(layer);
        let Some(vxlan) = layer.vxlan else { break };
        start = vxlan + VXLAN_LEN;
    }
    layers
}

fn layer(frame: &[u8], ethernet: usize, port: u16) -> Option<Layer> {
    let mut ethertype = ethernet + 12;
    while matches!(
        word(frame, ethertype)?,
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN
    ) {
        ethertype += 4;
    }
    let mut layer = Layer {
        ethernet,
        ethertype,
        ip: None,
        transport: None,
        vxlan: None,
    };
    let ip = ethertype + 2;
    if word(frame, ethertype) != Some(0x0800) || frame.len() < ip + 20 {
        return Some(layer);
    }
    layer.ip = Some(ip);
    let transport = ip + usize::from(frame[ip] & 0x0f).max(5) * 4;
    if transport + 4 > frame.len() {
        return Some(layer);
    }
    layer.transport = Some(transport);
    let vxlan = transport + UDP_LEN;
    if frame[ip + 9] == UDP
        && word(frame, transport + 2) == Some(port)
        && frame.len() >= vxlan + VXLAN_LEN
    {
        layer.vxlan = Some(vxlan);
    }
    Some(layer)
}

/// Makes lengths and header checksums fit, as if nobody had touched them.
pub fn mend(frame: &mut [u8], port: u16) {
    let end = frame.len();
    for layer in layers(frame, port).into_iter().rev() {
        let Some(ip) = layer.ip else { continue };
        put(frame, ip + 2, (end - ip) as u16);
        if let Some(transport) = layer.transport
            && frame[ip + 9] == UDP
            && transport + UDP_LEN <= end
        {
            put(frame, transport + 4, (end - transport) as u16);
        }
        sign(frame, ip);
    }
}

/// Gives every IP packet in a frame the identification `id`, and takes the checksums of UDP around
/// VXLAN away. Header checksums stay as right or wrong as they were.
pub fn label(frame: &mut [u8], port: u16, id: u16) {
    for layer in layers(frame, port) {
        let Some(ip) = layer.ip else { continue };
        let before = word(frame, ip + 10);
        sign(frame, ip);
        let was_right = before == word(frame, ip + 10);
        put(frame, ip + 4, id);
        if was_right {
            sign(frame, ip);
        } else {
            put(frame, ip + 10, before.unwrap_or(0));
        }
        if let Some(vxlan) = layer.vxlan {
            put(frame, vxlan - 2, 0);
        }
    }
}

/// Makes the checksum of the IP header at `ip` fit.
pub fn sign(frame: &mut [u8], ip: usize) {
    let len = (usize::from(frame[ip] & 0x0f).max(5) * 4).min(frame.len() - ip);
    put(frame, ip + 10, 0);
    let sum: u32 = frame[ip..ip + len]
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    put(frame, ip + 10, !(sum as u16));
}

/// Two bytes in network order.
pub fn word(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Writes two bytes in network order, if there is room.
pub fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}
