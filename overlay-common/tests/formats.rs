//! Wire formats, against vectors and parsers that share no code with the data path.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement,
    UdpHeader,
};
use overlay_common::decide::mark;
use overlay_common::packet::{Frame, Packet as _, segment_header_len};
use overlay_common::schema::FlowKey;
use overlay_common::transport::Transport;
use overlay_common::vxlan;
use overlay_common::vxlan::Tunnel;
use overlay_common::{Family as _, V4, V6};

/// `udp_flow_src_port()` of include/net/udp.h, worked out with numbers of any size.
#[test]
fn source_ports_are_the_kernels() {
    for (hash, wide, narrow) in [
        (0, 1024, 32768),
        (1, 1024, 32768),
        (0x1234_5678, 18234, 40299),
        (0x8000_0000, 33279, 46883),
        (0xdead_beef, 25281, 43383),
        (0xffff_ffff, 1024, 32768),
    ] {
        assert_eq!(vxlan::source_port(hash, 1024, 64511), wide, "{hash:#x}");
        assert_eq!(vxlan::source_port(hash, 32768, 28231), narrow, "{hash:#x}");
    }
}

/// While an agent brings programs of its own build, one program's marks are compared by another's.
/// Worked out with numbers of any size, on a machine that stores the lower byte first.
#[test]
fn marks_are_frozen() {
    let (pod, peer) = ([10, 244, 1, 2], [10, 244, 2, 5]);
    for (source, destination, first, protocol, wanted) in [
        (pod, peer, [0x9c, 0x40, 0, 80], IpNumber::TCP, 0xbafa),
        (pod, peer, [0x9c, 0x41, 0, 80], IpNumber::TCP, 0xfe1d),
        (pod, peer, [0x9c, 0x40, 0, 80], IpNumber::UDP, 0xb691),
        (pod, peer, [0, 0, 0, 0], IpNumber::ICMP, 0xd1a0),
        (
            [192, 168, 255, 254],
            [172, 16, 0, 1],
            [0xff; 4],
            IpNumber::UDP,
            0x8528,
        ),
    ] {
        let ip = Ipv4Header::new(4, 64, protocol, source, destination).expect("a short payload");
        let packet = [&ip.to_bytes()[..], &first].concat();
        let mark = mark::<V4, _>(&Frame::new(&packet), 0);
        assert_eq!(mark, wanted, "{source:?} {destination:?} {first:?}");
    }
}

#[test]
fn marks_over_ipv6_are_frozen() {
    for (source, destination, first, protocol, wanted) in [
        (
            "fd00:10:244:1::2",
            "fd00:10:244:2::5",
            [0x9c, 0x40, 0, 80],
            IpNumber::TCP,
            0xb220,
        ),
        (
            "fd00:10:244:1::2",
            "fd00:10:244:2::5",
            [0x9c, 0x40, 0, 80],
            IpNumber::UDP,
            0x8f80,
        ),
        (
            "2001:db8:1234:5678:9abc:def0:1357:9bdf",
            "fe80::1",
            [0xff; 4],
            IpNumber::UDP,
            0xd84e,
        ),
    ] {
        let [source, destination] = [source, destination].map(|text: &str| {
            let address: Ipv6Addr = text.parse().expect("an address");
            address.octets()
        });
        let ip = Ipv6Header {
            payload_length: 4,
            next_header: protocol,
            hop_limit: 64,
            source,
            destination,
            ..Ipv6Header::default()
        };
        let packet = [&ip.to_bytes()[..], &first].concat();
        let mark = mark::<V6, _>(&Frame::new(&packet), 0);
        assert_eq!(mark, wanted, "{source:?} {destination:?} {first:?}");
    }
}

