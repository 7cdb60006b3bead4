//! A host that reaches IPv4 by a NAT64 only (RFC 6146): peers' IPv4 addresses in the form that leads there (RFC 6052).
//!
//! The prefix needs no question to the DNS (RFC 7050): a beacon that we reach by an IPv6 address and that sees us at an
//! IPv4 address is behind such a NAT, and the beacon's address as we use it begins with the prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::scope::{Scope, canonical};

/// How the IPv6 addresses of IPv4 hosts begin: 96 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat64([u16; 6]);

impl Nat64 {
    /// From the address of a beacon and the address at which it sees us; `None` if no NAT64 is between.
    #[must_use]
    pub fn from_beacon(beacon: SocketAddr, observed: SocketAddr) -> Option<Self> {
        let (IpAddr::V6(beacon), IpAddr::V4(_)) = (beacon.ip().to_canonical(), observed.ip().to_canonical())
        else {
            return None;
        };
        // Nothing near translates, and where no IPv4 address is embedded it is another kind of box.
        if Scope::of(beacon.into()) < Scope::Site {
            return None;
        }
        let [a, b, c, d, e, f, ..] = beacon.segments();
        Some(Self([a, b, c, d, e, f]))
    }

    /// The address that leads to this one: another one for public IPv4 hosts, the same for all others.
    #[must_use]
    pub fn towards(self, addr: SocketAddr) -> SocketAddr {
        let addr = canonical(addr);
        let IpAddr::V4(v4) = addr.ip() else { return addr };
        if Scope::of(v4.into()) != Scope::Global {
            return addr;
        }
        SocketAddr::new(self.embed(v4).into(), addr.port())
    }

    fn embed(self, v4: Ipv4Addr) -> Ipv6Addr {
        let [a, b, c, d] = v4.octets();
        let [p, q, r, s, t, u] = self.0;
        Ipv6Addr::new(p, q, r, s, t, u, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_prefix_is_that_of_the_beacon() {
        for (beacon, towards) in [
            ("[64:ff9b::c633:640a]:81", "[64:ff9b::cb00:7107]:40000"),
            ("[2001:db8:64::c633:640a]:81", "[2001:db8:64::cb00:7107]:40000"),
        ] {
            let nat64 = Nat64::from_beacon(addr(beacon), addr("198.51.100.20:9")).unwrap();
            assert_eq!(nat64.towards(addr("203.0.113.7:40000")), addr(towards));
            assert_eq!(nat64.towards(addr("[::ffff:203.0.113.7]:40000")), addr(towards));
            // Private addresses are not those of the other side of the NAT64, and IPv6 needs none.
            for same in ["192.168.1.5:4000", "100.64.0.1:4000", "127.0.0.1:1", "[2001:db8::1]:4000"] {
                assert_eq!(nat64.towards(addr(same)), addr(same));
            }
        }
    }

    #[test]
    fn without_a_nat64_there_is_no_prefix() {
        for (beacon, observed) in [
            ("198.51.100.10:81", "198.51.100.20:9"),
            ("[2001:db8::1]:81", "[2001:db8::2]:9"),
            ("[::ffff:198.51.100.10]:81", "198.51.100.20:9"),
            ("[::1]:81", "127.0.0.1:9"),
            ("[fe80::1]:81", "198.51.100.20:9"),
        ] {
            assert_eq!(Nat64::from_beacon(addr(beacon), addr(observed)), None, "{beacon}");
        }
    }
}
