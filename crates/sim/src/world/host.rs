//! One machine: a process that can crash, pause and restart, with a clock of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::{BeaconConfig, BeaconEngine};
use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{Config, Endpoint, PeerConfig, PeerPolicy, SecureConfig, SecureMode, TransmitBuf};
use pilotage_wire::addressing::first_address;
use pilotage_wire::{Address, NetworkId, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use super::Flight;
use super::registry::Inquiry;
use crate::registry::{RegistryAgent, RegistryHost};

/// Datagrams that the socket of a paused process keeps; the kernel drops what comes after.
const SOCKET_BUFFER: usize = 512;

/// The clock of one process: its time since boot runs a little too fast or slow.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    parts_per_million: i64,
    /// Wrong wall clock: this is added to the Unix time that the process believes in.
    pub unix_offset: i64,
}

impl Clock {
    /// A clock that is right at `origin` and then gains so many millionths.
    #[must_use]
    pub fn new(origin: Instant, parts_per_million: i64) -> Self {
        Self { origin, parts_per_million, unix_offset: 0 }
    }

    /// What the process reads at the true time `now`.
    #[must_use]
    pub fn local(&self, now: Instant) -> Instant {
        if self.parts_per_million == 0 {
            return now;
        }
        let nanos = now.saturating_duration_since(self.origin).as_nanos() as i128;
        let read = nanos + nanos * i128::from(self.parts_per_million) / 1_000_000;
        self.origin + Duration::from_nanos(read.max(0) as u64)
    }

    /// The first true time at which the process reads at least `local`.
    #[must_use]
    pub fn world(&self, local: Instant) -> Instant {
        if self.parts_per_million == 0 {
            return local;
        }
        let nanos = local.saturating_duration_since(self.origin).as_nanos() as i128;
        let mut at = nanos * 1_000_000 / (1_000_000 + i128::from(self.parts_per_million));
        // The division above may be short by a few nanoseconds.
        for _ in 0..4 {
            let world = self.origin + Duration::from_nanos(at.max(0) as u64);
            if self.local(world) >= local {
                return world;
            }
            at += 1;
        }
        self.origin + Duration::from_nanos(at.max(0) as u64)
    }
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    Up,
    /// It was killed.
    Down,
    /// It was stopped and goes on at this time.
    Paused(Instant),
}

/// One machine.
pub struct Machine {
    /// Its present UDP address.
    pub addr: SocketAddr,
    /// Whether its process runs.
    pub power: Power,
    /// Its clock.
    pub clock: Clock,
    /// What runs on it.
    pub role: Role,
    /// How often it was started.
    pub boot: u32,
    /// What came while it was paused.
    pub(super) backlog: VecDeque<Flight>,
    /// When its process wants to be called next, in true time.
    pub(super) wake: Option<Instant>,
    pub(super) dirty: bool,
}

/// What runs on a machine.
pub enum Role {
    /// A node.
    Node(Box<Node>),
    /// A beacon.
    Beacon(Box<BeaconEngine>),
    /// A registry.
    Registry(Box<RegistryHost>),
    /// Nothing: an address that others may send to, or that the adversary speaks from.
    Silent,
}

/// A node's process and what survives it.
pub struct Node {
    /// The endpoint while the process runs.
    pub endpoint: Endpoint,
    /// Its settings.
    pub config: Config,
    /// Its overlay address.
    pub address: Address,
    /// Its Ed25519 key.
    pub key: [u8; 32],
    pub(super) identity_seed: [u8; 32],
    /// Which modes it speaks, and how long its keys of S1 live.
    pub(super) secure: (SecureMode, Limits, (bool, PostQuantum)),
    /// When the first of its processes began.
    began: Instant,
    pub(super) buf: TransmitBuf,
    /// Peers that it was told of, as it would store them in its state folder.
    pub(super) known: Vec<PeerConfig>,
    pub(super) beacon: Option<SocketAddr>,
    /// Its dealings with the registry, if there is one.
    pub(super) agent: Option<RegistryAgent>,
    /// What it has asked the registry.
    pub(super) inquiries: BTreeMap<NodeId, Inquiry>,
}

/// What a node still knows after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Its peers, with the addresses that they had when they were introduced.
    Kept,
    /// Nothing but its identity.
    Lost,
}

