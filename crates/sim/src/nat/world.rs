//! Sites, boxes, beacons and what passes between them, under one virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use pilotage_nat::agent::{Candidate, CandidateKind, FAN_SOCKETS, FAN_TIME, NatMapping};
use pilotage_nat::{BeaconConfig, BeaconEngine, side};
use pilotage_proto::crypto::Identity;
use pilotage_proto::{
    Config, ConnectionId, Endpoint, Event, PathKind, PeerConfig, PeerPolicy, RecvMeta, SecureConfig,
    SecureMode, TransmitBuf,
};
use pilotage_wire::{Address, NodeId, SocketAddress};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::{NatBox, NatKind};
use crate::link::{Link, LinkState};

/// Port of every node inside.
pub(super) const PORT: u16 = 4_000;
/// Port that boxes forward.
const FORWARDED: u16 = 45_000;
/// Ports of extra sockets inside.
const FAN_PORT: u16 = 20_000;
/// The wall clock when a world begins, Unix ms.
const UNIX_MS: u64 = 1_800_000_000_000;

/// A node behind its NAT.
pub struct NatHost {
    /// The endpoint under test.
    pub endpoint: Endpoint,
    /// What it reported and nobody has looked at.
    pub events: VecDeque<Event>,
    /// Its overlay address.
    pub address: Address,
    /// Its key.
    pub key: [u8; 32],
    /// Its own address, inside.
    pub addr: SocketAddr,
    /// What stands before it.
    pub kind: NatKind,
    /// From the node to the core of the network; the other direction is the same.
    pub link: Link,
    /// Boxes from the inside to the outside.
    boxes: Vec<usize>,
    states: [LinkState; 2],
    buf: TransmitBuf,
    site: u8,
    /// Extra sockets, as the driver of a node opens them.
    fan: Option<Fan>,
    /// The address before this one, whose datagrams are still on their way out.
    pub(super) left: Option<IpAddr>,
}

/// Extra sockets of one run: those of all ports from [`FAN_PORT`] on, or the one that was hit.
struct Fan {
    peer: NodeId,
    target: SocketAddr,
    until: Instant,
    hit: Option<u16>,
}

impl NatHost {
    /// Where a datagram really leaves, and where to.
    fn way_out(&self, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
        match side::split(destination) {
            Some((socket, real)) => (SocketAddr::new(self.addr.ip(), FAN_PORT + socket as u16), real.into()),
            None => (self.addr, destination),
        }
    }

    /// What the endpoint calls the sender of a datagram; `None` if no socket is there.
    fn way_in(&mut self, now: Instant, flight: &Flight) -> Option<SocketAddr> {
        if flight.to == self.addr {
            return Some(flight.from);
        }
        let fan = self.fan.as_mut()?;
        let socket = flight.to.port().checked_sub(FAN_PORT).filter(|n| u32::from(*n) < FAN_SOCKETS)?;
        let SocketAddr::V4(from) = flight.from else { return None };
        let remote = side::through(socket.into(), from);
        if fan.hit.is_none() && flight.from == fan.target && now < fan.until {
            fan.hit = Some(socket);
            let way = Candidate { addr: remote, kind: CandidateKind::PeerReflexive };
            let peer = fan.peer;
            self.endpoint.add_remote_candidates(now, peer, &[way]);
        }
        (self.fan.as_ref()?.hit == Some(socket)).then_some(remote)
    }
}

struct Beacon {
    addrs: [SocketAddr; 2],
    engine: BeaconEngine,
    alive: bool,
}

#[derive(Debug)]
struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum What {
    /// Left the host's uplink: through its boxes and on.
    Leave(usize, Flight),
    /// In the core.
    Core(Flight),
    /// Out of the downlink.
    Arrive(usize, Flight),
}

/// The whole.
pub struct NatWorld {
    /// The virtual time.
    pub now: Instant,
    /// The nodes.
    pub hosts: Vec<NatHost>,
    /// The boxes of all sites.
    pub boxes: Vec<NatBox>,
    /// Everything that nodes sent, by the address as it left the site: datagrams and bytes.
    pub sent_to: BTreeMap<SocketAddr, (u64, u64)>,
    /// Everything that each node sent: datagrams and bytes.
    pub sent_by: Vec<(u64, u64)>,
    /// Everything that came to nodes from an address outside: datagrams and bytes.
    pub came_from: BTreeMap<SocketAddr, (u64, u64)>,
    /// If set, copies of all datagrams as they leave a node: sender, destination, bytes.
    pub recorded: Option<Vec<(usize, SocketAddr, Vec<u8>)>>,
    beacons: Vec<Beacon>,
    queue: BTreeMap<(Instant, u64), What>,
    number: u64,
    start: Instant,
    still: u32,
    rng: ChaCha8Rng,
    config: Config,
    /// Nodes that are added speak S1 with whoever does, and whether their records hold prekeys.
    secure: Option<bool>,
}

