//! Many hosts, one network, one virtual clock.
//!
//! [`World`] owns everything that happens: it moves time to the next event, carries datagrams over the
//! [`Network`], lets the [`Adversary`] have its say, drives processes and their applications, and lets the
//! [`Audit`] look at every step. Everything random comes from the seed, nothing depends on addresses in memory or on
//! the machine, so one seed gives one [`World::digest`].

mod adversary;
mod app;
mod audit;
mod host;
mod process;
mod registry;
mod traffic;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{Config, PeerConfig, SecureMode};
use pilotage_wire::{Address, NodeId, beacon};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::link::{Arrival, Fate, Link, below};
use crate::network::{HostId, Network};
use crate::trace::Trace;

pub use adversary::{Adversary, Seen, Trick};
pub use audit::{Audit, Invariant, Violation};
pub use host::{Clock, Machine, Memory, Node, Power, Role};
pub use traffic::{DATAGRAM_PORT, End, Ending, Flow, FlowPlan, STREAM_PORT, Traffic};

/// What a datagram costs a link: the IPv4 packet, at least the 46 bytes to which an Ethernet frame is padded
/// (spec/nat.md §4.3).
fn wire_size(len: usize) -> usize {
    (20 + 8 + len).max(46)
}

/// What the candidates of a peer may be sent before one of them proves itself, besides what the peer itself sends: at
/// first and with time (spec/tunnel.md, C17).
const NAMED: usize = 4 << 10;
/// Steps without progress of time after which something spins.
const STEPS_AT_ONCE: u32 = 50_000;
/// Timer calls of one host in one virtual second after which something spins.
const TIMERS_PER_SECOND: u32 = 50_000;

/// A datagram on its way.
#[derive(Debug)]
struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// Something that happens at a time.
#[derive(Debug)]
enum What {
    /// Out of the sender's uplink, into the downlink of the host that the address belonged to.
    Descend {
        from: HostId,
        target: HostId,
        flight: Flight,
    },
    Arrive(Flight),
    /// The sender's interface, or a router, says that a datagram was too long.
    TooBig {
        host: HostId,
        to: SocketAddr,
        size: usize,
    },
    /// The directory answers a look-up.
    Lookup {
        host: HostId,
        boot: u32,
        node: NodeId,
    },
    /// Something on a byte stream with the registry.
    Segment(registry::Segment),
    /// The registry takes too long to answer.
    Unanswered {
        host: HostId,
        boot: u32,
        node: NodeId,
        number: u64,
    },
    StartFlow(usize),
    /// A slow reader goes on.
    Read {
        flow: usize,
    },
    Datagram {
        from: HostId,
        to: HostId,
        len: usize,
    },
    Ping {
        from: HostId,
        to: HostId,
    },
    Resume(HostId),
}

#[derive(Debug)]
struct Scheduled {
    at: Instant,
    number: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Numbers of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that hosts put on the wire.
    pub sent: u64,
    /// Datagrams that arrived at a running process.
    pub delivered: u64,
    /// Datagrams that the adversary sent.
    pub forged: u64,
    /// Steps of the event loop.
    pub steps: u64,
    /// Of the datagrams sent, those from node to node.
    pub between_nodes: u64,
}

/// Hosts, network, adversary, applications and the observer.
pub struct World {
    /// The true time.
    pub now: Instant,
    /// The links.
    pub network: Network,
    /// Who else is on the wire.
    pub adversary: Adversary,
    /// What the applications do.
    pub traffic: Traffic,
    /// The invariants.
    pub audit: Audit,
    /// If set, everything is noted down.
    pub trace: Option<Trace>,
    /// Numbers of this run.
    pub counts: Counts,
    /// Datagrams for the application are delivered twice, bytes changed, and so on: for the tests of the audit.
    pub sabotage: Option<Invariant>,
    /// Whether nodes always learn the present address of a node that they dial.
    pub registry_answers: bool,
    start: Instant,
    rng: ChaCha8Rng,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    hosts: Vec<Machine>,
    by_addr: BTreeMap<SocketAddr, HostId>,
    hasher: blake3::Hasher,
    /// Steps since time last moved.
    still: u32,
    /// Timer calls by host in the present second.
    timer_calls: (u64, Vec<u32>),
    arrivals: Vec<Arrival>,
    scratch: Vec<u8>,
    dirty: Vec<HostId>,
    hub: Option<registry::Hub>,
}

