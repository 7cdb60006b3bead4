//! Which addresses a message may point at.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// How far an address reaches, from near to far. `spec/nat.md §5.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// This host.
    Loopback,
    /// This link: 169.254.0.0/16, fe80::/10.
    Link,
    /// This site: RFC 1918, RFC 6598 (100.64.0.0/10), RFC 4193 (fc00::/7).
    Site,
    /// Everywhere else.
    Global,
}

impl Scope {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_link_local() => Self::Link,
            IpAddr::V4(ip) if ip.is_private() || is_shared(ip) => Self::Site,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::Link,
            IpAddr::V6(ip) if ip.is_unique_local() => Self::Site,
            _ => Self::Global,
        }
    }
}

/// Whether a datagram may be sent there at all: one host, a real port.
pub(crate) fn is_unicast(address: SocketAddr) -> bool {
    let single = match address.ip().to_canonical() {
        // 0.0.0.0/8 is "this network" and 240.0.0.0/4 is reserved, with the broadcast address in it.
        IpAddr::V4(ip) => ip.octets()[0] != 0 && ip.octets()[0] < 240 && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    single && address.port() != 0
}

/// The same socket address, whether it was seen through an IPv4 or a dual-stack socket.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && b & 0xC0 == 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        for (ip, scope) in [
            ("127.3.2.1", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("169.254.1.1", Scope::Link),
            ("fe80::1", Scope::Link),
            ("10.1.2.3", Scope::Site),
            ("192.168.0.1", Scope::Site),
            ("100.64.0.1", Scope::Site),
            ("::ffff:172.16.0.1", Scope::Site),
            ("fd00::1", Scope::Site),
            ("100.128.0.1", Scope::Global),
            ("203.0.113.9", Scope::Global),
            ("2001:db8::1", Scope::Global),
        ] {
            assert_eq!(Scope::of(ip.parse().unwrap()), scope, "{ip}");
        }
    }

    #[test]
    fn nothing_but_single_hosts() {
        for bad in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "240.0.0.1:1",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:224.0.0.1]:1",
            "10.0.0.1:0",
        ] {
            assert!(!is_unicast(bad.parse().unwrap()), "{bad}");
        }
        for good in ["10.0.0.1:1", "127.0.0.1:65535", "[2001:db8::1]:4000", "[fe80::1]:9"] {
            assert!(is_unicast(good.parse().unwrap()), "{good}");
        }
    }
}
