//! From a captured packet to the UDP datagram in it: link layer, IPv4/IPv6, UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// IPv6 extension headers that are walked.
const MAX_EXTENSIONS: usize = 8;

/// VLAN tags that are walked.
const MAX_TAGS: usize = 3;

const PROTOCOL_UDP: u8 = 17;

/// A UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Udp<'a> {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// What was captured of the payload.
    pub(super) payload: &'a [u8],
    /// Length of the payload as sent; larger than captured where the capture or a fragment cut it.
    pub(super) sent_len: usize,
}

/// What a captured packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// UDP, or the first fragment of it.
    Udp(Udp<'a>),
    /// A later IP fragment.
    Fragment,
    /// Something else, or damaged.
    Other,
    /// A link layer that is not known here.
    UnknownLink,
}

/// Finds the UDP datagram in a packet of this LINKTYPE_.
pub(super) fn parse(link: u32, data: &[u8]) -> Content<'_> {
    let ip = match link {
        // NULL and LOOP: 4 bytes of address family. IP itself says its version.
        0 | 108 => data.get(4..),
        1 => ethernet(data),
        12 | 14 | 101 | 228 | 229 => Some(data),
        // Linux cooked: protocol at 14 of 16, or at 0 of 20.
        113 => cooked(data, 14, 16),
        276 => cooked(data, 0, 20),
        _ => return Content::UnknownLink,
    };
    ip.and_then(parse_ip).unwrap_or(Content::Other)
}

fn ethernet(data: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    for _ in 0..=MAX_TAGS {
        match half(data, at)? {
            0x8100 | 0x88A8 => at += 4,
            0x0800 | 0x86DD => return data.get(at + 2..),
            _ => return None,
        }
    }
    None
}

fn cooked(data: &[u8], protocol_at: usize, header_len: usize) -> Option<&[u8]> {
    match half(data, protocol_at)? {
        0x0800 | 0x86DD => data.get(header_len..),
        _ => None,
    }
}

fn parse_ip(data: &[u8]) -> Option<Content<'_>> {
    match data.first()? >> 4 {
        4 => parse_v4(data),
        6 => parse_v6(data),
        _ => None,
    }
}

fn parse_v4(data: &[u8]) -> Option<Content<'_>> {
    let header_len = usize::from(data.first()? & 0x0F) * 4;
    let total = usize::from(half(data, 2)?);
    if header_len < 20 || *data.get(9)? != PROTOCOL_UDP {
        return None;
    }
    if half(data, 6)? & 0x1FFF != 0 {
        return Some(Content::Fragment);
    }
    // Total length 0: filled in by the network card after the capture.
    let end = if total == 0 { data.len() } else { total.min(data.len()) };
    let ip = |at: usize| data.get(at..)?.first_chunk::<4>().map(|ip| IpAddr::from(Ipv4Addr::from(*ip)));
    parse_udp(ip(12)?, ip(16)?, data.get(header_len..end)?)
}

fn parse_v6(data: &[u8]) -> Option<Content<'_>> {
    let ip = |at: usize| data.get(at..)?.first_chunk::<16>().map(|ip| IpAddr::from(Ipv6Addr::from(*ip)));
    let (source, destination) = (ip(8)?, ip(24)?);
    let mut next = *data.get(6)?;
    let mut at = 40;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            PROTOCOL_UDP => return parse_udp(source, destination, data.get(at..)?),
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => {
                next = *data.get(at)?;
                at += (usize::from(*data.get(at + 1)?) + 1) * 8;
            }
            44 => {
                if half(data, at + 2)? & 0xFFF8 != 0 {
                    return Some(Content::Fragment);
                }
                next = *data.get(at)?;
                at += 8;
            }
            _ => return None,
        }
    }
    None
}