impl World {
    /// An empty world. The adversary's and its victim's addresses are the first hosts.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let now = crate::base_instant();
        pilotage_proto::audit::start();
        let (adversary, victim) =
            (SocketAddr::from(([203, 0, 113, 66], 666)), SocketAddr::from(([203, 0, 113, 77], 777)));
        let mut world = Self {
            now,
            network: Network::default(),
            adversary: Adversary::new(adversary, victim),
            traffic: Traffic::default(),
            audit: Audit::default(),
            trace: None,
            counts: Counts::default(),
            sabotage: None,
            registry_answers: false,
            start: now,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            number: 0,
            hosts: Vec::new(),
            by_addr: BTreeMap::new(),
            hasher: blake3::Hasher::new(),
            still: 0,
            timer_calls: (0, Vec::new()),
            arrivals: Vec::new(),
            scratch: Vec::new(),
            dirty: Vec::new(),
            hub: None,
        };
        for addr in [adversary, victim] {
            world.add_host(addr, Role::Silent, Link::default(), Link::default(), 0);
            world.audit.watch_stranger(addr);
        }
        world
    }

    fn add_host(&mut self, addr: SocketAddr, role: Role, up: Link, down: Link, ppm: i64) -> HostId {
        let id = self.network.add_host(up, down);
        self.hosts.push(Machine::new(addr, Clock::new(self.start, ppm), role));
        self.by_addr.insert(addr, id);
        self.timer_calls.1.push(0);
        self.mark(id);
        id
    }

    /// Adds a node with its links and the drift of its clock.
    pub fn add_node(&mut self, config: Config, up: Link, down: Link, ppm: i64) -> HostId {
        let number = self.hosts.len() as u32;
        let local = Clock::new(self.start, ppm).local(self.now);
        let mut node = Box::new(Node::new(config, number, local, &mut self.rng));
        node.listen();
        let addr = SocketAddr::from(([192, 0, 2, number as u8], 4_000));
        self.add_host(addr, Role::Node(node), up, down, ppm)
    }

    /// Lets a node speak S1. Before anybody is introduced to it.
    pub fn speak_s1(
        &mut self,
        id: HostId,
        mode: SecureMode,
        limits: Limits,
        (streams, post_quantum): (bool, PostQuantum),
    ) {
        let now = self.local(id);
        if let Some(node) = self.hosts[id].node_mut() {
            node.secure = (mode, limits, (streams, post_quantum));
            let seed = node.key;
            node.speak_s1(now, &seed);
        }
    }

    /// Adds a beacon.
    pub fn add_beacon(&mut self, up: Link, down: Link) -> HostId {
        let number = self.hosts.len() as u8;
        let role = Role::Beacon(Box::new(host::beacon(self.rng.next_u64())));
        self.add_host(SocketAddr::from(([198, 51, 100, number], 9_001)), role, up, down, 0)
    }

    /// Tells one node how to reach another.
    pub fn introduce(&mut self, to: HostId, whom: HostId) {
        let Some(peer) = self.introduction(whom) else { return };
        let now = self.local(to);
        if let Some(node) = self.hosts[to].node_mut() {
            node.known.retain(|p| p.address != peer.address);
            node.known.push(peer.clone());
            // The bound of peers is far above the number of hosts.
            let _ = node.endpoint.add_peer(now, peer);
        }
        self.mark(to);
    }

    /// Tells a node of a beacon.
    pub fn use_beacon(&mut self, host: HostId, beacon: HostId) {
        let addr = self.hosts[beacon].addr;
        let now = self.local(host);
        if let Some(node) = self.hosts[host].node_mut() {
            node.beacon = Some(addr);
            node.endpoint.set_beacon(now, Some(addr));
        }
        self.mark(host);
    }

    fn introduction(&self, whom: HostId) -> Option<PeerConfig> {
        let host = &self.hosts[whom];
        host.node().map(|node| node.introduction(host.addr))
    }

    /// A host.
    #[must_use]
    pub fn host(&self, id: HostId) -> &Machine {
        &self.hosts[id]
    }

    /// Numbers of all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = HostId> {
        self.hosts.iter().enumerate().filter(|(_, h)| h.node().is_some()).map(|(id, _)| id)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    /// Hash over everything that happened, with its time.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        self.hasher.finalize()
    }

    /// Randomness of this world, for plans that go on while it runs.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// Where a flow stands, with what both endpoints say about it.
    #[must_use]
    pub fn describe_flow(&self, flow: &Flow) -> String {
        let mut text =
            format!("{:?}\n {:?} read {:?} of {:?}", flow.plan, flow.ends, flow.read, flow.written);
        for side in [0, 1] {
            let (Some((_, id)), Some(node)) = (flow.ids[side], self.hosts[flow.host(side)].node()) else {
                continue;
            };
            let e = &node.endpoint;
            text += &format!(
                "\n side {side}: readable {} writable {} flushed {} open {} {:?} {:?} {:?}",
                e.readable(id),
                e.writable(id),
                e.is_flushed(id),
                e.is_open(id),
                e.connection_stats(id),
                e.connection_path(id),
                e.memory()
            );
        }
        text
    }

    /// Datagrams from node to node so far.
    #[must_use]
    pub fn between_nodes(&self) -> u64 {
        self.counts.between_nodes
    }

    fn local(&self, host: HostId) -> Instant {
        self.hosts[host].clock.local(self.now)
    }

    fn mark(&mut self, host: HostId) {
        if !std::mem::replace(&mut self.hosts[host].dirty, true) {
            self.dirty.push(host);
        }
    }

    fn schedule(&mut self, at: Instant, what: What) {
        let number = self.number;
        self.number += 1;
        self.queue.push(Reverse(Scheduled { at, number, what }));
    }

    /// Writes what all nodes hold into the trace, if there is one.
    pub fn trace_state(&mut self) {
        let at = self.elapsed();
        let Some(trace) = &mut self.trace else { return };
        for (id, host) in self.hosts.iter().enumerate() {
            if let Some(node) = host.node() {
                trace.line(
                    at,
                    &format!(
                        "host {id} holds {:?}, paths {:?}",
                        node.endpoint.memory(),
                        node.endpoint.paths()
                    ),
                );
            }
        }
    }

    /// Notes something that happened in the digest and, if there is one, in the trace.
    fn note(&mut self, text: &str) {
        let at = self.elapsed();
        self.hasher.update(&at.as_nanos().to_le_bytes());
        self.hasher.update(text.as_bytes());
        if let Some(trace) = &mut self.trace {
            trace.line(at, text);
        }
    }

    // ------------------------------------------------------------------ time

    /// Goes to the next thing that happens, at most `until`. `false` once that is reached or an invariant is broken.
    pub fn step(&mut self, until: Instant) -> bool {
        self.settle();
        if self.audit.violation().is_some() {
            return false;
        }
        let event = self.queue.peek().map(|Reverse(s)| s.at);
        let timer = self.hosts.iter().filter_map(|h| h.wake).min();
        let Some(next) = [event, timer].into_iter().flatten().min().filter(|t| *t <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.advance(next.max(self.now));
        self.counts.steps += 1;
        while self.queue.peek().is_some_and(|Reverse(s)| s.at <= self.now) {
            if let Some(Reverse(scheduled)) = self.queue.pop() {
                self.happen(scheduled.what);
            }
            if self.sabotage == Some(Invariant::BusyLoop) {
                self.schedule(self.now, What::Resume(0)); // does nothing, for ever
            }
            self.still += 1;
            if self.still > STEPS_AT_ONCE {
                break;
            }
        }
        self.run_timers();
        self.settle();
        self.audit.violation().is_none()
    }

    fn advance(&mut self, to: Instant) {
        self.still = if to > self.now { 0 } else { self.still + 1 };
        self.now = to;
        let elapsed = self.elapsed();
        self.audit.at = elapsed;
        self.audit.require(self.still < STEPS_AT_ONCE, Invariant::BusyLoop, || {
            format!("{STEPS_AT_ONCE} steps at one instant")
        });
        if elapsed.as_secs() != self.timer_calls.0 {
            self.timer_calls.0 = elapsed.as_secs();
            self.timer_calls.1.fill(0);
        }
    }

    fn run_timers(&mut self) {
        for id in 0..self.hosts.len() {
            if self.hosts[id].wake.is_some_and(|t| t <= self.now) {
                self.timer_calls.1[id] += 1;
                let calls = self.timer_calls.1[id];
                self.audit.require(calls < TIMERS_PER_SECOND, Invariant::BusyLoop, || {
                    format!("host {id}: {calls} timer calls in one second")
                });
                self.on_timer(id);
            }
        }
    }

    /// Runs for a while; ends early if an invariant breaks.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done`, at most for `limit`. Whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
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

    fn happen(&mut self, what: What) {
        match what {
            What::Descend { from, target, flight } => self.descend(from, target, flight),
            What::Arrive(flight) => self.arrive(flight),
            What::TooBig { host, to, size } => {
                let now = self.local(host);
                if self.hosts[host].power == Power::Up
                    && let Some(node) = self.hosts[host].node_mut()
                {
                    node.endpoint.on_message_too_big(now, to, size);
                    self.mark(host);
                }
            }
            What::Lookup { host, boot, node } => self.answer_lookup(host, boot, node),
            What::Segment(segment) => self.on_segment(segment),
            What::Unanswered { host, boot, node, number } => self.give_up_inquiry(host, boot, node, number),
            What::StartFlow(flow) => self.start_flow(flow, false),
            What::Read { flow } => self.read_flow_again(flow),
            What::Datagram { from, to, len } => self.send_datagram(from, to, len, false),
            What::Ping { from, to } => self.send_ping(from, to, false),
            What::Resume(host) => self.resume(host),
        }
    }

    // ------------------------------------------------------------------ the wire

    /// A host puts a datagram on the wire.
    fn put_on_wire(&mut self, from: HostId, to: SocketAddr, bytes: &[u8]) {
        self.counts.sent += 1;
        // A beacon pays with the bytes of whoever asks it to relay or to introduce; its own rule is checked there.
        if self.hosts[from].node().is_some() {
            self.audit.on_sent_by(from, wire_size(bytes.len()));
            self.audit.on_sent(to, wire_size(bytes.len()));
        }
        let source = self.hosts[from].addr;
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.clear();
        let target = self.by_addr.get(&to).copied();
        let nodes = [Some(from), target].map(|h| h.is_some_and(|h| self.hosts[h].node().is_some()));
        // What a node sends to itself, to see whether its NAT turns it round, is nobody else's.
        self.counts.between_nodes += u64::from(nodes == [true, true] && target != Some(from));
        let (fate, told) = match target {
            Some(target) => self.network.enter(self.now, from, target, bytes, &mut self.rng, &mut arrivals),
            None => (Fate::Down, None),
        };
        if let Some(trace) = &mut self.trace {
            let at = self.now.duration_since(self.start);
            trace.datagram(at, source, to, bytes, &format!("{fate:?}"));
        }
        if told.is_some() {
            let at = self.now + Duration::from_millis(1);
            self.schedule(at, What::TooBig { host: from, to, size: bytes.len() });
        }
        if let Some(target) = target {
            for Arrival { at, bytes, .. } in arrivals.drain(..) {
                self.schedule(at, What::Descend { from, target, flight: Flight { from: source, to, bytes } });
            }
        }
        self.arrivals = arrivals;
        self.tempt(Seen { from: source, to, bytes: Vec::new() }, bytes);
    }

    /// A datagram reaches the downlink of the host that it was addressed to when it was sent.
    fn descend(&mut self, from: HostId, target: HostId, flight: Flight) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.clear();
        let Flight { from: source, to, bytes } = flight;
        let (fate, told) = self.network.leave(self.now, target, &bytes, &mut self.rng, &mut arrivals);
        if fate != Fate::Passed
            && let Some(trace) = &mut self.trace
        {
            trace.line(self.now.duration_since(self.start), &format!("{source} > {to} ends: {fate:?}"));
        }
        if told.is_some() {
            let at = self.now + Duration::from_millis(1);
            self.schedule(at, What::TooBig { host: from, to, size: bytes.len() });
        }
        for Arrival { at, bytes, .. } in arrivals.drain(..) {
            self.schedule(at, What::Arrive(Flight { from: source, to, bytes }));
        }
        self.arrivals = arrivals;
    }

    /// Shows a datagram to the adversary and sends what it makes of it.
    fn tempt(&mut self, mut passing: Seen, bytes: &[u8]) {
        if self.adversary.activity <= 0.0 {
            return;
        }
        passing.bytes = bytes.to_vec();
        let hosts: Vec<(SocketAddr, Option<Address>)> =
            self.hosts.iter().skip(2).map(|h| (h.addr, h.node().map(|n| n.address))).collect();
        let mut sent = Vec::new();
        self.adversary.watch(passing, &hosts, &mut self.rng, &mut sent);
        for Seen { from, to, bytes } in sent {
            let delay = Duration::from_micros(below(&mut self.rng, 50_000) as u64);
            self.forge(from, to, bytes, delay);
        }
    }

    /// The adversary sends a datagram.
    pub fn forge(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>, delay: Duration) {
        self.counts.forged += 1;
        if let Some(trace) = &mut self.trace {
            trace.datagram(self.now.duration_since(self.start), from, to, &bytes, "forged");
        }
        self.schedule(self.now + delay, What::Arrive(Flight { from, to, bytes }));
    }

    fn arrive(&mut self, mut flight: Flight) {
        let Some(&id) = self.by_addr.get(&flight.to) else { return };
        match self.hosts[id].power {
            Power::Down => return,
            Power::Paused(_) => {
                self.hosts[id].keep(flight);
                return;
            }
            Power::Up => {}
        }
        self.counts.delivered += 1;
        self.hasher.update(&self.now.duration_since(self.start).as_nanos().to_le_bytes());
        self.hasher.update(&(id as u32).to_le_bytes());
        self.hasher.update(&flight.bytes);
        let size = wire_size(flight.bytes.len());
        self.audit.on_received(flight.from, size);
        if let Ok(beacon::Message::PunchCommand { addr }) = beacon::Message::decode(&flight.bytes) {
            // Whom it names is paid for by the bytes of the command.
            self.audit.on_received(addr, size);
        }
        if let Some(addr) = told_outside(&flight.bytes) {
            // Nor can a node tell a forged answer of its beacon: it names that address to its peers as its own, and they
            // check it within the credit of candidates (spec/tunnel.md, C17).
            let peers = self.hosts.iter().filter(|host| host.node().is_some()).count().saturating_sub(1);
            self.audit.on_believed(id, addr, NAMED * peers);
        }
        self.process_datagram(id, &mut flight);
    }
}

/// Which outer address a beacon's answer tells its reader.
fn told_outside(bytes: &[u8]) -> Option<SocketAddr> {
    use beacon::Extension::{Challenge, ProbeReply, Refused, Registered};
    match beacon::Message::decode(bytes).ok()? {
        beacon::Message::DiscoverReply { addr } => Some(addr),
        beacon::Message::Extension(
            Challenge { addr, .. } | Registered { addr, .. } | Refused { addr, .. } | ProbeReply { addr, .. },
        ) => Some(addr),
        _ => None,
    }
}
