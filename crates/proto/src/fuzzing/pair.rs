//! Two whole endpoints, with everything between them in the fuzzer's hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::SocketAddress;

use super::net::{self, Relay, overlay, udp};
use super::{Clock, Input, check, fill};
use crate::Endpoint;
use crate::config::{Config, PeerConfig, PeerPolicy};
use crate::crypto::{Identity, toy};
use crate::event::{ConnectionId, Event, ReadError};
use crate::transmit::RecvMeta;

/// Most bytes of one write or read.
const CHUNK: usize = 4_096;
/// Operations of one execution.
const OPS: usize = 120;
/// Datagrams on their way; the oldest is lost beyond it.
const QUEUE: usize = 128;
/// Delivered datagrams that can be replayed.
const HISTORY: usize = 32;
/// Connections that one side has open at most.
const CONNECTIONS: usize = 6;
/// The port that both listen on, and the one that both take datagrams on.
const PORT: u16 = 80;
/// Time from one host to the other while the world heals.
const DELAY: Duration = Duration::from_millis(20);
/// Virtual time and steps in which the world must be well again.
const HEAL_TIME: Duration = Duration::from_secs(400);
const HEAL_STEPS: usize = 6_000;
/// The number that the beacon has among the hosts.
const BEACON: u8 = 9;

struct Conn {
    id: ConnectionId,
    /// Names of the streams that it carries away and brings.
    out: u64,
    back: u64,
    read: u64,
    eof: bool,
    /// The application gave its handle back.
    closed: bool,
    failed: bool,
    /// A host of it restarted, or one side gave it up: delivery is not promised any more.
    broken: bool,
}

struct Host {
    endpoint: Endpoint,
    identity: Identity,
    addr: SocketAddr,
    place: u8,
    lives: u8,
    conns: Vec<Conn>,
}

struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// What was written to a stream, and whether its end was made.
#[derive(Default)]
struct Written {
    bytes: u64,
    shut: bool,
}

struct World {
    hosts: [Host; 2],
    flights: VecDeque<Flight>,
    history: VecDeque<Flight>,
    relay: Option<Relay>,
    /// Only the relay can be reached.
    blocked: bool,
    streams: BTreeMap<u64, Written>,
    datagrams_sent: u64,
    datagrams_seen: BTreeSet<(u8, u64)>,
    clock: Clock,
    cfg: Config,
    knows_peers: bool,
}

/// Two endpoints with application calls, restarts, roaming, and datagrams that are lost, repeated, reordered, cut,
/// changed and replayed. Checked: delivered bytes are a prefix of those written, no datagram arrives twice or changed,
/// no (key, nonce) pair seals twice, tables keep their bounds, timers lead somewhere; and once the faults stop,
/// all connections end with everything delivered or an error, and a new one works.
pub fn pair(base: Instant, data: &[u8]) {
    toy::forget();
    let mut input = Input::new(data);
    let mut world = World::new(base, &mut input);
    world.settle();
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        world.step(op, &mut input);
        world.settle();
    }
    world.check_bounds();
    world.heal();
    world.prove_alive();
}

impl World {
    fn new(base: Instant, input: &mut Input<'_>) -> Self {
        let (kind, more) = (input.u8(), input.u8());
        let cfg = Config {
            send_buffer: 16_384,
            recv_buffer: 16_384,
            mtu_discovery: kind & 1 != 0,
            max_datagram_size: 1_452,
            max_connections_per_peer: CONNECTIONS,
            max_connections: 2 * CONNECTIONS,
            accept_queue: 3,
            datagram_queue: 3,
            rekey_after_frames: [1 << 22, 16, 64, 256][usize::from(kind >> 1 & 3)],
            rekey_after: Duration::from_secs([3_600, 5][usize::from(kind >> 3 & 1)]),
            initial_sequence_number: (kind & 0x10 != 0).then_some(u32::MAX - 2_000),
            ..Config::default()
        };
        let hosts = [0, 1].map(|i| Self::host(i, 0, &cfg, base));
        let mut world = Self {
            hosts,
            flights: VecDeque::new(),
            history: VecDeque::new(),
            relay: (more & 1 != 0).then(Relay::default),
            blocked: more & 3 == 3,
            streams: BTreeMap::new(),
            datagrams_sent: 0,
            datagrams_seen: BTreeSet::new(),
            clock: Clock::new(base),
            cfg,
            knows_peers: more & 4 == 0,
        };
        for i in [0, 1] {
            world.start(i, true);
        }
        // Most inputs begin with keys agreed and a connection open.
        if more & 0x80 == 0 {
            world.connect(0);
            for _ in 0..4 {
                world.exchange();
            }
        }
        world
    }