impl NatWorld {
    /// An empty world with so many beacons.
    #[must_use]
    pub fn new(seed: u64, beacons: u8) -> Self {
        let now = crate::base_instant();
        let beacons = (0..beacons)
            .map(|n| Beacon {
                addrs: [
                    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10 + n)), 9_001),
                    SocketAddr::new(
                        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, u16::from(n) + 1)),
                        9_001,
                    ),
                ],
                engine: BeaconEngine::new(BeaconConfig::default(), seed + u64::from(n)),
                alive: true,
            })
            .collect();
        Self {
            now,
            hosts: Vec::new(),
            boxes: Vec::new(),
            sent_to: BTreeMap::new(),
            sent_by: Vec::new(),
            came_from: BTreeMap::new(),
            recorded: None,
            beacons,
            queue: BTreeMap::new(),
            number: 0,
            start: now,
            still: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            config: Config::default(),
            secure: None,
        }
    }

    /// Nodes that are added from now on speak S1 with whoever does, as nodes do by default. If their records do not hold prekeys, they
    /// begin as the draft does, and what is connected before they have changed over stays a connection of the draft.
    pub fn speak_s1(&mut self, prekeys: bool) {
        self.secure = Some(prekeys);
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    /// The address of a beacon for a node of this kind.
    #[must_use]
    pub fn beacon_addr(&self, beacon: usize, kind: NatKind) -> SocketAddr {
        self.beacons[beacon].addrs[usize::from(kind == NatKind::Nat64)]
    }

    /// Kills or revives a beacon.
    pub fn set_alive(&mut self, beacon: usize, alive: bool) {
        self.beacons[beacon].alive = alive;
    }

    /// Adds a node at a site of its own, or behind the boxes of another.
    pub fn add_host(&mut self, kind: NatKind, link: Link, behind: Option<usize>) -> usize {
        let site = self.hosts.len() as u8;
        let addr = SocketAddr::new(kind.inside(site), PORT);
        let boxes = match behind {
            Some(other) => self.hosts[other].boxes.clone(),
            None => kind
                .natures()
                .into_iter()
                .enumerate()
                .map(|(depth, nature)| {
                    let address = IpAddr::V4(if depth + 1 < kind.natures().len() {
                        Ipv4Addr::new(100, 64, site, 1)
                    } else {
                        Ipv4Addr::new(203, 0, 113, 10 + site)
                    });
                    self.boxes.push(NatBox::new(address, nature));
                    self.boxes.len() - 1
                })
                .collect(),
        };
        if kind == NatKind::Mapped {
            self.boxes[boxes[0]].forward(FORWARDED + u16::from(site), addr);
        }
        let mut identity_seed = [0; 32];
        self.rng.fill_bytes(&mut identity_seed);
        let identity = Identity::from_seed(identity_seed);
        let key = identity.public_key();
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let address = Address::new(0, 0x1000 + u32::from(site));
        let mut endpoint = Endpoint::new(self.config.clone(), identity, address, seed, self.now);
        if self.secure.is_some() {
            let config = SecureConfig::new(
                SecureMode::Auto,
                UNIX_MS + self.elapsed().as_millis() as u64,
                [0x40 + site; 32],
            );
            assert!(endpoint.enable_s1(self.now, config, &seed));
        }
        self.hosts.push(NatHost {
            endpoint,
            events: VecDeque::new(),
            address,
            key,
            addr,
            kind,
            link,
            boxes,
            states: Default::default(),
            buf: TransmitBuf::new(16),
            site,
            fan: None,
            left: None,
        });
        let id = self.hosts.len() - 1;
        self.tell_node(id);
        id
    }

    /// What the driver of a node tells its endpoint: the beacon, its own addresses, its NAT.
    pub fn tell_node(&mut self, id: usize) {
        let now = self.now;
        let beacon = (!self.beacons.is_empty()).then(|| self.beacon_addr(0, self.hosts[id].kind));
        let host = &self.hosts[id];
        let mut candidates = vec![Candidate { addr: host.addr, kind: CandidateKind::Host }];
        if host.kind == NatKind::Mapped {
            let outside = self.boxes[host.boxes[0]].address;
            let addr = SocketAddr::new(outside, FORWARDED + u16::from(host.site));
            candidates.push(Candidate { addr, kind: CandidateKind::Mapped });
        }
        let host = &mut self.hosts[id];
        let mapping = if host.kind.is_hard() {
            NatMapping::AddressAndPortDependent
        } else {
            NatMapping::EndpointIndependent
        };
        host.endpoint.set_beacon(now, beacon);
        host.endpoint.set_local_candidates(now, &candidates);
        host.endpoint.set_nat_mapping(now, mapping);
        host.endpoint.set_udp_blocked(now, host.kind == NatKind::UdpBlocked);
    }

    /// What a registry tells of a node: its key and where a beacon saw it.
    #[must_use]
    pub fn introduction(&self, id: usize) -> PeerConfig {
        let host = &self.hosts[id];
        PeerConfig {
            address: host.address,
            key: Some(host.key),
            endpoint: host.endpoint.observed_address().filter(|_| host.kind != NatKind::UdpBlocked),
            policy: PeerPolicy::default(),
            prekey: host.endpoint.prekey().filter(|_| self.secure == Some(true)),
        }
    }

    /// Moves a node to another address of its own site, with fresh mappings, as from one network to another. The
    /// watcher of interfaces notices.
    pub fn move_host(&mut self, id: usize) {
        let host = &mut self.hosts[id];
        let IpAddr::V4(ip) = host.addr.ip() else { return };
        let [a, b, c, d] = ip.octets();
        host.addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d.wrapping_add(1).max(2))), PORT);
        let now = self.now;
        let boxes = host.boxes.clone();
        for i in boxes {
            self.boxes[i].reboot();
            if let IpAddr::V4(ip) = self.boxes[i].address {
                let [a, b, c, d] = ip.octets();
                self.boxes[i].address = IpAddr::V4(Ipv4Addr::new(a, b, c, d.wrapping_add(20)));
            }
        }
        self.tell_node(id);
        self.hosts[id].endpoint.network_changed(now);
    }

    /// The boxes of a site lose their tables.
    pub fn reboot_nat(&mut self, id: usize) {
        for i in self.hosts[id].boxes.clone() {
            self.boxes[i].reboot();
        }
    }

    // ------------------------------------------------------------------ time

    fn schedule(&mut self, at: Instant, what: What) {
        self.number += 1;
        self.queue.insert((at, self.number), what);
    }

    /// Puts a datagram into the core as if somebody at `from` had sent it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.schedule(self.now, What::Core(Flight { from, to, bytes: bytes.to_vec() }));
    }

    /// Goes to the next thing that happens, at most `until`. `false` once that is reached.
    pub fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let flight = self.queue.keys().next().map(|(at, _)| *at);
        let timer = self.hosts.iter_mut().filter_map(|h| h.endpoint.poll_timeout()).min();
        let Some(next) = [flight, timer].into_iter().flatten().min().filter(|t| *t <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.still = if next > self.now { 0 } else { self.still + 1 };
        assert!(self.still < 50_000, "busy loop at {:?}, timer {timer:?}", self.elapsed());
        self.now = self.now.max(next);
        for host in &mut self.hosts {
            if host.endpoint.poll_timeout().is_some_and(|t| t <= self.now) {
                host.endpoint.handle_timeout(self.now);
            }
        }
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let what = entry.remove();
            self.happen(what);
        }
        self.flush();
        true
    }

    /// Runs for a while.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done`, at most for `limit`. Whether it was done.
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

    /// Takes everything that the endpoints want to send and report.
    pub fn flush(&mut self) {
        for id in 0..self.hosts.len() {
            while let Some(transmit) = {
                let host = &mut self.hosts[id];
                host.endpoint.poll_transmit(self.now, &mut host.buf)
            } {
                let batch = self.hosts[id].buf.bytes(transmit.size).to_vec();
                let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
                let (from, to) = self.hosts[id].way_out(transmit.destination);
                for datagram in batch.chunks(segment) {
                    let count = self.sent_to.entry(to).or_default();
                    *count = (count.0 + 1, count.1 + datagram.len() as u64 + 28);
                    self.sent_by.resize(self.hosts.len(), (0, 0));
                    let own = &mut self.sent_by[id];
                    *own = (own.0 + 1, own.1 + datagram.len() as u64 + 28);
                    if let Some(recorded) = &mut self.recorded {
                        recorded.push((id, transmit.destination, datagram.to_vec()));
                    }
                    let host = &mut self.hosts[id];
                    let mut arrivals = Vec::new();
                    host.link.carry(self.now, datagram, &mut host.states[0], &mut self.rng, &mut arrivals);
                    let delay = host.link.delay;
                    for arrival in arrivals {
                        // The box stands at the node's end of the line.
                        let at = arrival.at.checked_sub(delay).map_or(self.now, |t| t.max(self.now));
                        self.schedule(at, What::Leave(id, Flight { from, to, bytes: arrival.bytes }));
                    }
                }
            }
            while let Some(event) = self.hosts[id].endpoint.poll_event() {
                if let Event::SocketsWanted { peer, target } = event {
                    self.open_sockets(id, peer, target);
                }
                self.hosts[id].events.push_back(event);
            }
        }
    }

    /// What a driver does: hundreds of sockets send to where the peer's NAT is, for as long as a run lasts.
    fn open_sockets(&mut self, id: usize, peer: NodeId, target: SocketAddr) {
        let host = &mut self.hosts[id];
        host.fan = Some(Fan { peer, target, until: self.now + FAN_TIME, hit: None });
        for socket in 0..FAN_SOCKETS as u16 {
            let from = SocketAddr::new(host.addr.ip(), FAN_PORT + socket);
            let flight = Flight { from, to: target, bytes: b"PILP".to_vec() };
            let at = self.now + Duration::from_millis(2) * u32::from(socket);
            self.number += 1;
            self.queue.insert((at, self.number), What::Leave(id, flight));
        }
        let count = self.sent_to.entry(target).or_default();
        *count = (count.0 + u64::from(FAN_SOCKETS), count.1 + u64::from(FAN_SOCKETS) * 32);
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Leave(id, flight) => self.leave(id, flight),
            What::Core(flight) => self.core(flight),
            What::Arrive(id, mut flight) => {
                // Who has moved meanwhile does not get it.
                if flight.to.ip() != self.hosts[id].addr.ip() {
                    return;
                }
                let Some(remote) = self.hosts[id].way_in(self.now, &flight) else { return };
                let count = self.came_from.entry(flight.from).or_default();
                *count = (count.0 + 1, count.1 + flight.bytes.len() as u64 + 28);
                let meta = RecvMeta { remote, local_ip: None };
                self.hosts[id].endpoint.handle_datagram(self.now, &meta, &mut flight.bytes);
            }
        }
    }

    /// Through the boxes of the sender's site.
    fn leave(&mut self, id: usize, mut flight: Flight) {
        // What waited in an interface that is gone is lost.
        let ip = flight.from.ip();
        if ip != self.hosts[id].addr.ip() && Some(ip) != self.hosts[id].left {
            return;
        }
        let out = self.now + self.hosts[id].link.delay;
        let to_beacon = self.beacons.iter().any(|b| b.addrs.contains(&flight.to));
        if self.hosts[id].kind == NatKind::UdpBlocked {
            if to_beacon {
                // In another wrapping; the beacon sees an address that is not routed.
                let site = u16::from(self.hosts[id].site);
                flight.from =
                    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, site)), PORT);
                self.schedule(out, What::Core(flight));
            }
            return;
        }
        for depth in 0..self.hosts[id].boxes.len() {
            let index = self.hosts[id].boxes[depth];
            let nat = &mut self.boxes[index];
            if nat.address == flight.to.ip() && !nat.hairpins() {
                return;
            }
            let Some(from) = nat.out(self.now, flight.from, flight.to, &mut self.rng) else { return };
            flight.from = from;
        }
        self.schedule(out, What::Core(flight));
    }

    /// To whoever has the address, through the boxes of that site.
    fn core(&mut self, flight: Flight) {
        if let Some(index) = self.beacons.iter().position(|b| b.addrs.contains(&flight.to)) {
            self.at_beacon(index, &flight);
            return;
        }
        if flight.from.is_ipv4() != flight.to.is_ipv4() {
            return;
        }
        let direct = |h: &NatHost| h.boxes.is_empty() && h.kind != NatKind::UdpBlocked && h.addr == flight.to;
        if let Some(id) = self.hosts.iter().position(direct) {
            self.descend(id, flight);
            return;
        }
        let outermost = |h: &NatHost| h.boxes.last().map(|b| self.boxes[*b].address);
        let Some(site) = self.hosts.iter().position(|h| outermost(h) == Some(flight.to.ip())) else { return };
        let mut to = flight.to;
        for index in self.hosts[site].boxes.clone().into_iter().rev() {
            let Some(inside) = self.boxes[index].inward(self.now, flight.from, to.port()) else { return };
            to = inside;
        }
        if let Some(id) = self.hosts.iter().position(|h| h.addr.ip() == to.ip()) {
            self.descend(id, Flight { to, ..flight });
        }
    }

    fn descend(&mut self, id: usize, flight: Flight) {
        let host = &mut self.hosts[id];
        let mut arrivals = Vec::new();
        host.link.carry(self.now, &flight.bytes, &mut host.states[1], &mut self.rng, &mut arrivals);
        for arrival in arrivals {
            let flight = Flight { from: flight.from, to: flight.to, bytes: arrival.bytes };
            self.schedule(arrival.at, What::Arrive(id, flight));
        }
    }

    fn at_beacon(&mut self, index: usize, flight: &Flight) {
        let beacon = &mut self.beacons[index];
        if !beacon.alive {
            return;
        }
        let addrs = beacon.addrs;
        let mut answers = Vec::new();
        beacon.engine.handle_datagram(self.now, flight.from, &flight.bytes, &mut |to, bytes: &[u8]| {
            answers.push((to, bytes.to_vec()));
        });
        for (to, bytes) in answers {
            let IpAddr::V6(ip) = to.ip() else {
                self.schedule(self.now, What::Core(Flight { from: addrs[0], to, bytes }));
                continue;
            };
            if ip.octets()[0] == 0xfd {
                // Back in the other wrapping, which speaks for the address that the node knows.
                if let Some(id) = self.hosts.iter().position(|h| u16::from(h.site) == ip.segments()[7]) {
                    let to = self.hosts[id].addr;
                    self.descend(id, Flight { from: addrs[0], to, bytes });
                }
            } else {
                self.schedule(self.now, What::Core(Flight { from: addrs[1], to, bytes }));
            }
        }
    }

    // ------------------------------------------------------------------ what tests do

    /// Begins a connection from one node to port 7 of another, which the registry knows.
    pub fn dial(&mut self, from: usize, to: usize) -> ConnectionId {
        let _ = self.hosts[to].endpoint.listen(7);
        let now = self.now;
        let peer = self.introduction(to);
        // The one that is called looks the caller up.
        let caller = self.introduction(from);
        self.hosts[to].endpoint.add_peer(now, PeerConfig { endpoint: None, ..caller }).expect("room");
        let to = SocketAddress { address: peer.address, port: 7 };
        let host = &mut self.hosts[from];
        host.endpoint.add_peer(now, peer).expect("room");
        host.endpoint.connect(now, to).expect("a way to try")
    }

    /// Dials, and sends one byte each way. The two ends, and the time until the answer.
    pub fn connect(
        &mut self,
        from: usize,
        to: usize,
        limit: Duration,
    ) -> Option<(ConnectionId, ConnectionId, Duration)> {
        let start = self.now;
        let a = self.dial(from, to);
        let (mut b, mut asked, mut answered) = (None, false, false);
        let done = self.run_until(limit, |w| {
            let now = w.now;
            if !asked {
                asked = w.hosts[from].endpoint.write(now, a, b"?").is_ok();
            }
            if b.is_none() {
                b = w.hosts[to].endpoint.accept(7).map(|(id, _)| id);
            }
            let mut byte = [0; 1];
            if let (Some(b), false) = (b, answered)
                && w.hosts[to].endpoint.read(now, b, &mut byte) == Ok(1)
            {
                answered = w.hosts[to].endpoint.write(now, b, b"!").is_ok();
            }
            answered && w.hosts[from].endpoint.read(now, a, &mut byte) == Ok(1)
        });
        b.filter(|_| done).map(|b| (a, b, self.now.duration_since(start)))
    }

    /// Whether packets of both go straight to the other.
    #[must_use]
    pub fn is_direct(&self, a: usize, b: usize) -> bool {
        let direct = |from: usize, to: usize| {
            let info = self.hosts[from].endpoint.peer(self.node(to));
            info.and_then(|i| i.path).is_some_and(|p| p.kind == PathKind::Direct)
        };
        direct(a, b) && direct(b, a)
    }

    /// The node id of a host.
    #[must_use]
    pub fn node(&self, id: usize) -> NodeId {
        self.hosts[id].address.node
    }

    /// The code of the reason for the path from one to the other.
    #[must_use]
    pub fn reason(&self, from: usize, to: usize) -> &'static str {
        let report = self.hosts[from].endpoint.path_report(self.node(to));
        report.map_or("unknown", |r| r.reason.as_str())
    }
}
