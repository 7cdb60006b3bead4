//! Two endpoints, one link, one virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::{BeaconConfig, BeaconEngine};
use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{
    Config, Endpoint, Event, Mode, PeerConfig, PeerPolicy, RecvMeta, SecureConfig, SecureMode, TransmitBuf,
};
use pilotage_wire::Address;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::link::{Link, LinkState};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The first, usually the one that connects.
    A,
    /// The second.
    B,
}

impl Side {
    fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// One endpoint and what the harness knows of it.
pub struct Host {
    /// The endpoint under test.
    pub endpoint: Endpoint,
    /// Events polled and not yet looked at.
    pub events: VecDeque<Event>,
    /// Its present UDP address; assign another one to make it roam.
    pub addr: SocketAddr,
    /// Its overlay address.
    pub address: Address,
    /// Its Ed25519 key.
    pub key: [u8; 32],
    identity_seed: [u8; 32],
    pub(crate) buf: TransmitBuf,
}

/// A datagram on its way.
struct Flight {
    to: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// Two hosts that know each other's keys and addresses.
pub struct Pair {
    /// The virtual time.
    pub now: Instant,
    /// From A to B, and back.
    pub links: [Link; 2],
    /// Every datagram that was put on the wire, if [`Pair::record`] is set: (from A?, bytes).
    pub recorded: Vec<(Side, Vec<u8>)>,
    /// An attacker on the way: what it says `true` to does not arrive.
    pub censor: Option<Censor>,
    /// Keep copies of all datagrams.
    pub record: bool,
    /// Datagrams put on the wire so far, by side.
    pub sent: [u64; 2],
    start: Instant,
    /// Steps since time last moved.
    still: u32,
    hosts: [Host; 2],
    states: [LinkState; 2],
    flights: BTreeMap<(Instant, u64), Flight>,
    beacon: Option<(SocketAddr, BeaconEngine)>,
    /// When B is told of A.
    told_at: Option<Instant>,
    /// Nothing passes between the hosts directly; the beacon is reached all the same.
    pub direct_blocked: bool,
    flight_number: u64,
    rng: ChaCha8Rng,
    hasher: blake3::Hasher,
    cfg: Config,
    modes: Modes,
}

/// Which of two hosts speaks S1, and what it knows of the other from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Modes {
    /// Of A and B.
    pub modes: [SecureMode; 2],
    /// Whether each is told the other's prekey at the introduction; if not they know the identities only.
    pub told: bool,
    /// Life of keys.
    pub limits: Limits,
    /// Whether the hosts speak S1 without its own streams: the draft's packets in its frames.
    pub legacy: [bool; 2],
    /// The post-quantum upgrade at each.
    pub post_quantum: [PostQuantum; 2],
    /// What the second host's wall clock differs, seconds.
    pub skew: i64,
    /// The least mode that A accepts from B.
    pub least: Mode,
    /// B has not heard of A: it has to look A up, which takes so long.
    pub stranger: Option<Duration>,
}

impl Modes {
    /// The same mode at both sides.
    pub fn both(mode: SecureMode) -> Self {
        Self { modes: [mode; 2], ..Self::default() }
    }
}

/// Looks at a datagram of a side.
pub type Censor = Box<dyn FnMut(Side, &[u8]) -> bool>;

/// The wall clock when virtual time begins, Unix ms.
const UNIX_MS: i64 = 1_800_000_000_000;

impl Pair {
    /// Two hosts with default settings over `link` in both directions.
    pub fn new(seed: u64, link: Link) -> Self {
        Self::with_config(seed, link, Config::default())
    }

    /// Two hosts with the same settings.
    pub fn with_config(seed: u64, link: Link, cfg: Config) -> Self {
        Self::with_modes(seed, link, cfg, Modes::default())
    }

    /// Two hosts of which some speak S1.
    pub fn with_modes(seed: u64, link: Link, cfg: Config, modes: Modes) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let now = crate::base_instant();
        let hosts = [host(0, &cfg, now, &mut rng), host(1, &cfg, now, &mut rng)];
        let mut pair = Self {
            now,
            links: [link.clone(), link],
            recorded: Vec::new(),
            censor: None,
            record: false,
            sent: [0, 0],
            start: now,
            still: 0,
            hosts,
            states: Default::default(),
            flights: BTreeMap::new(),
            beacon: None,
            told_at: None,
            direct_blocked: false,
            flight_number: 0,
            rng,
            hasher: blake3::Hasher::new(),
            cfg,
            modes,
        };
        for i in 0..2 {
            pair.secure(i);
        }
        for me in [0, 1] {
            pair.introduce(me);
        }
        pair
    }

