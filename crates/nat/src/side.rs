//! Addresses that stand for a peer's address as seen from an extra socket (spec/nat.md §10.5).
//!
//! An endpoint knows one socket, and an address of a peer is a way to it. A way through another socket of the same node is
//! therefore written as an address of its own, which holds the socket's number and the real address. It means something
//! inside one node only: no message names it, and none that names one is believed.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};

/// `fd50:696c:6f75::/48`, a prefix of RFC 4193 that nobody routes.
const PREFIX: [u16; 3] = [0xfd50, 0x696c, 0x6f75];

/// The address that stands for `real` as seen from the extra socket with this number.
#[must_use]
pub fn through(socket: u32, real: SocketAddrV4) -> SocketAddr {
    let [a, b, c, d] = real.ip().octets();
    let [x, y, z] = PREFIX;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let ip = Ipv6Addr::new(x, y, z, (socket >> 16) as u16, socket as u16, 0, pair(a, b), pair(c, d));
    SocketAddr::new(ip.into(), real.port())
}

/// The extra socket and the real address, if this is such an address.
#[must_use]
pub fn split(addr: SocketAddr) -> Option<(u32, SocketAddrV4)> {
    let SocketAddr::V6(v6) = addr else { return None };
    let [x, y, z, high, low, zero, ab, cd] = v6.ip().segments();
    if [x, y, z] != PREFIX || zero != 0 {
        return None;
    }
    let [[a, b], [c, d]] = [ab.to_be_bytes(), cd.to_be_bytes()];
    Some((u32::from(high) << 16 | u32::from(low), SocketAddrV4::new([a, b, c, d].into(), v6.port())))
}

/// Whether an address means something inside one process only: this kind, and those by which a hub names the links that
/// carry datagrams where UDP is blocked (`fd50:696c:6f74::/48`, spec/reach.md).
#[must_use]
pub fn is_inner(addr: SocketAddr) -> bool {
    matches!(addr, SocketAddr::V6(v6) if matches!(v6.ip().segments(), [0xfd50, 0x696c, 0x6f74 | 0x6f75, ..]))
}

/// What others call this address.
#[must_use]
pub fn real(addr: SocketAddr) -> SocketAddr {
    split(addr).map_or(addr, |(_, real)| real.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_through_another_socket_holds_both() {
        let peer: SocketAddrV4 = "198.51.100.7:40000".parse().unwrap();
        for socket in [0, 1, 65_536, u32::MAX] {
            let addr = through(socket, peer);
            assert_eq!(split(addr), Some((socket, peer)));
            assert_eq!(real(addr), SocketAddr::V4(peer));
        }
        assert_ne!(through(1, peer), through(2, peer));
        // Neither what is carried over the hub's WebSocket (fd50:696c:6f74::/48) nor anything else.
        for (other, inner) in
            [("198.51.100.7:40000", false), ("[fd50:696c:6f74::1]:1", true), ("[2001:db8::1]:1", false)]
        {
            let other: SocketAddr = other.parse().unwrap();
            assert_eq!((split(other), real(other), is_inner(other)), (None, other, inner));
        }
        assert!(is_inner(through(7, peer)));
    }
}