impl Machine {
    pub(super) fn new(addr: SocketAddr, clock: Clock, role: Role) -> Self {
        Self {
            addr,
            power: Power::Up,
            clock,
            role,
            boot: 1,
            backlog: VecDeque::new(),
            wake: None,
            dirty: false,
        }
    }

    /// The node on this machine, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        match &self.role {
            Role::Node(node) => Some(node),
            _ => None,
        }
    }

    pub(super) fn node_mut(&mut self) -> Option<&mut Node> {
        match &mut self.role {
            Role::Node(node) => Some(node),
            _ => None,
        }
    }

    /// Keeps a datagram for a paused process; `false` if its socket buffer is full.
    pub(super) fn keep(&mut self, flight: Flight) -> bool {
        let room = self.backlog.len() < SOCKET_BUFFER;
        if room {
            self.backlog.push_back(flight);
        }
        room
    }
}

impl Node {
    pub(super) fn new(config: Config, number: u32, now: Instant, rng: &mut ChaCha8Rng) -> Self {
        let mut identity_seed = [0; 32];
        rng.fill_bytes(&mut identity_seed);
        let identity = Identity::from_seed(identity_seed);
        let key = identity.public_key();
        // What a registry assigns to this key; the number is for a key without any, of which nobody knows one.
        let address = first_address(NetworkId(0), &key).unwrap_or(Address::new(0, 0x1000 + number));
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        Self {
            endpoint: Endpoint::new(config.clone(), identity, address, seed, now),
            config,
            address,
            key,
            identity_seed,
            secure: Default::default(),
            began: now,
            buf: TransmitBuf::new(16),
            known: Vec::new(),
            beacon: None,
            agent: None,
            inquiries: BTreeMap::new(),
        }
    }

    /// A new process with the same identity.
    pub(super) fn restart(&mut self, memory: Memory, now: Instant, rng: &mut ChaCha8Rng) {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let identity = Identity::from_seed(self.identity_seed);
        self.endpoint = Endpoint::new(self.config.clone(), identity, self.address, seed, now);
        self.speak_s1(now, &seed);
        if memory == Memory::Lost {
            self.known.clear();
        }
        for peer in &self.known {
            // A fresh endpoint has room for all that the old one knew.
            let _ = self.endpoint.add_peer(now, peer.clone());
        }
        if let Some(beacon) = self.beacon {
            self.endpoint.set_beacon(now, Some(beacon));
        }
    }

    /// Switches S1 on, if the node is to speak it. `seed` is the process's; nothing else is drawn.
    pub(super) fn speak_s1(&mut self, now: Instant, seed: &[u8; 32]) {
        let (mode, limits, (streams, post_quantum)) = self.secure;
        let device = blake3::derive_key("pilotage simulator: device secret", &self.identity_seed);
        let seed = blake3::derive_key("pilotage simulator: randomness of S1", seed);
        let up = now.saturating_duration_since(self.began).as_millis() as u64;
        let config =
            SecureConfig { limits, streams, post_quantum, ..SecureConfig::new(mode, UNIX_MS + up, device) };
        self.endpoint.enable_s1(now, config, &seed);
    }

    /// What others have to know to reach this node.
    #[must_use]
    pub fn introduction(&self, addr: SocketAddr) -> PeerConfig {
        PeerConfig {
            address: self.address,
            key: Some(self.key),
            endpoint: Some(addr),
            policy: PeerPolicy::default(),
            prekey: None,
        }
    }
}

/// The wall clock when a world begins, Unix ms.
const UNIX_MS: u64 = 1_800_000_000_000;

pub(super) fn beacon(seed: u64) -> BeaconEngine {
    BeaconEngine::new(
        BeaconConfig { verify: Some(pilotage_proto::crypto::verify), ..BeaconConfig::default() },
        seed,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drifting_clock_is_read_and_inverted() {
        let origin = crate::base_instant();
        for ppm in [-500, -1, 0, 1, 500] {
            let clock = Clock::new(origin, ppm);
            for seconds in [0u64, 1, 60, 86_400] {
                let now = origin + Duration::from_secs(seconds);
                let local = clock.local(now);
                let back = clock.world(local);
                assert!(clock.local(back) >= local);
                assert!(back <= now + Duration::from_nanos(4), "{ppm} {seconds}");
                let gained = local.duration_since(origin).as_secs_f64() - seconds as f64;
                assert!((gained - seconds as f64 * ppm as f64 / 1e6).abs() < 1e-6);
            }
        }
    }
}