    /// Switches S1 on where it is to be.
    fn secure(&mut self, i: usize) {
        let mode = self.modes.modes[i];
        if mode == SecureMode::Draft {
            return;
        }
        let past = self.now.duration_since(self.start).as_millis() as i64;
        let unix_ms = UNIX_MS + past + if i == 1 { self.modes.skew * 1_000 } else { 0 };
        let device = [0x40 + i as u8; 32];
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let limits = self.modes.limits;
        let streams = !self.modes.legacy[i];
        let post_quantum = self.modes.post_quantum[i];
        let config =
            SecureConfig { limits, streams, post_quantum, ..SecureConfig::new(mode, unix_ms as u64, device) };
        assert!(self.hosts[i].endpoint.enable_s1(self.now, config, &seed));
    }

    /// Tells a host of the other.
    fn introduce(&mut self, me: usize) {
        if me == 1 && self.modes.stranger.is_some() {
            return;
        }
        let other = &self.hosts[1 - me];
        let prekey = other.endpoint.prekey().filter(|_| self.modes.told);
        let least = if me == 0 { self.modes.least } else { Mode::Draft };
        let policy = PeerPolicy { least, ..PeerPolicy::default() };
        let peer = PeerConfig { prekey, policy, ..introduction(other) };
        self.hosts[me].endpoint.add_peer(self.now, peer).expect("a fresh endpoint takes a peer");
    }

