//! NATs over packets: IPv4 to IPv4, and IPv6 to IPv4 (RFC 6146) with a firewall for what stays IPv6.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::packet::{self, Flow, Protocol};
use super::table::{NatConfig, NatCounters, Table};

/// The addresses that stand for IPv4 behind a NAT64: the well-known prefix (RFC 6052).
pub const PREFIX64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
/// Most flows that the IPv6 firewall remembers.
pub const MAX_FLOWS: usize = 8_192;
/// Length of the IPv6 part of a site. Bits.
const SITE_BITS: u32 = 48;

/// Where a packet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Out, as this packet.
    Outside(Vec<u8>),
    /// In, as this packet.
    Inside(Vec<u8>),
    /// Nowhere.
    Dropped,
}

/// The address that stands for an IPv4 address.
#[must_use]
pub fn synthesize(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let [p0, p1, p2, p3, p4, p5] = PREFIX64;
    Ipv6Addr::new(p0, p1, p2, p3, p4, p5, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// The IPv4 address that an address stands for.
#[must_use]
pub fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = ip.segments();
    let [a, b] = segments[6].to_be_bytes();
    let [c, d] = segments[7].to_be_bytes();
    (segments[..6] == PREFIX64).then(|| Ipv4Addr::new(a, b, c, d))
}

/// What stands between a site and the public.
#[derive(Debug)]
pub enum Translator {
    /// IPv4 on both sides.
    Nat44(Table),
    /// IPv6 inside, IPv4 outside; native IPv6 passes a firewall that lets in only answers.
    Nat64(Table, Firewall),
}

impl Translator {
    /// IPv4 to IPv4.
    #[must_use]
    pub fn nat44(config: NatConfig) -> Self {
        Self::Nat44(Table::new(config))
    }

    /// IPv6 to IPv4.
    #[must_use]
    pub fn nat64(config: NatConfig) -> Self {
        let timeout = config.timeout;
        Self::Nat64(Table::new(config), Firewall { flows: HashMap::new(), timeout })
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> NatCounters {
        self.table().counters
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        let (Self::Nat44(table) | Self::Nat64(table, _)) = self;
        table
    }

    /// As after a power cut.
    pub fn forget(&mut self) {
        match self {
            Self::Nat44(table) => table.forget(),
            Self::Nat64(table, firewall) => {
                table.forget();
                firewall.flows.clear();
            }
        }
    }

    /// A packet from inside.
    pub fn outbound(&mut self, now: Instant, mut packet: Vec<u8>) -> Verdict {
        let Some(flow) = packet::flow(&packet) else { return Verdict::Dropped };
        if !packet::hop(&mut packet) {
            return Verdict::Dropped;
        }
        match self {
            Self::Nat44(table) => {
                let SocketAddr::V4(target) = flow.target else { return Verdict::Dropped };
                if target.ip() == &table.config().address {
                    return hairpin(table, now, flow, target, packet);
                }
                let port = table.outbound(now, flow.protocol, flow.source, target);
                let Some(source) = port.map(|port| outside(table, port)) else { return Verdict::Dropped };
                let target = echo_target(flow, source);
                let _ = packet::readdress(&mut packet, source, target);
                Verdict::Outside(packet)
            }
            Self::Nat64(table, firewall) => {
                let IpAddr::V6(target) = flow.target.ip() else { return Verdict::Dropped };
                let Some(target) = embedded(target) else {
                    firewall.outbound(now, flow);
                    return Verdict::Outside(packet);
                };
                let target = SocketAddrV4::new(target, flow.target.port());
                let returns = target.ip() == &table.config().address;
                if returns && !table.config().hairpin {
                    table.counters.refused += 1;
                    return Verdict::Dropped;
                }
                let Some(port) = table.outbound(now, flow.protocol, flow.source, target) else {
                    return Verdict::Dropped;
                };
                let translated = packet::translate(&packet, outside(table, port), target.into());
                let Some(translated) = translated else { return Verdict::Dropped };
                if !returns {
                    return Verdict::Outside(translated);
                }
                table.counters.hairpinned += 1;
                self.inbound(now, translated)
            }
        }
    }

    /// A packet from outside.
    pub fn inbound(&mut self, now: Instant, mut packet: Vec<u8>) -> Verdict {
        let Some(flow) = packet::flow(&packet) else { return Verdict::Dropped };
        if !packet::hop(&mut packet) {
            return Verdict::Dropped;
        }
        if let (Self::Nat64(_, firewall), SocketAddr::V6(_)) = (&mut *self, flow.source) {
            return if firewall.inbound(now, flow) { Verdict::Inside(packet) } else { Verdict::Dropped };
        }
        let (Self::Nat44(table) | Self::Nat64(table, _)) = self;
        let (SocketAddr::V4(source), IpAddr::V4(own)) = (flow.source, flow.target.ip()) else {
            return Verdict::Dropped;
        };
        if own != table.config().address {
            return Verdict::Dropped;
        }
        let Some(inside) = table.inbound(now, flow.protocol, flow.target.port(), source) else {
            return Verdict::Dropped;
        };
        if inside.is_ipv4() {
            let _ = packet::readdress(&mut packet, flow.source, inside);
            return Verdict::Inside(packet);
        }
        let source = SocketAddr::new(synthesize(*source.ip()).into(), source.port());
        packet::translate(&packet, source, inside).map_or(Verdict::Dropped, Verdict::Inside)
    }
}

fn outside(table: &Table, port: u16) -> SocketAddr {
    SocketAddr::new(table.config().address.into(), port)
}

/// The far end of an echo has no port of its own: its place is filled by ours.
fn echo_target(flow: Flow, source: SocketAddr) -> SocketAddr {
    let port = if flow.protocol == Protocol::Echo { source.port() } else { flow.target.port() };
    SocketAddr::new(flow.target.ip(), port)
}

/// From inside to one of our own outside ports. The receiver sees the sender's outside port (RFC 4787, REQ-9a).
fn hairpin(
    table: &mut Table,
    now: Instant,
    flow: Flow,
    target: SocketAddrV4,
    mut packet: Vec<u8>,
) -> Verdict {
    if !table.config().hairpin {
        table.counters.refused += 1;
        return Verdict::Dropped;
    }
    let Some(port) = table.outbound(now, flow.protocol, flow.source, target) else { return Verdict::Dropped };
    let source = SocketAddrV4::new(table.config().address, port);
    let Some(inside) = table.inbound(now, flow.protocol, target.port(), source) else {
        return Verdict::Dropped;
    };
    table.counters.hairpinned += 1;
    let _ = packet::readdress(&mut packet, source.into(), inside);
    Verdict::Inside(packet)
}

/// Lets in what answers something from inside (RFC 6092 with address-and-port-dependent filtering).
#[derive(Debug)]
pub struct Firewall {
    flows: HashMap<(Protocol, SocketAddr, SocketAddr), Instant>,
    timeout: Duration,
}

impl Firewall {
    fn outbound(&mut self, now: Instant, flow: Flow) {
        if self.flows.len() >= MAX_FLOWS {
            let timeout = self.timeout;
            self.flows.retain(|_, used| now.saturating_duration_since(*used) < timeout);
        }
        if self.flows.len() < MAX_FLOWS {
            self.flows.insert((flow.protocol, flow.source, flow.target), now);
        }
    }

    fn inbound(&self, now: Instant, flow: Flow) -> bool {
        let used = self.flows.get(&(flow.protocol, flow.target, flow.source));
        used.is_some_and(|used| now.saturating_duration_since(*used) < self.timeout)
    }
}

/// Whether two addresses are in one site's part of IPv6.
pub(crate) fn same_site(one: Ipv6Addr, other: Ipv6Addr) -> bool {
    (u128::from(one) ^ u128::from(other)) >> (128 - SITE_BITS) == 0
}
