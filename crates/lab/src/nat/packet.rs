//! IPv4 and IPv6 packets: which flow they belong to, and other addresses written into them.
//!
//! Only what a laboratory needs: UDP, TCP and ICMP echo, no fragments, no extension headers. Everything else is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Header of IPv6. Bytes.
const V6_HEADER: usize = 40;
/// Shortest header of IPv4. Bytes.
const V4_HEADER: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// What a NAT keeps apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// User datagrams.
    Udp,
    /// Streams.
    Tcp,
    /// ICMP echo; the identifier takes the place of both ports.
    Echo,
}

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Above IP.
    pub protocol: Protocol,
    /// Of the sender.
    pub source: SocketAddr,
    /// Of the receiver.
    pub target: SocketAddr,
}

/// Where the parts of a packet begin.
#[derive(Debug, Clone, Copy)]
struct Layout {
    v6: bool,
    payload: usize,
    number: u8,
}

/// The address a packet is for, if it is one.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::V4(v4(packet, 16)?)),
        6 => Some(IpAddr::V6(v6(packet, 24)?)),
        _ => None,
    }
}

/// The flow of a packet. `None`: nothing that is translated.
#[must_use]
pub fn flow(packet: &[u8]) -> Option<Flow> {
    let layout = layout(packet)?;
    let (from, to) = if layout.v6 {
        (IpAddr::V6(v6(packet, 8)?), IpAddr::V6(v6(packet, 24)?))
    } else {
        (IpAddr::V4(v4(packet, 12)?), IpAddr::V4(v4(packet, 16)?))
    };
    let body = packet.get(layout.payload..)?;
    let (protocol, source, target) = match (layout.number, layout.v6) {
        (UDP, _) if body.len() >= 8 => (Protocol::Udp, word(body, 0), word(body, 2)),
        (TCP, _) if body.len() >= 20 => (Protocol::Tcp, word(body, 0), word(body, 2)),
        (ICMP, false) if body.len() >= 8 && matches!(body[0], 0 | 8) => echo(body),
        (ICMP_V6, true) if body.len() >= 8 && matches!(body[0], 128 | 129) => echo(body),
        _ => return None,
    };
    Some(Flow { protocol, source: SocketAddr::new(from, source), target: SocketAddr::new(to, target) })
}

/// Writes these ends into a packet of the same IP version, and its checksums anew. Says whether it could.
pub fn readdress(packet: &mut [u8], source: SocketAddr, target: SocketAddr) -> bool {
    let Some(layout) = layout(packet) else { return false };
    match (source.ip(), target.ip(), layout.v6) {
        (IpAddr::V4(from), IpAddr::V4(to), false) => {
            packet[12..16].copy_from_slice(&from.octets());
            packet[16..20].copy_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to), true) => {
            packet[8..24].copy_from_slice(&from.octets());
            packet[24..40].copy_from_slice(&to.octets());
        }
        _ => return false,
    }
    set_ports(&mut packet[layout.payload..], layout.number, source.port(), target.port());
    finish(packet);
    true
}

/// One router further. `false`: the packet has been through too many and must go.
pub fn hop(packet: &mut [u8]) -> bool {
    let at = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= V4_HEADER => 8,
        Some(6) if packet.len() >= V6_HEADER => 7,
        _ => return false,
    };
    if packet[at] <= 1 {
        return false;
    }
    packet[at] -= 1;
    if at == 8 {
        header_checksum(packet);
    }
    true
}

/// The same message as a packet of the other IP version, with these ends (RFC 7915). `None`: it cannot be told so.
#[must_use]
pub fn translate(packet: &[u8], source: SocketAddr, target: SocketAddr) -> Option<Vec<u8>> {
    let old = layout(packet)?;
    let body = packet.get(old.payload..)?;
    let hops = packet[if old.v6 { 7 } else { 8 }];
    let length = u16::try_from(body.len()).ok()?;
    let mut new = match (source.ip(), target.ip(), old.v6) {
        (IpAddr::V4(from), IpAddr::V4(to), true) => {
            let number = if old.number == ICMP_V6 { ICMP } else { old.number };
            // Don't fragment: what was in IPv6 was not to be fragmented on the way.
            let mut new = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, hops, number, 0, 0];
            new[2..4].copy_from_slice(&length.checked_add(V4_HEADER as u16)?.to_be_bytes());
            new.extend_from_slice(&from.octets());
            new.extend_from_slice(&to.octets());
            new
        }
        (IpAddr::V6(from), IpAddr::V6(to), false) => {
            let number = if old.number == ICMP { ICMP_V6 } else { old.number };
            let mut new = vec![0x60, 0, 0, 0, 0, 0, number, hops];
            new[4..6].copy_from_slice(&length.to_be_bytes());
            new.extend_from_slice(&from.octets());
            new.extend_from_slice(&to.octets());
            new
        }
        _ => return None,
    };
    let at = new.len();
    new.extend_from_slice(body);
    let number = if old.v6 { new[9] } else { new[6] };
    if let Some(kind) = new.get_mut(at).filter(|_| matches!(number, ICMP | ICMP_V6)) {
        *kind = match *kind {
            128 => 8,
            129 => 0,
            8 => 128,
            0 => 129,
            _ => return None,
        };
    }
    // IPv6 knows no datagram without a checksum; `finish` makes one where there was none.
    set_ports(&mut new[at..], number, source.port(), target.port());
    finish(&mut new);
    Some(new)
}