    /// One of the hosts.
    pub fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side.index()]
    }

    /// One of the endpoints.
    pub fn endpoint(&mut self, side: Side) -> &mut Endpoint {
        &mut self.hosts[side.index()].endpoint
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    /// Hash over everything that was delivered, with its time: equal for equal seeds.
    pub fn digest(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    /// What the hosts speak and know; counts for the next [`Self::restart`].
    pub fn modes(&mut self) -> &mut Modes {
        &mut self.modes
    }

    /// Replaces a host by a fresh process with the same identity: all its state is gone.
    pub fn restart(&mut self, side: Side) {
        let i = side.index();
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let identity = Identity::from_seed(self.hosts[i].identity_seed);
        let endpoint = Endpoint::new(self.cfg.clone(), identity, self.hosts[i].address, seed, self.now);
        self.hosts[i].endpoint = endpoint;
        self.hosts[i].events.clear();
        self.secure(i);
        self.introduce(i);
    }

    /// Puts bytes on the wire towards `to` as if `from` had sent them, past all impairments.
    pub fn inject(&mut self, from: SocketAddr, to: Side, bytes: &[u8]) {
        let key = (self.now + Duration::from_micros(1), self.flight_number);
        self.flight_number += 1;
        let to = self.hosts[to.index()].addr;
        self.flights.insert(key, Flight { to, from, bytes: bytes.to_vec() });
    }

    /// Sends what is due, then goes to the next thing that happens, at most `until`. `false` once that is reached.
    pub fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let next_flight = self.flights.keys().next().map(|(at, _)| *at);
        let next_timer = self.hosts.iter_mut().filter_map(|h| h.endpoint.poll_timeout()).min();
        let next = [next_flight, next_timer, self.told_at].into_iter().flatten().min();
        let Some(next) = next.filter(|t| *t <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        // No busy loop: an endpoint that wants to be called again and again at one instant is broken.
        self.still = if next > self.now { 0 } else { self.still + 1 };
        assert!(self.still < 100_000, "busy loop at {:?}: timers {next_timer:?}", self.elapsed());
        self.now = self.now.max(next);
        for host in &mut self.hosts {
            if host.endpoint.poll_timeout().is_some_and(|t| t <= self.now) {
                host.endpoint.handle_timeout(self.now);
            }
        }
        if self.told_at.take_if(|at| *at <= self.now).is_some() {
            let peer = introduction(&self.hosts[0]);
            self.hosts[1].endpoint.resolve_peer(self.now, peer.address.node, Some(peer));
        }
        while let Some(entry) = self.flights.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let flight = entry.remove();
            self.deliver(flight);
        }
        self.flush();
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

    /// Adds a beacon that both hosts use.
    pub fn add_beacon(&mut self) {
        let addr = SocketAddr::from(([192, 0, 2, 200], 9001));
        let config = BeaconConfig { verify: Some(pilotage_proto::crypto::verify), ..BeaconConfig::default() };
        self.beacon = Some((addr, BeaconEngine::new(config, 1)));
        for host in &mut self.hosts {
            host.endpoint.set_beacon(self.now, Some(addr));
        }
    }

    /// What the beacon has to say to a datagram, on its way.
    fn deliver_to_beacon(&mut self, flight: &Flight) {
        let Some((addr, engine)) = &mut self.beacon else { return };
        let mut answers = Vec::new();
        engine.handle_datagram(self.now, flight.from, &flight.bytes, &mut |to, bytes: &[u8]| {
            answers.push(Flight { to, from: *addr, bytes: bytes.to_vec() });
        });
        for answer in answers {
            let key = (self.now + self.links[0].delay, self.flight_number);
            self.flight_number += 1;
            self.flights.insert(key, answer);
        }
    }

    fn deliver(&mut self, mut flight: Flight) {
        if self.beacon.as_ref().is_some_and(|(addr, _)| *addr == flight.to) {
            self.deliver_to_beacon(&flight);
            return;
        }
        let Some(i) = self.hosts.iter().position(|h| h.addr == flight.to) else { return };
        self.hasher.update(&self.now.duration_since(self.start).as_nanos().to_le_bytes());
        self.hasher.update(&[i as u8]);
        self.hasher.update(&flight.bytes);
        let meta = RecvMeta { remote: flight.from, local_ip: None };
        self.hosts[i].endpoint.handle_datagram(self.now, &meta, &mut flight.bytes);
    }

    /// Takes everything that the endpoints want to send and report.
    pub fn flush(&mut self) {
        for i in 0..2 {
            while let Some(transmit) = {
                let host = &mut self.hosts[i];
                host.endpoint.poll_transmit(self.now, &mut host.buf)
            } {
                let batch = self.hosts[i].buf.bytes(transmit.size).to_vec();
                let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in batch.chunks(segment) {
                    self.put_on_wire(i, transmit.destination, datagram);
                }
            }
            while let Some(event) = self.hosts[i].endpoint.poll_event() {
                if let (Event::LookupPeer { .. }, Some(takes)) = (&event, self.modes.stranger) {
                    self.told_at = Some(self.now + takes);
                }
                self.hosts[i].events.push_back(event);
            }
        }
    }

    fn put_on_wire(&mut self, from: usize, to: SocketAddr, datagram: &[u8]) {
        self.sent[from] += 1;
        if self.record {
            self.recorded.push((if from == 0 { Side::A } else { Side::B }, datagram.to_vec()));
        }
        let side = if from == 0 { Side::A } else { Side::B };
        if self.censor.as_mut().is_some_and(|censor| censor(side, datagram)) {
            return;
        }
        let via_beacon = self.beacon.as_ref().is_some_and(|(addr, _)| *addr == to);
        if self.direct_blocked && !via_beacon {
            return;
        }
        let source = self.hosts[from].addr;
        let mut arrivals = Vec::new();
        self.links[from].carry(self.now, datagram, &mut self.states[from], &mut self.rng, &mut arrivals);
        for arrival in arrivals {
            let key = (arrival.at, self.flight_number);
            self.flight_number += 1;
            self.flights.insert(key, Flight { to, from: source, bytes: arrival.bytes });
        }
    }
}

pub(crate) fn host(index: u8, cfg: &Config, now: Instant, rng: &mut ChaCha8Rng) -> Host {
    let mut identity_seed = [0; 32];
    rng.fill_bytes(&mut identity_seed);
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let identity = Identity::from_seed(identity_seed);
    let key = identity.public_key();
    let address = Address::new(0, 0x1000 + u32::from(index));
    Host {
        endpoint: Endpoint::new(cfg.clone(), identity, address, seed, now),
        events: VecDeque::new(),
        addr: SocketAddr::from(([192, 0, 2, index + 1], 4000)),
        address,
        key,
        identity_seed,
        buf: TransmitBuf::new(16),
    }
}

pub(crate) fn introduction(host: &Host) -> PeerConfig {
    PeerConfig {
        address: host.address,
        key: Some(host.key),
        endpoint: Some(host.addr),
        policy: PeerPolicy::default(),
        prekey: None,
    }
}
