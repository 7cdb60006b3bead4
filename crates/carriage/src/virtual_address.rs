//! The addresses under which the beacon knows links.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// `fd50:696c:6f74::/48`, a prefix of RFC 4193 that nobody routes.
const PREFIX: [u8; 6] = [0xfd, 0x50, 0x69, 0x6c, 0x6f, 0x74];

/// Whether an address stands for a link. Nothing may be sent there by UDP, and no other node be told of it.
pub fn is_virtual(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.octets().starts_with(&PREFIX))
}

/// The address of a link: the same IP address for the same source, as behind a NAT, so that the beacon's budgets count
/// the source, and a node that dials again takes its registration along. The port tells its links apart.
pub(crate) fn virtual_address(source: IpAddr, port: u16, secret: &impl BuildHasher) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..6].copy_from_slice(&PREFIX);
    let half = |salt: u8| secret.hash_one((salt, source_prefix(source))).to_be_bytes();
    octets[6..14].copy_from_slice(&half(0));
    octets[14..].copy_from_slice(&half(1)[..2]);
    SocketAddr::new(Ipv6Addr::from(octets).into(), port)
}

/// Who counts as one source: an IPv4 address, the first 64 bits of an IPv6 address (as in `spec/nat.md §2.2`).
pub(crate) fn source_prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    #[test]
    fn one_source_has_one_address() {
        let secret = RandomState::new();
        let of = |ip: &str, port| virtual_address(ip.parse().unwrap(), port, &secret);
        assert_eq!(of("192.0.2.1", 1).ip(), of("::ffff:192.0.2.1", 2).ip());
        assert_ne!(of("192.0.2.1", 1), of("192.0.2.1", 2));
        assert_ne!(of("192.0.2.1", 1).ip(), of("192.0.2.2", 1).ip());
        assert_eq!(of("2001:db8::1", 1), of("2001:db8::2", 1));
        assert_ne!(of("2001:db8::1", 1), of("2001:db8:0:1::1", 1));
        assert!(is_virtual(of("192.0.2.1", 1)));
        for real in ["192.0.2.1:1", "[fd00::1]:1", "[fd50:696c:6f75::1]:1"] {
            assert!(!is_virtual(real.parse().unwrap()), "{real}");
        }
    }
}