fn echo(body: &[u8]) -> (Protocol, u16, u16) {
    (Protocol::Echo, word(body, 4), word(body, 4))
}

fn layout(packet: &[u8]) -> Option<Layout> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let whole = header >= V4_HEADER && packet.len() >= header && word(packet, 6) & 0x3fff == 0;
            whole.then(|| Layout { v6: false, payload: header, number: packet[9] })
        }
        6 => (packet.len() >= V6_HEADER).then(|| Layout { v6: true, payload: V6_HEADER, number: packet[6] }),
        _ => None,
    }
}

fn set_ports(body: &mut [u8], number: u8, source: u16, target: u16) {
    match number {
        UDP | TCP if body.len() >= 4 => {
            body[0..2].copy_from_slice(&source.to_be_bytes());
            body[2..4].copy_from_slice(&target.to_be_bytes());
        }
        // A request carries the asker's identifier in its source, an answer in its target.
        ICMP | ICMP_V6 if body.len() >= 8 => {
            let asks = matches!(body[0], 8 | 128);
            body[4..6].copy_from_slice(&if asks { source } else { target }.to_be_bytes());
        }
        _ => {}
    }
}

/// Writes all checksums of a packet anew.
fn finish(packet: &mut [u8]) {
    let Some(layout) = layout(packet) else { return };
    if !layout.v6 {
        header_checksum(packet);
    }
    let length = packet.len() - layout.payload;
    let mut sum = if layout.v6 {
        add(&packet[8..40], 0)
    } else if layout.number == ICMP {
        0
    } else {
        add(&packet[12..20], 0)
    };
    if layout.number != ICMP {
        sum += length as u32 + u32::from(layout.number);
    }
    let at = match layout.number {
        UDP if length >= 8 => 6,
        TCP if length >= 20 => 16,
        ICMP | ICMP_V6 if length >= 8 => 2,
        _ => return,
    };
    let body = &mut packet[layout.payload..];
    body[at..at + 2].fill(0);
    let checksum = match fold(add(body, sum)) {
        // Zero would mean that there is none.
        0 if layout.number == UDP => 0xffff,
        checksum => checksum,
    };
    body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn header_checksum(packet: &mut [u8]) {
    let header = (usize::from(packet[0] & 15) * 4).min(packet.len());
    packet[10..12].fill(0);
    let checksum = fold(add(&packet[..header], 0));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The Internet checksum (RFC 1071), not yet folded.
fn add(bytes: &[u8], sum: u32) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    pairs.fold(sum, u32::wrapping_add)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A datagram of a kernel, as one would look.
    pub(crate) fn datagram(source: &str, target: &str, payload: &[u8]) -> Vec<u8> {
        let (source, target): (SocketAddr, SocketAddr) =
            (source.parse().expect("source"), target.parse().expect("target"));
        let length = 8 + payload.len() as u16;
        let mut packet = match source.ip() {
            IpAddr::V4(_) => vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            IpAddr::V6(_) => [&[0x60, 0, 0, 0, 0, 0, UDP, 64][..], &[0; 32]].concat(),
        };
        if source.is_ipv4() {
            packet[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&length.to_be_bytes());
        }
        packet.extend_from_slice(&[0, 0, 0, 0]);
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(payload);
        assert!(readdress(&mut packet, source, target));
        packet
    }

    /// Whether all checksums are those that a receiver would find.
    fn is_sound(packet: &[u8]) -> bool {
        let layout = layout(packet).expect("layout");
        let body = &packet[layout.payload..];
        let pseudo = match (layout.v6, layout.number) {
            (true, _) => add(&packet[8..40], u32::from(layout.number) + body.len() as u32),
            (false, ICMP) => 0,
            (false, _) => add(&packet[12..20], u32::from(layout.number) + body.len() as u32),
        };
        (layout.v6 || fold(add(&packet[..layout.payload], 0)) == 0) && fold(add(body, pseudo)) == 0
    }

    #[test]
    fn a_known_datagram_has_its_known_checksum() {
        // From a capture: DNS query by dig, 192.0.2.1:40000 to 192.0.2.2:53, "hi".
        let packet = datagram("192.0.2.1:40000", "192.0.2.2:53", b"hi");
        // 0xc000+0x0201+0xc000+0x0202+17+10+40000+53+10+0x6869, folded and inverted by hand.
        let sum: u32 = 0xc000 + 0x0201 + 0xc000 + 0x0202 + 17 + 10 + 40_000 + 53 + 10 + 0x6869;
        assert_eq!(word(&packet, 26), !((sum & 0xffff) as u16 + (sum >> 16) as u16));
        assert!(is_sound(&packet));
    }

    #[test]
    fn other_ends_leave_a_sound_packet_and_the_payload() {
        let mut packet = datagram("10.1.0.2:4000", "203.0.113.1:9001", b"payload");
        assert!(readdress(
            &mut packet,
            "198.51.100.1:7".parse().expect("addr"),
            "203.0.113.2:8".parse().expect("addr")
        ));
        let seen = flow(&packet).expect("flow");
        assert_eq!(
            (seen.source.to_string(), seen.target.to_string()),
            ("198.51.100.1:7".into(), "203.0.113.2:8".into())
        );
        assert!(is_sound(&packet) && packet.ends_with(b"payload"));
        assert!(!readdress(&mut packet, "[::1]:7".parse().expect("addr"), "[::1]:8".parse().expect("addr")));
    }

    #[test]
    fn there_and_back_through_the_other_version() {
        let packet = datagram("[2001:db8::2]:4000", "[64:ff9b::cb00:7101]:9001", b"payload");
        let out = translate(
            &packet,
            "198.51.100.1:7".parse().expect("v4"),
            "203.0.113.1:9001".parse().expect("v4"),
        );
        let out = out.expect("IPv4");
        assert!(is_sound(&out) && out.ends_with(b"payload"));
        assert_eq!(flow(&out).expect("flow").target.to_string(), "203.0.113.1:9001");
        let back = translate(
            &out,
            "[64:ff9b::cb00:7101]:9001".parse().expect("v6"),
            "[2001:db8::2]:4000".parse().expect("v6"),
        );
        let back = back.expect("IPv6");
        assert!(is_sound(&back) && back.len() == packet.len());
        assert!(translate(&packet, "[::1]:1".parse().expect("v6"), "[::1]:1".parse().expect("v6")).is_none());
    }

    #[test]
    fn echoes_are_translated_with_their_identifier() {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, ICMP, 0, 0, 10, 0, 0, 2, 203, 0, 113, 1];
        packet.extend_from_slice(&[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
        finish(&mut packet);
        assert_eq!(flow(&packet).expect("echo").source.port(), 0x1234);
        let out =
            translate(&packet, "[::1]:77".parse().expect("v6"), "[::2]:77".parse().expect("v6")).expect("v6");
        assert!(is_sound(&out));
        assert_eq!((out[40], word(&out, 44)), (128, 77));
    }

    #[test]
    fn hops_run_out() {
        for mut packet in [datagram("10.0.0.1:1", "10.0.0.2:2", b""), datagram("[::1]:1", "[::2]:2", b"")] {
            let mut hops = 0;
            while hop(&mut packet) {
                hops += 1;
                assert!(is_sound(&packet));
            }
            assert_eq!(hops, 63);
        }
        assert!(!hop(&mut []));
    }

    #[test]
    fn fragments_and_strangers_have_no_flow() {
        let mut fragment = datagram("10.0.0.1:1", "10.0.0.2:2", b"x");
        fragment[6] = 0x20;
        assert!(flow(&fragment).is_none());
        let mut igmp = datagram("10.0.0.1:1", "10.0.0.2:2", b"x");
        igmp[9] = 2;
        assert!(flow(&igmp).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()]) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            let ends: [SocketAddr; 4] = ["1.2.3.4:5", "6.7.8.9:10", "[::1]:5", "[::2]:10"].map(|text| text.parse().expect("addr"));
            let _ = (flow(&bytes), destination(&bytes), hop(&mut bytes));
            for (source, target) in [(ends[0], ends[1]), (ends[2], ends[3]), (ends[0], ends[3])] {
                let _ = (translate(&bytes, source, target), readdress(&mut bytes, source, target));
            }
        }
    }
}
