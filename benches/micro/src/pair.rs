//! Two endpoints of the sans-IO core, joined by a wire in memory, in virtual time: what the micro benches, the
//! count of allocations and the measurement of memory run on.
//!
//! The wire copies each datagram once, as a kernel would, into buffers that it uses again: it allocates nothing once
//! it has carried the most that is under way at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::crypto::Identity;
use pilotage_proto::{
    Config, ConnectionId, Endpoint, Event, PeerConfig, PeerPolicy, RecvMeta, SecureConfig, SecureMode,
    TransmitBuf,
};
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::{Address, NetworkId, SocketAddress};

/// The port that [`Pair::connect`] listens on.
pub const PORT: u16 = 1011;
/// Most datagrams of one batch, as the kernel takes them.
const BATCH: usize = 64;

/// One end of the wire.
#[derive(Debug)]
pub struct Host {
    /// The core.
    pub endpoint: Endpoint,
    /// Where datagrams for it go.
    pub place: SocketAddr,
    key: [u8; 32],
    out: TransmitBuf,
}

/// One datagram under way.
#[derive(Debug)]
struct Flight {
    due: Instant,
    from: SocketAddr,
    to: SocketAddr,
    len: usize,
    bytes: Vec<u8>,
}

/// What the wire does to datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wire {
    /// One way.
    pub delay: Duration,
    /// Every so many datagrams one is lost; 0 for none.
    pub lose_every: usize,
    /// Every so many datagrams one overtakes the one before it; 0 for none.
    pub swap_every: usize,
}

impl From<Duration> for Wire {
    fn from(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// Two hosts and the wire between them.
#[derive(Debug)]
pub struct Pair {
    /// Who connects.
    pub a: Host,
    /// Who listens.
    pub b: Host,
    /// Virtual time.
    pub now: Instant,
    /// May be changed at any time.
    pub wire: Wire,
    flights: VecDeque<Flight>,
    unused: Vec<Flight>,
    /// Datagrams that were sent so far.
    sent: usize,
}

/// The configuration of a comparison: datagrams of this size from the start, no search for larger ones.
pub fn fixed_size(datagram: usize) -> Config {
    Config {
        max_datagram_size: datagram,
        initial_datagram_size: datagram,
        mtu_discovery: false,
        ..Config::default()
    }
}

impl Host {
    /// A host whose identity, place and random source follow from `number`, which is not 0.
    pub fn new(number: u32, config: Config, now: Instant) -> Self {
        let mut seed = [0x5A; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let identity = Identity::from_seed(seed);
        let key = identity.public_key();
        // One id of a great many is reserved; the number then is not for use.
        let node = derive_node_id(&key, 0).unwrap_or_default();
        let [_, x, y, z] = number.to_be_bytes();
        let place = SocketAddr::from(([10, x, y, z], 4_000));
        let address = Address { network: NetworkId(0), node };
        let endpoint = Endpoint::new(config, identity, address, seed, now);
        Self { endpoint, place, key, out: TransmitBuf::new(BATCH) }
    }

    /// Speaks S1 only, from now on. Whether it can.
    pub fn speak_s1(&mut self, now: Instant) -> bool {
        let config = SecureConfig::new(SecureMode::S1, 1_800_000_000_000, [7; 32]);
        self.endpoint.enable_s1(now, config, &self.key)
    }

    /// Its address as a stream or datagram port.
    pub fn port(&self, port: u16) -> SocketAddress {
        SocketAddress { address: self.endpoint.local_address(), port }
    }

    /// Introduces `other` by key and place. Whether it was taken.
    pub fn introduce(&mut self, now: Instant, other: &Self) -> bool {
        let peer = PeerConfig {
            address: other.endpoint.local_address(),
            key: Some(other.key),
            endpoint: Some(other.place),
            policy: PeerPolicy::default(),
            prekey: None,
        };
        self.endpoint.add_peer(now, peer).is_ok()
    }

    fn run_timers(&mut self, now: Instant) {
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now);
        }
    }
}

impl Pair {
    /// Two hosts that know each other, with nothing agreed yet.
    pub fn new(config: &Config, wire: Wire, now: Instant) -> Self {
        let (a, b) = (Host::new(1, config.clone(), now), Host::new(2, config.clone(), now));
        Self::of(a, b, wire, now)
    }

    /// Two given hosts, which are introduced to each other.
    pub fn of(a: Host, b: Host, wire: Wire, now: Instant) -> Self {
        let mut pair = Self { a, b, now, wire, flights: VecDeque::new(), unused: Vec::new(), sent: 0 };
        pair.a.introduce(now, &pair.b);
        pair.b.introduce(now, &pair.a);
        pair
    }

    /// A connection from `a` to `b`, established on both sides; `None` if it does not come to be.
    pub fn connect(&mut self) -> Option<(ConnectionId, ConnectionId)> {
        let _ = self.b.endpoint.listen(PORT); // it may do so already
        let ours = self.a.endpoint.connect(self.now, self.b.port(PORT)).ok()?;
        for _ in 0..1_000 {
            self.step(Duration::from_millis(1));
            self.drain_events();
            if self.a.endpoint.is_open(ours)
                && let Some((theirs, _)) = self.b.endpoint.accept(PORT)
            {
                return Some((ours, theirs));
            }
        }
        None
    }