    fn host(i: u8, lives: u8, cfg: &Config, now: Instant) -> Host {
        let identity = Identity::from_seed([i + 1; 32]);
        let endpoint = Endpoint::new(cfg.clone(), identity.clone(), overlay(i), [i * 16 + lives; 32], now);
        Host { endpoint, identity, addr: udp(i, 0), place: 0, lives, conns: Vec::new() }
    }

    fn start(&mut self, i: usize, introduced: bool) {
        let now = self.clock.now;
        let peer = self.introduction(1 - i);
        let beacon = self.relay.is_some().then(|| udp(BEACON, 0));
        let endpoint = &mut self.hosts[i].endpoint;
        endpoint.set_beacon(now, beacon);
        endpoint.listen(PORT).expect("a fresh endpoint");
        endpoint.bind_datagram(PORT).expect("a fresh endpoint");
        if introduced {
            endpoint.add_peer(now, peer).expect("a fresh endpoint takes a peer");
        }
    }

    fn introduction(&self, i: usize) -> PeerConfig {
        let host = &self.hosts[i];
        PeerConfig {
            address: overlay(i as u8),
            key: Some(host.identity.public_key()),
            endpoint: Some(host.addr),
            policy: PeerPolicy::default(),
            prekey: None,
        }
    }

    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        let i = usize::from(op >> 7);
        match op & 0x0F {
            0 => self.write(i, input),
            1 => self.read_one(i, input),
            2..=4 => {
                for _ in 0..=(op >> 4 & 7) {
                    self.deliver(0);
                    self.settle();
                }
            }
            5 => {
                let at = input.below(QUEUE);
                self.deliver(at);
            }
            6 => {
                for _ in 0..=(op >> 4 & 7) {
                    self.flights.pop_front();
                }
            }
            7 => self.disturb(op >> 4 & 7, input),
            8 => self.clock.pass(input.time()),
            9 | 10 => self.next_timeout(),
            11 => self.exchange(),
            12 => self.app(i, op >> 4 & 7, input),
            13 => self.rare(i, op >> 4 & 7, input),
            14 => self.datagram(i, input),
            _ => self.replay(input),
        }
        self.fire();
    }

    // ------------------------------------------------------------------ the applications

    fn connect(&mut self, i: usize) -> Option<ConnectionId> {
        let host = &mut self.hosts[i];
        let to = SocketAddress { address: overlay(1 - i as u8), port: PORT };
        let id = host.endpoint.connect(self.clock.now, to).ok()?;
        let port = host.endpoint.local_port(id).expect("it was just made");
        self.track(i, id, i, port);
        Some(id)
    }

    /// A stream's name tells who dialled from which port, in which direction it runs, and nothing else that only
    /// one side could know.
    fn track(&mut self, i: usize, id: ConnectionId, dialler: usize, port: u16) {
        let name = |from: usize| (port as u64) << 8 | (dialler as u64) << 4 | from as u64;
        let (out, back) = (name(i), name(1 - i));
        let conn = Conn { id, out, back, read: 0, eof: false, closed: false, failed: false, broken: false };
        self.hosts[i].conns.push(conn);
    }

    fn write(&mut self, i: usize, input: &mut Input<'_>) {
        let (which, len) = (input.below(CONNECTIONS), input.len(CHUNK));
        let host = &mut self.hosts[i];
        let Some(conn) = host.conns.get(which) else { return };
        let stream = self.streams.entry(conn.out).or_default();
        let mut buf = [0u8; CHUNK];
        fill(conn.out, stream.bytes, &mut buf[..len]);
        if let Ok(n) = host.endpoint.write(self.clock.now, conn.id, &buf[..len]) {
            assert!(n <= len);
            stream.bytes += n as u64;
        }
    }

    fn read_one(&mut self, i: usize, input: &mut Input<'_>) {
        let (which, len) = (input.below(CONNECTIONS), input.len(CHUNK).max(1));
        if which < self.hosts[i].conns.len() {
            self.read(i, which, len);
        }
    }

    fn read(&mut self, i: usize, which: usize, len: usize) {
        let host = &mut self.hosts[i];
        let conn = &mut host.conns[which];
        if conn.closed {
            return;
        }
        let mut buf = [0u8; CHUNK];
        let waits = host.endpoint.read_waits(conn.id);
        let read = host.endpoint.read(self.clock.now, conn.id, &mut buf[..len]);
        let blocked = read == Err(ReadError::Blocked);
        // A first read may open a stream, and only that.
        assert!(blocked || !waits, "there was something to read");
        assert!(!blocked || host.endpoint.read_waits(conn.id), "nothing is left to do, and it is not said");
        match read {
            Ok(n) => {
                let written = self.streams.entry(conn.back).or_default();
                check(conn.back, conn.read, &buf[..n]);
                conn.read += n as u64;
                assert!(conn.read <= written.bytes, "more than was written");
                if n == 0 {
                    conn.eof = true;
                    assert!(written.shut, "an end that nobody made");
                    assert_eq!(conn.read, written.bytes, "the end came too soon");
                }
            }
            Err(ReadError::Blocked) => {}
            Err(_) => conn.failed = true,
        }
    }

    fn app(&mut self, i: usize, which: u8, input: &mut Input<'_>) {
        let now = self.clock.now;
        if which < 2 {
            if self.hosts[i].conns.len() < CONNECTIONS {
                self.connect(i);
            }
            return;
        }
        let at = input.below(CONNECTIONS);
        let host = &mut self.hosts[i];
        let Some(conn) = host.conns.get_mut(at) else { return };
        match which {
            2 | 3 => Self::shut(&mut self.streams, &mut host.endpoint, conn, now),
            4 => host.endpoint.set_nodelay(now, conn.id, true),
            5 => {
                host.endpoint.reset(now, conn.id);
                conn.broken = true;
                let (out, back) = (conn.out, conn.back);
                self.break_other(1 - i, out, back);
            }
            6 => Self::close(&mut self.streams, host, at, now),
            _ => {
                let peer = overlay(1 - i as u8);
                host.endpoint.ping(now, peer).ok();
            }
        }
    }

    fn shut(streams: &mut BTreeMap<u64, Written>, endpoint: &mut Endpoint, conn: &mut Conn, now: Instant) {
        match endpoint.shutdown(now, conn.id) {
            Ok(()) => streams.entry(conn.out).or_default().shut = true,
            Err(_) => conn.failed = true,
        }
    }

    /// The handle is dropped: what was written still goes out, what comes is discarded.
    fn close(streams: &mut BTreeMap<u64, Written>, host: &mut Host, at: usize, now: Instant) {
        let conn = &mut host.conns[at];
        if !conn.closed {
            conn.closed = true;
            streams.entry(conn.out).or_default().shut = true;
            host.endpoint.close(now, conn.id);
        }
    }

    fn break_other(&mut self, i: usize, out: u64, back: u64) {
        for conn in self.hosts[i].conns.iter_mut().filter(|c| (c.out, c.back) == (back, out)) {
            conn.broken = true;
        }
    }

    fn datagram(&mut self, i: usize, input: &mut Input<'_>) {
        let len = input.len(1_300);
        let mut buf = [0u8; 1_308];
        let number = self.datagrams_sent;
        self.datagrams_sent += 1;
        buf[..8].copy_from_slice(&number.to_be_bytes());
        fill(number, 8, &mut buf[8..8 + len]);
        let to = SocketAddress { address: overlay(1 - i as u8), port: PORT };
        self.hosts[i].endpoint.send_datagram(self.clock.now, to, PORT, &buf[..8 + len]).ok();
    }

    // ------------------------------------------------------------------ the world

    fn disturb(&mut self, which: u8, input: &mut Input<'_>) {
        let at = input.below(QUEUE);
        if self.flights.is_empty() {
            return;
        }
        let at = at % self.flights.len();
        match which {
            0 | 1 => {
                let flight = &self.flights[at];
                let copy = Flight { from: flight.from, to: flight.to, bytes: flight.bytes.clone() };
                self.flights.push_back(copy);
            }
            2 => self.flights.make_contiguous().reverse(),
            3 => {
                let bytes = &mut self.flights[at].bytes;
                bytes.truncate(input.len(1_500).min(bytes.len().saturating_sub(1)));
            }
            4 => {
                let extra = input.bytes(64);
                self.flights[at].bytes.extend_from_slice(extra);
            }
            5 => self.flights[at].from = udp(input.u8(), input.u8()),
            _ => {
                let place = usize::from(input.u16());
                let flip = input.u8().max(1);
                let bytes = &mut self.flights[at].bytes;
                let len = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(place % len) {
                    *byte ^= flip;
                }
            }
        }
    }

    fn rare(&mut self, i: usize, which: u8, input: &mut Input<'_>) {
        let now = self.clock.now;
        match which {
            0 => self.restart(i),
            1 => {
                let host = &mut self.hosts[i];
                host.place = input.u8() & 0x0F;
                host.addr = udp(i as u8, host.place);
            }
            2 => self.blocked = self.relay.is_some() && !self.blocked,
            3 => {
                let peer = self.introduction(1 - i);
                self.hosts[i].endpoint.add_peer(now, peer).ok();
            }
            4 => {
                let to = self.hosts[1 - i].addr;
                self.hosts[i].endpoint.on_message_too_big(now, to, usize::from(input.u16()));
            }
            5 => self.knows_peers = !self.knows_peers,
            _ => self.check_bounds(),
        }
    }

    /// A new process with the same identity at the same place: all state is gone.
    fn restart(&mut self, i: usize) {
        if self.hosts[i].lives >= 6 {
            return;
        }
        let old = &self.hosts[i];
        let mut fresh = Self::host(i as u8, old.lives + 1, &self.cfg, self.clock.now);
        (fresh.addr, fresh.place) = (old.addr, old.place);
        self.hosts[i] = fresh;
        for conn in &mut self.hosts[1 - i].conns {
            conn.broken = true;
        }
        self.start(i, self.knows_peers);
    }

    fn replay(&mut self, input: &mut Input<'_>) {
        let at = input.below(HISTORY);
        if let Some(old) = self.history.get(at) {
            let copy = Flight { from: old.from, to: old.to, bytes: old.bytes.clone() };
            self.flights.push_front(copy);
            self.deliver(0);
        }
    }

    fn deliver(&mut self, at: usize) {
        let Some(flight) = self.flights.remove(at) else { return };
        let now = self.clock.now;
        if flight.to == udp(BEACON, 0) {
            if let Some(relay) = &mut self.relay {
                let flights = &mut self.flights;
                relay.handle(flight.from, &flight.bytes, |to, bytes| {
                    flights.push_back(Flight { from: udp(BEACON, 0), to, bytes });
                });
            }
            return;
        }
        let Some(host) = self.hosts.iter_mut().find(|h| h.addr == flight.to) else { return };
        let mut bytes = flight.bytes.clone();
        host.endpoint.handle_datagram(now, &RecvMeta { remote: flight.from, local_ip: None }, &mut bytes);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(flight);
    }

    /// Everything that is on its way arrives in order.
    fn exchange(&mut self) {
        self.settle();
        for _ in 0..self.flights.len() {
            self.deliver(0);
        }
        self.settle();
    }

    /// Takes what the endpoints send and report.
    fn settle(&mut self) {
        for i in [0, 1] {
            self.take_events(i);
            let Self { hosts, flights, clock, blocked, .. } = self;
            let from = hosts[i].addr;
            net::drain(&mut hosts[i].endpoint, clock.now, |to, bytes| {
                if !*blocked || to == udp(BEACON, 0) {
                    flights.push_back(Flight { from, to, bytes: bytes.to_vec() });
                }
            });
            self.take_events(i);
        }
        while self.flights.len() > QUEUE {
            self.flights.pop_front();
        }
    }

    fn take_events(&mut self, i: usize) {
        for count in 0.. {
            assert!(count < 10_000, "does not stop reporting");
            let Some(event) = self.hosts[i].endpoint.poll_event() else { break };
            match event {
                Event::Incoming { .. } => {
                    if self.hosts[i].conns.len() < 2 * CONNECTIONS
                        && let Some((id, peer)) = self.hosts[i].endpoint.accept(PORT)
                    {
                        self.track(i, id, 1 - i, peer.port);
                    }
                }
                Event::Datagram { .. } => self.take_datagrams(i),
                Event::LookupPeer { node, .. } => {
                    let known = (node == overlay(1 - i as u8).node).then(|| self.introduction(1 - i));
                    self.hosts[i].endpoint.resolve_peer(self.clock.now, node, known);
                }
                _ => {}
            }
        }
    }

    fn take_datagrams(&mut self, i: usize) {
        while let Some(datagram) = self.hosts[i].endpoint.recv_datagram(PORT) {
            assert_eq!(datagram.from.address.node, overlay(1 - i as u8).node);
            let number =
                datagram.data.first_chunk().map(|n| u64::from_be_bytes(*n)).expect("eight bytes at least");
            assert!(number < self.datagrams_sent, "never sent");
            check(number, 8, &datagram.data[8..]);
            // A restarted host cannot know what the former life has seen; keys of that life are gone, though.
            assert!(self.datagrams_seen.insert((i as u8, number)), "a datagram came twice");
        }
    }

    fn next_timeout(&mut self) {
        let next = self.hosts.iter_mut().filter_map(|h| h.endpoint.poll_timeout()).min();
        if let Some(next) = next {
            self.clock.go_to(next);
        }
    }

    fn fire(&mut self) {
        let now = self.clock.now;
        for host in &mut self.hosts {
            if host.endpoint.poll_timeout().is_some_and(|t| t <= now) {
                host.endpoint.handle_timeout(now);
            }
        }
    }

    fn check_bounds(&self) {
        for host in &self.hosts {
            let held = host.endpoint.memory();
            assert!(held.connections <= 2 * CONNECTIONS && held.peers <= 2 && held.lookups <= 64);
            assert!(held.received <= held.connections * self.cfg.recv_buffer);
            assert!(held.written <= held.connections * self.cfg.send_buffer);
            assert!(held.datagrams_in <= self.cfg.datagram_queue);
            assert!(held.queued_out <= 2 * 64 + 256 + 16 && held.events <= 4_096 + 6 * CONNECTIONS);
        }
    }

    // ------------------------------------------------------------------ after the faults

    /// Nothing is lost or changed any more; both applications read all, end their streams and let go.
    fn heal(&mut self) {
        (self.blocked, self.knows_peers) = (false, true);
        let began = self.clock.now;
        for i in [0, 1] {
            let peer = self.introduction(1 - i);
            self.hosts[i].endpoint.add_peer(began, peer).ok();
        }
        for _ in 0..HEAL_STEPS {
            self.end_all();
            self.exchange();
            if self
                .hosts
                .iter()
                .all(|h| h.conns.iter().all(|c| c.closed) && h.endpoint.memory().connections == 0)
            {
                return;
            }
            if !self.flights.is_empty() {
                self.clock.pass(DELAY);
            } else {
                self.next_timeout();
            }
            self.fire();
            self.settle();
            assert!(self.clock.now - began < HEAL_TIME, "connections never end: {}", self.describe());
        }
        panic!("too many steps: {}", self.describe());
    }

    fn end_all(&mut self) {
        let now = self.clock.now;
        for i in [0, 1] {
            while let Some((id, peer)) = self.hosts[i].endpoint.accept(PORT) {
                self.track(i, id, 1 - i, peer.port);
            }
            for at in 0..self.hosts[i].conns.len() {
                // To the end: what is left unread would wait for the next timer, however far that is.
                loop {
                    let before = self.hosts[i].conns[at].read;
                    self.read(i, at, CHUNK);
                    if self.hosts[i].conns[at].read == before {
                        break;
                    }
                }
                let host = &mut self.hosts[i];
                let conn = &mut host.conns[at];
                if conn.closed {
                    continue;
                }
                Self::shut(&mut self.streams, &mut host.endpoint, conn, now);
                let flushed = host.endpoint.is_flushed(conn.id) && !conn.failed;
                if conn.failed || (conn.eof && flushed) {
                    self.check_end(i, at);
                    Self::close(&mut self.streams, &mut self.hosts[i], at, now);
                }
            }
        }
    }

    /// Without an error, all that was written was taken by the other side, which still holds or has read it.
    fn check_end(&self, i: usize, at: usize) {
        let conn = &self.hosts[i].conns[at];
        if conn.failed || conn.broken {
            return;
        }
        let other = self.hosts[1 - i].conns.iter().find(|c| (c.out, c.back) == (conn.back, conn.out));
        let Some(other) = other.filter(|o| !o.closed && !o.failed) else { return };
        let unread = self.hosts[1 - i].endpoint.readable(other.id) as u64;
        let written = self.streams.get(&conn.out).map_or(0, |w| w.bytes);
        assert_eq!(other.read + unread, written, "flushed, but not delivered");
    }

    fn describe(&self) -> String {
        let of = |h: &Host| {
            let open = h.conns.iter().filter(|c| !c.closed).map(|c| (c.read, c.eof, c.failed, c.broken));
            format!("{:?} {:?} {:?}", open.collect::<Vec<_>>(), h.endpoint.memory(), h.endpoint.peers())
        };
        format!("{} | {}", of(&self.hosts[0]), of(&self.hosts[1]))
    }

    /// A new connection carries a greeting and its answer.
    fn prove_alive(&mut self) {
        let began = self.clock.now;
        for host in &mut self.hosts {
            host.conns.clear();
        }
        let id = self.connect(0).expect("nothing is open, so there is room");
        let mut buf = [0u8; 100];
        let out = self.hosts[0].conns[0].out;
        fill(out, 0, &mut buf);
        let n = self.hosts[0].endpoint.write(began, id, &buf).expect("an empty buffer takes it");
        self.streams.entry(out).or_default().bytes = n as u64;
        for _ in 0..HEAL_STEPS {
            self.exchange();
            if let Some(conn) = self.hosts[1].conns.first() {
                if conn.read == n as u64 {
                    return;
                }
                self.read(1, 0, 1_000);
            }
            if !self.flights.is_empty() {
                self.clock.pass(DELAY);
            } else {
                self.next_timeout();
            }
            self.fire();
            self.settle();
            assert!(
                self.clock.now - began < Duration::from_secs(60),
                "no new connection: {}",
                self.describe()
            );
        }
        panic!("too many steps for a new connection: {}", self.describe());
    }
}