#[test]
fn a_prepared_header_reads_back() {
    let tunnel = Tunnel {
        source: [192, 168, 0, 1],
        destination: [192, 168, 0, 2],
        port: 8472,
        vni: 0x12_3456,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        outer_macs: ([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1]),
    };
    let header = V4::prepare(&tunnel, V4::ETHERTYPE);
    let (ethernet, rest) = Ethernet2Header::from_slice(&header).expect("Ethernet");
    let outer = Ethernet2Header {
        destination: tunnel.outer_macs.0,
        source: tunnel.outer_macs.1,
        ether_type: EtherType::IPV4,
    };
    assert_eq!(ethernet, outer);
    let (ip, rest) = Ipv4Header::from_slice(rest).expect("IPv4");
    assert_eq!(
        (ip.source, ip.destination),
        (tunnel.source, tunnel.destination)
    );
    assert_eq!((ip.time_to_live, ip.protocol), (64, IpNumber::UDP));
    assert!(!ip.dont_fragment && !ip.is_fragmenting_payload());
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let (udp, rest) = UdpHeader::from_slice(rest).expect("UDP");
    assert_eq!((udp.destination_port, udp.checksum), (tunnel.port, 0));
    let (vxlan, rest) = rest.split_at(8);
    assert_eq!(vxlan, [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    let (ethernet, rest) = Ethernet2Header::from_slice(rest).expect("Ethernet");
    let inner = Ethernet2Header {
        destination: tunnel.destination_mac,
        source: tunnel.source_mac,
        ether_type: EtherType::IPV4,
    };
    assert_eq!((ethernet, rest), (inner, &[][..]));
}

/// Of the protocols of which the kernel knows ports; see `skb_flow_dissector` and `nf_nat`.
#[test]
fn ports_are_read_of_protocols_that_have_some() {
    let ports = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 0];
    for protocol in 0..=u8::MAX {
        let number = IpNumber(protocol);
        if number == IpNumber::ICMP {
            continue;
        }
        let (source, destination) = match number {
            IpNumber::TCP
            | IpNumber::UDP
            | IpNumber::DCCP
            | IpNumber::SCTP
            | IpNumber::UDP_LITE => (40000, 8080),
            _ => (0, 0),
        };
        let wanted = Transport::Ports {
            source,
            destination,
        };
        assert_eq!(
            Transport::parse::<V4, _>(&Frame::new(&ports), 0, protocol),
            wanted,
            "{number:?}"
        );
    }
}

#[test]
fn headers_that_every_segment_repeats_are_counted() {
    let mut tcp = TcpHeader::new(40000, 8080, 1, 1024);
    for options in [&[][..], &[TcpOptionElement::Timestamp(1, 2)]] {
        tcp.set_options(options).expect("room for options");
        let bytes = [&[0; 4][..], &tcp.to_bytes()].concat();
        for ip in [20, 24] {
            assert_eq!(
                segment_header_len(&Frame::new(&bytes), 4, ip, IpNumber::TCP.0),
                Some(ip + tcp.header_len() as u32)
            );
        }
    }
    assert_eq!(tcp.header_len(), 32);
    let nothing = Frame::new(&[]);
    for (protocol, wanted) in [
        (IpNumber::UDP, Some(20 + UdpHeader::LEN as u32)),
        (IpNumber::TCP, None),
        (IpNumber::SCTP, None),
        (IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, None),
    ] {
        let found = segment_header_len(&nothing, 0, 20, protocol.0);
        assert_eq!(found, wanted, "{protocol:?}");
    }
}

#[test]
fn addresses_are_in_the_order_of_their_numbers() {
    let addresses = [
        [0, 0, 0, 0],
        [10, 244, 1, 2],
        [10, 244, 2, 1],
        [255, 0, 0, 0],
    ];
    for address in addresses {
        assert_eq!(V4::number(address), Ipv4Addr::from(address).to_bits());
    }
    for pair in addresses.windows(2) {
        let key = FlowKey::<V4>::new((pair[1], 1), (pair[0], 2), 6);
        assert_eq!((key.low, key.low_port), (pair[0], 2));
        assert_eq!((key.high, key.high_port), (pair[1], 1));
    }
}

#[test]
fn addresses_are_compared_in_every_byte() {
    let v6: [u8; 16] = std::array::from_fn(|place| place as u8 + 1);
    assert!(V6::same(v6, v6));
    for place in 0..v6.len() {
        let mut other = v6;
        other[place] ^= 0x80;
        assert!(!V6::same(v6, other), "byte {place}");
        // Two differences do not make up for each other.
        for second in place + 1..v6.len() {
            let mut other = other;
            other[second] ^= 0x80;
            assert!(!V6::same(v6, other), "bytes {place} and {second}");
        }
    }
    let v4 = [10, 244, 1, 2];
    assert!(V4::same(v4, v4));
    for place in 0..v4.len() {
        let mut other = v4;
        other[place] ^= 0x80;
        assert!(!V4::same(v4, other), "byte {place}");
    }
}

/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4` and `_IPV6` of include/uapi/linux/bpf.h.
#[test]
fn encapsulation_is_told_to_the_kernel_in_its_words() {
    assert_eq!((V4::ENCAP_L3, V6::ENCAP_L3), (2, 4));
}

#[test]
fn the_identification_is_the_headers() {
    let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 244, 1, 2], [10, 244, 2, 5])
        .expect("a short payload");
    ip.identification = 0x1234;
    let header: [u32; 5] = Frame::new(&ip.to_bytes()).load(0).expect("20 bytes");
    assert_eq!(V4::identification(&header), 0x1234);
}

/// RFC 8200, section 4.5: only a fragment's header has one.
#[test]
fn ipv6_has_no_identification() {
    assert_eq!(V6::identification(&[u32::MAX; 10]), 0);
}
