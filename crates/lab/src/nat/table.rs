//! The table of a NAT, without clock or device: which outside port stands for whom inside, and who may use it.
//!
//! Terms are those of RFC 4787. Mappings are refreshed from inside only (REQ-6, the strict reading).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::packet::Protocol;

/// Most mappings at once; more are refused until old ones run out.
pub const MAX_MAPPINGS: usize = 8_192;
/// Most outside ends that one mapping admits; the longest silent one makes room.
pub const MAX_ADMITTED: usize = 1_024;
/// Outside ports are taken from here up: the others belong to services of the box.
const FIRST_PORT: u16 = 1_024;

/// On what of the outside end something depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependence {
    /// Nothing.
    EndpointIndependent,
    /// Its address.
    AddressDependent,
    /// Its address and port.
    AddressAndPortDependent,
}

impl Dependence {
    /// What remains of the outside end under this rule.
    fn of(self, end: SocketAddrV4) -> Option<(Ipv4Addr, u16)> {
        match self {
            Self::EndpointIndependent => None,
            Self::AddressDependent => Some((*end.ip(), 0)),
            Self::AddressAndPortDependent => Some((*end.ip(), end.port())),
        }
    }
}

/// How outside ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// The one from inside, if it is free; else the next free one.
    Preserve,
    /// The next after the last.
    Sequential,
    /// Any.
    Random,
}

/// What a NAT is like.
#[derive(Debug, Clone)]
pub struct NatConfig {
    /// When the same inside end gets the same outside port.
    pub mapping: Dependence,
    /// From whom packets are let in.
    pub filtering: Dependence,
    /// How outside ports are chosen.
    pub allocation: Allocation,
    /// Whether inside ends reach each other through their outside ports.
    pub hairpin: bool,
    /// Silence from inside after which a mapping is forgotten. TCP has twenty times as long.
    pub timeout: Duration,
    /// The address outside.
    pub address: Ipv4Addr,
    /// Seed of the random ports.
    pub seed: u64,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct NatCounters {
    /// Mappings made.
    pub mapped: u64,
    /// Packets from outside for a port that stands for nobody.
    pub unmapped: u64,
    /// Packets from outside that the filter kept out.
    pub filtered: u64,
    /// Packets sent back inside.
    pub hairpinned: u64,
    /// Packets without room in the table, or that cannot be translated.
    pub refused: u64,
}

type Key = (Protocol, SocketAddr, Option<(Ipv4Addr, u16)>);

#[derive(Debug)]
struct Mapping {
    key: Key,
    used: Instant,
    admitted: HashMap<(Ipv4Addr, u16), Instant>,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    config: NatConfig,
    ports: HashMap<Key, u16>,
    mappings: HashMap<(Protocol, u16), Mapping>,
    next: u16,
    rng: ChaCha8Rng,
    /// What happened so far.
    pub counters: NatCounters,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(config: NatConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let next = any_port(&mut rng);
        let counters = NatCounters::default();
        Self { config, ports: HashMap::new(), mappings: HashMap::new(), next, rng, counters }
    }

    /// What it is like.
    #[must_use]
    pub fn config(&self) -> &NatConfig {
        &self.config
    }

    /// As after a power cut: forgets everything, and begins to count elsewhere.
    pub fn forget(&mut self) {
        self.ports.clear();
        self.mappings.clear();
        self.next = any_port(&mut self.rng);
    }

    /// Mappings now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// A packet from inside to `outside`: the port it leaves from. `None`: the table is full.
    pub fn outbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        inside: SocketAddr,
        outside: SocketAddrV4,
    ) -> Option<u16> {
        let outside = end_of(protocol, outside);
        let key = (protocol, inside, self.config.mapping.of(outside));
        let known = self.ports.get(&key).copied().filter(|port| self.is_alive(now, (protocol, *port)));
        let port = match known {
            Some(port) => port,
            None => self.map(now, key)?,
        };
        let mapping = self.mappings.get_mut(&(protocol, port))?;
        mapping.used = now;
        if mapping.admitted.len() >= MAX_ADMITTED
            && !mapping.admitted.contains_key(&(*outside.ip(), outside.port()))
        {
            let oldest = mapping.admitted.iter().min_by_key(|(_, since)| **since).map(|(end, _)| *end);
            oldest.and_then(|end| mapping.admitted.remove(&end));
        }
        mapping.admitted.insert((*outside.ip(), outside.port()), now);
        Some(port)
    }

