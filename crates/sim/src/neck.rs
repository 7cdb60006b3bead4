//! Many flows through one bottleneck: each has endpoints, a tunnel and a controller of its own, all share one link.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::{Config, ConnectionId, ControllerKind, RecvMeta};
use pilotage_wire::SocketAddress;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::link::{Fate, Link, LinkState};
use crate::pair::{Host, host, introduction};

/// The port that the receivers listen on.
const PORT: u16 = 1000;

/// Headers below a datagram.
const IP_AND_UDP: u64 = 28;

/// One sender and its receiver.
struct Stream {
    starts: Instant,
    /// The sender's end, once it was begun, and the receiver's.
    ends: [Option<ConnectionId>; 2],
    read: u64,
}

/// A bottleneck and what goes through it: hosts `2 i` send to hosts `2 i + 1`, without end.
pub struct Neck {
    now: Instant,
    start: Instant,
    link: Link,
    hosts: Vec<Host>,
    streams: Vec<Stream>,
    /// Towards the receivers, and back.
    states: [LinkState; 2],
    flights: BTreeMap<(Instant, u64), (usize, SocketAddr, Vec<u8>)>,
    number: u64,
    rng: ChaCha8Rng,
    chunk: Vec<u8>,
    /// Time that datagrams have waited in the queue, and how many they were.
    waited: (Duration, u64),
    dropped: u64,
    wire: u64,
    idle: Duration,
}

impl Neck {
    /// One flow for each of `flows`, that begins so long after the start.
    pub fn new(seed: u64, link: Link, flows: &[(ControllerKind, Duration)]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let now = crate::base_instant();
        let mut hosts = Vec::new();
        let mut streams = Vec::new();
        for (i, (kind, after)) in flows.iter().enumerate() {
            let config = Config { congestion: *kind, max_datagram_size: 1_452, ..Config::default() };
            let first = 2 * i as u8;
            let mut pair = [host(first, &config, now, &mut rng), host(first + 1, &config, now, &mut rng)];
            for (me, other) in [(0, 1), (1, 0)] {
                let peer = introduction(&pair[other]);
                pair[me].endpoint.add_peer(now, peer).expect("a fresh endpoint takes a peer");
            }
            pair[1].endpoint.listen(PORT).expect("a free port");
            hosts.extend(pair);
            streams.push(Stream { starts: now + *after, ends: [None, None], read: 0 });
        }
        Self {
            now,
            start: now,
            link,
            hosts,
            streams,
            states: Default::default(),
            flights: BTreeMap::new(),
            number: 0,
            rng,
            chunk: vec![0; 256 << 10],
            waited: Default::default(),
            dropped: 0,
            wire: 0,
            idle: Duration::ZERO,
        }
    }

    /// Bytes of IP packets that the senders have sent.
    pub fn wire(&self) -> u64 {
        self.wire
    }

    /// Bytes that each receiver has read so far.
    pub fn read(&self) -> Vec<u64> {
        self.streams.iter().map(|s| s.read).collect()
    }

    /// The mean wait of a datagram in the queue since this was last asked.
    pub fn mean_wait(&mut self) -> Duration {
        let (sum, count) = std::mem::take(&mut self.waited);
        sum / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
    }

    /// Time in which the bottleneck had nothing to carry towards the receivers, up to the last datagram sent.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// Datagrams that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Runs until so long after the start.
    pub fn run_until(&mut self, end: Duration) {
        let until = self.start + end;
        for i in 0..self.hosts.len() {
            self.serve(i);
        }
        loop {
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let timer = self.hosts.iter_mut().filter_map(|h| h.endpoint.poll_timeout()).min();
            let begin = self.streams.iter().filter(|s| s.ends[0].is_none()).map(|s| s.starts).min();
            let Some(next) = [flight, timer, begin].into_iter().flatten().min().filter(|t| *t <= until)
            else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            for i in 0..self.hosts.len() {
                let host = &mut self.hosts[i];
                let due = host.endpoint.poll_timeout().is_some_and(|t| t <= self.now);
                if due {
                    host.endpoint.handle_timeout(self.now);
                }
                let stream = &self.streams[i / 2];
                if due || i % 2 == 0 && stream.ends[0].is_none() && stream.starts <= self.now {
                    self.serve(i);
                }
            }
            while let Some(entry) = self.flights.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, from, mut bytes) = entry.remove();
                let meta = RecvMeta { remote: from, local_ip: None };
                self.hosts[to].endpoint.handle_datagram(self.now, &meta, &mut bytes);
                self.serve(to);
            }
        }
    }

    /// The application of a host, and what it wants to send.
    fn serve(&mut self, i: usize) {
        let to = SocketAddress { address: self.hosts[i ^ 1].address, port: PORT };
        let (host, stream) = (&mut self.hosts[i], &mut self.streams[i / 2]);
        let endpoint = &mut host.endpoint;
        let end = &mut stream.ends[i % 2];
        if i.is_multiple_of(2) {
            if end.is_none() && stream.starts <= self.now {
                *end = endpoint.connect(self.now, to).ok();
            }
            if let Some(id) = *end {
                while endpoint.write(self.now, id, &self.chunk).is_ok_and(|n| n > 0) {}
            }
        } else {
            *end = end.or_else(|| endpoint.accept(PORT).map(|(id, _)| id));
            if let Some(id) = *end {
                while let Ok(n @ 1..) = endpoint.read(self.now, id, &mut self.chunk) {
                    stream.read += n as u64;
                }
            }
        }
        while endpoint.poll_event().is_some() {}
        while let Some(transmit) = {
            let host = &mut self.hosts[i];
            host.endpoint.poll_transmit(self.now, &mut host.buf)
        } {
            let batch = self.hosts[i].buf.bytes(transmit.size).to_vec();
            for datagram in batch.chunks(transmit.segment_size.unwrap_or(transmit.size).max(1)) {
                self.put_on_wire(i, datagram);
            }
        }
    }

    fn put_on_wire(&mut self, from: usize, datagram: &[u8]) {
        let mut arrivals = Vec::new();
        let state = &mut self.states[from % 2];
        if from.is_multiple_of(2) {
            self.idle += self.now.saturating_duration_since(state.free_at.unwrap_or(self.start));
        }
        let fate = self.link.carry(self.now, datagram, state, &mut self.rng, &mut arrivals);
        if from.is_multiple_of(2) {
            self.dropped += u64::from(fate == Fate::Queue);
            self.wire += datagram.len() as u64 + IP_AND_UDP;
        }
        for arrival in arrivals {
            if from.is_multiple_of(2) {
                let rate = self.link.rate.unwrap_or(u64::MAX);
                let bare = self.link.delay + Duration::from_secs_f64(datagram.len() as f64 / rate as f64);
                self.waited.0 += arrival.at.saturating_duration_since(self.now + bare);
                self.waited.1 += 1;
            }
            let key = (arrival.at, self.number);
            self.number += 1;
            self.flights.insert(key, (from ^ 1, self.hosts[from].addr, arrival.bytes));
        }
    }
}
