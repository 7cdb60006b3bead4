//! One real endpoint and the open network around it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::BeaconEngine;
use pilotage_proto::crypto::Identity;
use pilotage_proto::{Config, ConnectionId, Endpoint, Event, PeerConfig, PeerPolicy, RecvMeta, TransmitBuf};
use pilotage_wire::Address;

/// Calls of [`Arena::step`] at one instant after which the endpoint is taken for a busy loop.
const STILL_MAX: u32 = 100_000;

/// What went between the endpoint and one address, in UDP payload bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Datagrams that the endpoint received from there.
    pub datagrams_in: u64,
    /// Bytes that the endpoint received from there.
    pub bytes_in: u64,
    /// Datagrams that the endpoint sent there.
    pub datagrams_out: u64,
    /// Bytes that the endpoint sent there.
    pub bytes_out: u64,
}

struct Flight {
    to: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// The endpoint under attack, a virtual clock, and a network that carries anything from any address.
pub struct Arena {
    /// The virtual time.
    pub now: Instant,
    /// One-way delay of the network.
    pub delay: Duration,
    /// The endpoint under attack.
    pub target: Endpoint,
    /// Its UDP address.
    pub addr: SocketAddr,
    /// Its overlay address.
    pub address: Address,
    /// Its Ed25519 key.
    pub key: [u8; 32],
    /// What it reported and nobody looked at.
    pub events: VecDeque<Event>,
    /// Per address, what it received from there and sent there.
    pub ledger: BTreeMap<SocketAddr, Ledger>,
    /// Keep what arrives at other addresses. Turn off for floods whose answers nobody looks at.
    pub keep: bool,
    inboxes: BTreeMap<SocketAddr, VecDeque<Vec<u8>>>,
    flights: BTreeMap<(Instant, u64), Flight>,
    number: u64,
    still: u32,
    start: Instant,
    beacon: Option<(SocketAddr, BeaconEngine)>,
    buf: TransmitBuf,
}

impl Arena {
    /// An endpoint with default settings.
    pub fn new(seed: u64) -> Self {
        Self::with_config(seed, Config::default())
    }

    /// An endpoint with the given settings.
    pub fn with_config(seed: u64, cfg: Config) -> Self {
        let now = crate::base_instant();
        let identity = Identity::from_seed(seed_bytes(seed, 1));
        let key = identity.public_key();
        let address = Address::new(0, 0x2000);
        Self {
            now,
            delay: Duration::from_millis(10),
            target: Endpoint::new(cfg, identity, address, seed_bytes(seed, 2), now),
            addr: SocketAddr::from(([192, 0, 2, 2], 4000)),
            address,
            key,
            events: VecDeque::new(),
            ledger: BTreeMap::new(),
            keep: true,
            inboxes: BTreeMap::new(),
            flights: BTreeMap::new(),
            number: 0,
            still: 0,
            start: now,
            beacon: None,
            buf: TransmitBuf::new(16),
        }
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    /// Introduces a peer to the endpoint.
    pub fn introduce(&mut self, address: Address, key: [u8; 32], addr: Option<SocketAddr>) {
        let peer = PeerConfig {
            address,
            key: Some(key),
            endpoint: addr,
            policy: PeerPolicy::default(),
            prekey: None,
        };
        self.target.add_peer(self.now, peer).expect("the arena is far from its bound of peers");
    }

    /// Adds a real beacon at `addr` and tells the endpoint of it.
    pub fn add_beacon(&mut self, addr: SocketAddr, engine: BeaconEngine) {
        self.beacon = Some((addr, engine));
        self.target.set_beacon(self.now, Some(addr));
    }

    /// Puts a datagram on the network, as if `from` had sent it to the endpoint.
    pub fn send(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.send_to(from, self.addr, bytes);
    }

    /// Puts a datagram on the network, from anybody to anybody.
    pub fn send_to(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let key = (self.now + self.delay, self.number);
        self.number += 1;
        self.flights.insert(key, Flight { to, from, bytes: bytes.to_vec() });
    }

    /// Hands a datagram to the endpoint at once; nothing is polled. For floods.
    pub fn hit(&mut self, from: SocketAddr, bytes: &mut [u8]) {
        let entry = self.ledger.entry(from).or_default();
        entry.datagrams_in += 1;
        entry.bytes_in += bytes.len() as u64;
        self.target.handle_datagram(self.now, &RecvMeta { remote: from, local_ip: None }, bytes);
    }

    /// Takes everything that the endpoint wants to send and report.
    pub fn settle(&mut self) {
        while let Some(transmit) = self.target.poll_transmit(self.now, &mut self.buf) {
            let batch = self.buf.bytes(transmit.size).to_vec();
            let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
            for datagram in batch.chunks(segment) {
                let entry = self.ledger.entry(transmit.destination).or_default();
                entry.datagrams_out += 1;
                entry.bytes_out += datagram.len() as u64;
                self.send_to(self.addr, transmit.destination, datagram);
            }
        }
        while let Some(event) = self.target.poll_event() {
            self.events.push_back(event);
        }
    }

    /// What arrived at `addr` since the last call.
    pub fn take(&mut self, addr: SocketAddr) -> Vec<Vec<u8>> {
        self.inboxes.remove(&addr).map_or_else(Vec::new, Vec::from)
    }

    /// Goes to the next thing that happens, at most `until`. `false` once that is reached.
    pub fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let flight = self.flights.keys().next().map(|(at, _)| *at);
        let next = [flight, self.target.poll_timeout()].into_iter().flatten().min();
        let Some(next) = next.filter(|t| *t <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.still = if next > self.now { 0 } else { self.still + 1 };
        assert!(self.still < STILL_MAX, "busy loop at {:?}", self.elapsed());
        self.now = self.now.max(next);
        if self.target.poll_timeout().is_some_and(|t| t <= self.now) {
            self.target.handle_timeout(self.now);
        }
        while let Some(entry) = self.flights.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let flight = entry.remove();
            self.deliver(flight);
        }
        self.settle();
        true
    }

    /// Runs for a while.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done`, at most for `limit`. Whether it was done in time.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let until = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(until) {
                return done(self);
            }
        }
    }

    /// Reads everything that a connection of the endpoint has to give now.
    pub fn read_all(&mut self, id: ConnectionId) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(n) = self.target.read(self.now, id, &mut chunk) {
            if n == 0 {
                break;
            }
            all.extend_from_slice(&chunk[..n]);
        }
        all
    }

    fn deliver(&mut self, mut flight: Flight) {
        if flight.to == self.addr {
            self.hit(flight.from, &mut flight.bytes);
            return;
        }
        if let Some((addr, engine)) = &mut self.beacon
            && *addr == flight.to
        {
            let beacon = *addr;
            let mut answers = Vec::new();
            engine.handle_datagram(self.now, flight.from, &flight.bytes, &mut |to, bytes: &[u8]| {
                answers.push((to, bytes.to_vec()));
            });
            for (to, bytes) in answers {
                self.send_to(beacon, to, &bytes);
            }
            return;
        }
        if self.keep {
            self.inboxes.entry(flight.to).or_default().push_back(flight.bytes);
        }
    }
}

/// 32 bytes that differ for every (seed, salt).
pub(super) fn seed_bytes(seed: u64, salt: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&salt.to_le_bytes());
    *hasher.finalize().as_bytes()
}