fn parse_udp(source: IpAddr, destination: IpAddr, data: &[u8]) -> Option<Content<'_>> {
    let length = usize::from(half(data, 4)?);
    let body = data.get(8..)?;
    // Length 0: segmentation offload on loopback, the payload is all there is.
    let sent_len = if length == 0 { body.len() } else { length.checked_sub(8)? };
    Some(Content::Udp(Udp {
        source: SocketAddr::new(source, half(data, 0)?),
        destination: SocketAddr::new(destination, half(data, 2)?),
        payload: body.get(..sent_len).unwrap_or(body),
        sent_len,
    }))
}

fn half(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut out = [1000u16.to_be_bytes(), 2000u16.to_be_bytes()].concat();
        out.extend((payload.len() as u16 + 8).to_be_bytes());
        out.extend([0, 0]);
        out.extend(payload);
        out
    }

    /// An IPv4 packet from 10.0.0.1:1000 to 10.0.0.2:2000.
    pub(in crate::decode) fn v4(payload: &[u8]) -> Vec<u8> {
        let udp = udp(payload);
        let mut out = vec![0x45, 0];
        out.extend((udp.len() as u16 + 20).to_be_bytes());
        out.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        out.extend(udp);
        out
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let udp = udp(payload);
        let mut out = vec![0x60, 0, 0, 0];
        out.extend((udp.len() as u16 + 8).to_be_bytes());
        // Hop-by-hop options in front.
        out.extend([0, 64]);
        out.extend(Ipv6Addr::LOCALHOST.octets());
        out.extend(Ipv6Addr::LOCALHOST.octets());
        out.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        out.extend(udp);
        out
    }

    fn payload(link: u32, data: &[u8]) -> Option<Vec<u8>> {
        match parse(link, data) {
            Content::Udp(udp) => {
                assert_eq!((udp.source.port(), udp.destination.port()), (1000, 2000));
                assert_eq!(udp.sent_len, udp.payload.len());
                Some(udp.payload.to_vec())
            }
            _ => None,
        }
    }

    #[test]
    fn all_link_layers() {
        for ip in [v4(b"hello"), v6(b"hello")] {
            let ether_type: [u8; 2] = if ip[0] == 0x45 { [8, 0] } else { [0x86, 0xDD] };
            let with = |head: &[u8]| [head, &ip].concat();
            let tagged = [&[0; 12][..], &[0x81, 0, 0, 5], &ether_type].concat();
            let cases = [
                (1, with(&[&[0; 12][..], &ether_type].concat())),
                (1, with(&tagged)),
                (0, with(&[2, 0, 0, 0])),
                (108, with(&[0, 0, 0, 2])),
                (101, ip.clone()),
                (113, with(&[&[0; 14][..], &ether_type].concat())),
                (276, with(&[&ether_type[..], &[0; 18]].concat())),
            ];
            for (link, data) in cases {
                assert_eq!(payload(link, &data).as_deref(), Some(&b"hello"[..]), "{link}");
            }
        }
        assert_eq!(parse(147, &v4(b"x")), Content::UnknownLink);
    }

    #[test]
    fn fragments_and_padding() {
        let mut later = v4(b"hello");
        later[7] = 1;
        assert_eq!(parse(101, &later), Content::Fragment);
        let mut padded = v4(b"hi");
        padded.extend([0; 20]);
        assert_eq!(payload(101, &padded).as_deref(), Some(&b"hi"[..]));
        let cut = v4(b"hello");
        match parse(101, &cut[..cut.len() - 2]) {
            Content::Udp(udp) => assert_eq!((udp.payload.len(), udp.sent_len), (3, 5)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(link in 0..300u32, data in proptest::collection::vec(any::<u8>(), 0..120)) {
            parse(link, &data);
        }

        #[test]
        fn damaged_packets_are_answered(at in 0..60usize, value: u8, cut in 0..60usize) {
            for mut data in [v4(b"hello world"), v6(b"hello world")] {
                let at = at % data.len();
                data[at] = value;
                data.truncate(cut);
                parse(101, &data);
            }
        }
    }
}