    /// A packet from `outside` for this port of ours: whom it is for, if it is let in.
    pub fn inbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        port: u16,
        outside: SocketAddrV4,
    ) -> Option<SocketAddr> {
        let outside = end_of(protocol, outside);
        let lifetime = self.lifetime(protocol);
        let alive = self.is_alive(now, (protocol, port));
        let Some(mapping) = self.mappings.get(&(protocol, port)).filter(|_| alive) else {
            self.counters.unmapped += 1;
            return None;
        };
        let young = |since: &Instant| now.saturating_duration_since(*since) < lifetime;
        let admitted = match self.config.filtering {
            Dependence::EndpointIndependent => true,
            Dependence::AddressDependent => {
                mapping.admitted.iter().any(|((ip, _), since)| ip == outside.ip() && young(since))
            }
            Dependence::AddressAndPortDependent => {
                mapping.admitted.get(&(*outside.ip(), outside.port())).is_some_and(young)
            }
        };
        if !admitted {
            self.counters.filtered += 1;
            return None;
        }
        Some(mapping.key.1)
    }

    fn lifetime(&self, protocol: Protocol) -> Duration {
        if protocol == Protocol::Tcp { self.config.timeout * 20 } else { self.config.timeout }
    }

    fn is_alive(&self, now: Instant, at: (Protocol, u16)) -> bool {
        let age = |mapping: &Mapping| now.saturating_duration_since(mapping.used);
        self.mappings.get(&at).is_some_and(|mapping| age(mapping) < self.lifetime(at.0))
    }

    fn map(&mut self, now: Instant, key: Key) -> Option<u16> {
        if self.mappings.len() >= MAX_MAPPINGS {
            self.sweep(now);
        }
        let port = (self.mappings.len() < MAX_MAPPINGS).then(|| self.choose(now, key));
        let Some(port) = port.flatten() else {
            self.counters.refused += 1;
            return None;
        };
        if let Some(old) = self.mappings.remove(&(key.0, port)) {
            self.ports.remove(&old.key);
        }
        self.counters.mapped += 1;
        self.ports.insert(key, port);
        self.mappings.insert((key.0, port), Mapping { key, used: now, admitted: HashMap::new() });
        Some(port)
    }

    /// A port that nobody uses.
    fn choose(&mut self, now: Instant, (protocol, inside, _): Key) -> Option<u16> {
        let mut port = match self.config.allocation {
            Allocation::Preserve => inside.port().max(FIRST_PORT),
            Allocation::Sequential => self.next,
            Allocation::Random => any_port(&mut self.rng),
        };
        for _ in FIRST_PORT..=u16::MAX {
            if !self.is_alive(now, (protocol, port)) {
                self.next = after(port);
                return Some(port);
            }
            port = after(port);
        }
        None
    }

    fn sweep(&mut self, now: Instant) {
        let stale: Vec<_> = self.mappings.keys().copied().filter(|at| !self.is_alive(now, *at)).collect();
        for at in stale {
            if let Some(mapping) = self.mappings.remove(&at) {
                self.ports.remove(&mapping.key);
            }
        }
    }
}

/// An echo has an identifier of the asker's, and no port at the other end.
fn end_of(protocol: Protocol, outside: SocketAddrV4) -> SocketAddrV4 {
    SocketAddrV4::new(*outside.ip(), if protocol == Protocol::Echo { 0 } else { outside.port() })
}

fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(FIRST_PORT)
}

fn any_port(rng: &mut ChaCha8Rng) -> u16 {
    let span = u32::from(u16::MAX - FIRST_PORT) + 1;
    FIRST_PORT + (rng.next_u32() % span) as u16
}