    /// Lets `time` pass, then runs the deadlines that are due, delivers what has arrived, and sends what that released.
    /// How many datagrams were delivered.
    pub fn step(&mut self, time: Duration) -> usize {
        self.now += time;
        let mut delivered = 0;
        loop {
            self.a.run_timers(self.now);
            self.b.run_timers(self.now);
            self.send();
            let arrived = self.deliver();
            delivered += arrived;
            if arrived == 0 {
                return delivered;
            }
        }
    }

    /// Takes what both hosts have to send onto the wire.
    pub fn send(&mut self) {
        let due = self.now + self.wire.delay;
        for host in [&mut self.a, &mut self.b] {
            while let Some(transmit) = host.endpoint.poll_transmit(self.now, &mut host.out) {
                let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in host.out.bytes(transmit.size).chunks(segment) {
                    self.sent += 1;
                    if every(self.wire.lose_every, self.sent) {
                        continue;
                    }
                    let mut flight = self.unused.pop().unwrap_or_else(|| Flight {
                        due,
                        from: host.place,
                        to: transmit.destination,
                        len: 0,
                        bytes: Vec::new(),
                    });
                    if flight.bytes.len() < datagram.len() {
                        flight.bytes.resize(datagram.len(), 0);
                    }
                    flight.bytes[..datagram.len()].copy_from_slice(datagram);
                    flight.len = datagram.len();
                    (flight.due, flight.from, flight.to) = (due, host.place, transmit.destination);
                    self.flights.push_back(flight);
                    let last = self.flights.len() - 1;
                    if every(self.wire.swap_every, self.sent) && last > 0 {
                        self.flights.swap(last - 1, last);
                    }
                }
            }
        }
    }

    /// Delivers what has arrived by now; how many datagrams that were.
    pub fn deliver(&mut self) -> usize {
        let mut count = 0;
        while self.flights.front().is_some_and(|f| f.due <= self.now) {
            let Some(mut flight) = self.flights.pop_front() else { break };
            let meta = RecvMeta { remote: flight.from, local_ip: None };
            let host = if flight.to == self.a.place { &mut self.a } else { &mut self.b };
            host.endpoint.handle_datagram(self.now, &meta, &mut flight.bytes[..flight.len]);
            self.unused.push(flight);
            count += 1;
        }
        count
    }

    /// Takes all events of both hosts and forgets them.
    pub fn drain_events(&mut self) {
        for host in [&mut self.a, &mut self.b] {
            while host.endpoint.poll_event().is_some() {}
        }
    }

    /// Whether one of the hosts' events says that keys were agreed. Takes all events.
    pub fn tunnel_came_up(&mut self) -> bool {
        let mut up = false;
        for host in [&mut self.a, &mut self.b] {
            while let Some(event) = host.endpoint.poll_event() {
                up |= matches!(event, Event::TunnelUp { .. });
            }
        }
        up
    }
}

fn every(period: usize, count: usize) -> bool {
    period > 0 && count.is_multiple_of(period)
}

/// Bulk streams over a [`Pair`]: `a` writes whenever there is room, `b` reads whatever has come.
#[derive(Debug)]
pub struct Bulk {
    /// The hosts.
    pub pair: Pair,
    /// The sender's and the receiver's end of each stream.
    pub streams: Vec<(ConnectionId, ConnectionId)>,
    source: Vec<u8>,
    sink: Vec<u8>,
    /// Bytes that were read.
    pub delivered: u64,
}

impl Bulk {
    /// So many established connections; `None` if one does not come to be. `chunk` bytes are written and read at once.
    pub fn new(config: &Config, wire: Wire, streams: usize, chunk: usize, now: Instant) -> Option<Self> {
        Self::of(Pair::new(config, Wire::default(), now), wire, streams, chunk)
    }

    /// The same in tunnels of S1.
    pub fn in_s1(config: &Config, wire: Wire, streams: usize, chunk: usize, now: Instant) -> Option<Self> {
        let (mut a, mut b) = (Host::new(1, config.clone(), now), Host::new(2, config.clone(), now));
        if !(a.speak_s1(now) && b.speak_s1(now)) {
            return None;
        }
        Self::of(Pair::of(a, b, Wire::default(), now), wire, streams, chunk)
    }

    fn of(mut pair: Pair, wire: Wire, streams: usize, chunk: usize) -> Option<Self> {
        let streams = (0..streams).map(|_| pair.connect()).collect::<Option<Vec<_>>>()?;
        pair.wire = wire;
        Some(Self { pair, streams, source: vec![0x5A; chunk], sink: vec![0; chunk], delivered: 0 })
    }

    /// One turn: write what fits up to the chunk, let `time` pass, read what came. How many datagrams were delivered.
    pub fn turn(&mut self, time: Duration) -> usize {
        for (ours, _) in &self.streams {
            // Full: it is tried again next time.
            let _ = self.pair.a.endpoint.write(self.pair.now, *ours, &self.source);
        }
        self.drain(time)
    }

    /// So many turns.
    pub fn turns(&mut self, count: usize, time: Duration) -> usize {
        (0..count).map(|_| self.turn(time)).sum()
    }

    /// As [`Self::turn`], without writing.
    pub fn drain(&mut self, time: Duration) -> usize {
        let delivered = self.pair.step(time);
        for (_, theirs) in &self.streams {
            while let Ok(len @ 1..) = self.pair.b.endpoint.read(self.pair.now, *theirs, &mut self.sink) {
                self.delivered += len as u64;
            }
        }
        self.pair.drain_events();
        delivered
    }
}
