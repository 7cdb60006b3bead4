//! NAT boxes, as RFC 4787 describes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// How long a mapping lasts without traffic (RFC 4787 asks for 120 s; many have less).
const MAPPING_KEPT: Duration = Duration::from_secs(30);
/// Most mappings of one box.
const MAPPINGS_MAX: usize = 8_192;

/// For which destinations one external port is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// For all.
    EndpointIndependent,
    /// One for each address and port.
    AddressAndPortDependent,
}

/// Whose datagrams are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those of addresses that something was sent to.
    AddressDependent,
    /// Those of addresses and ports that something was sent to.
    AddressAndPortDependent,
}

/// Which external port is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The same as inside.
    Preserved,
    /// The next one.
    Sequential,
    /// Any.
    Random,
}

/// The properties of a box.
#[derive(Debug, Clone, Copy)]
pub struct Nature {
    /// Which port.
    pub mapping: Mapping,
    /// Who is let in.
    pub filtering: Filtering,
    /// How ports are chosen.
    pub ports: Ports,
    /// Whether hosts inside reach each other by the external address.
    pub hairpin: bool,
}

#[derive(Debug)]
struct Entry {
    outside: u16,
    used: Instant,
    /// Where something was sent.
    sent: BTreeMap<SocketAddr, ()>,
}

/// One box with one external address.
#[derive(Debug)]
pub struct NatBox {
    /// Its external address.
    pub address: IpAddr,
    nature: Nature,
    /// Inside address, and the destination where that counts.
    table: BTreeMap<(SocketAddr, Option<SocketAddr>), Entry>,
    /// External ports that lead inside for everybody.
    forwards: BTreeMap<u16, SocketAddr>,
    next: u16,
}

impl NatBox {
    /// A box that has forwarded nothing yet.
    #[must_use]
    pub fn new(address: IpAddr, nature: Nature) -> Self {
        Self { address, nature, table: BTreeMap::new(), forwards: BTreeMap::new(), next: 20_000 }
    }

    /// Whether hosts inside reach each other by the external address.
    #[must_use]
    pub fn hairpins(&self) -> bool {
        self.nature.hairpin
    }

    /// Leads an external port to an address inside, for everybody.
    pub fn forward(&mut self, port: u16, inside: SocketAddr) {
        self.forwards.insert(port, inside);
    }

    /// Forgets everything, as after a power failure, and goes on with other ports.
    pub fn reboot(&mut self) {
        self.table.clear();
        self.next = self.next.wrapping_add(7_000).max(1_024);
    }

    /// The external source of a datagram on its way out.
    pub fn out(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        rng: &mut ChaCha8Rng,
    ) -> Option<SocketAddr> {
        if let Some((port, _)) = self.forwards.iter().find(|(_, inside)| **inside == from) {
            return Some(SocketAddr::new(self.address, *port));
        }
        self.table.retain(|_, e| now.saturating_duration_since(e.used) < MAPPING_KEPT);
        let key = match self.nature.mapping {
            Mapping::EndpointIndependent => (from, None),
            Mapping::AddressAndPortDependent => (from, Some(to)),
        };
        if !self.table.contains_key(&key) {
            if self.table.len() >= MAPPINGS_MAX {
                return None;
            }
            let outside = self.free_port(from.port(), rng);
            self.table.insert(key, Entry { outside, used: now, sent: BTreeMap::new() });
        }
        let entry = self.table.get_mut(&key)?;
        entry.used = now;
        entry.sent.insert(to, ());
        Some(SocketAddr::new(self.address, entry.outside))
    }

    fn free_port(&mut self, inside: u16, rng: &mut ChaCha8Rng) -> u16 {
        let mut port = match self.nature.ports {
            Ports::Preserved => inside,
            Ports::Sequential => self.next,
            Ports::Random => 1_024 + (rng.next_u32() % 64_512) as u16,
        };
        while self.table.values().any(|e| e.outside == port) {
            port = port.checked_add(1).unwrap_or(1_024);
        }
        if self.nature.ports == Ports::Sequential {
            self.next = port.checked_add(1).unwrap_or(1_024);
        }
        port
    }

    /// The inside address that a datagram from outside is for, if it is let in.
    pub fn inward(&mut self, now: Instant, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        if let Some(inside) = self.forwards.get(&port) {
            return Some(*inside);
        }
        let filtering = self.nature.filtering;
        let (key, entry) = self
            .table
            .iter_mut()
            .find(|(_, e)| e.outside == port && now.saturating_duration_since(e.used) < MAPPING_KEPT)?;
        let let_in = match filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => entry.sent.keys().any(|a| a.ip() == from.ip()),
            Filtering::AddressAndPortDependent => entry.sent.contains_key(&from),
        };
        if !let_in {
            return None;
        }
        entry.used = now;
        Some(key.0)
    }
}
