//! Three nodes, a network that loses, doubles, reorders and changes datagrams, and what must hold whatever happens:
//!
//! * nothing panics, no (key, nonce) pair seals twice;
//! * what is delivered was sent by the node that it is said to be from, to the node that got it, and comes once;
//! * early data comes once;
//! * every table stays within its bound.
//!
//! Driven by bytes: a fuzzer's, or a generator's in tests.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::Address;
use pilotage_wire::s1::Kind;
use pilotage_wire::s1::data::{HEADER_LEN, OVERHEAD};
use pilotage_wire::s1::frames::{Frame, Frames};
use pilotage_wire::s1::payload::TransportParameters;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::*;
use crate::crypto::Identity;

/// Datagrams under way.
const BAG_MAX: usize = 64;
const NODES: usize = 3;

struct Side {
    node: Node,
    peers: Vec<Option<Association>>,
    rng: ChaCha20Rng,
    lives: u8,
}

struct Datagram {
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

pub(crate) struct World {
    sides: Vec<Side>,
    bag: Vec<Datagram>,
    now: Instant,
    unix_ms: u64,
    next_id: u64,
    sent: HashSet<[u8; 10]>,
    delivered: HashSet<[u8; 10]>,
    pub(crate) opened: u64,
    pub(crate) ups: u64,
    pub(crate) early: u64,
    pub(crate) resets: u64,
    /// Packets opened in sessions that had the upgrade.
    pub(crate) upgraded: u64,
}

/// Short lives, so that a few hundred steps see every limit.
pub(crate) fn limits() -> Limits {
    Limits {
        update_packets: 4,
        update_bytes: 2_000,
        update_after: Duration::from_secs(5),
        phase_packets: 8,
        rekey_after: Duration::from_secs(20),
        rekey_packets: 60,
        refuse_after: Duration::from_secs(40),
        refuse_packets: 100,
    }
}

pub(crate) fn transport() -> TransportParameters {
    TransportParameters {
        max_datagram: 1_452,
        idle: 30,
        ack_delay: 250,
        streams: 100,
        tunnel_window: 1_024,
        stream_window: 256,
    }
}

pub(crate) fn config(number: u8, limits: Limits) -> NodeConfig {
    NodeConfig {
        identity: Identity::from_seed([number; 32]),
        address: Address::new(0, u32::from(number)),
        salt: 0,
        caps: 0,
        seq: 1,
        suites: Suite::offer(number & 1 == 1),
        transport: transport(),
        device: Secret::new([number ^ 0x55; 32]),
        limits,
        post_quantum: PostQuantum::Off,
        psks: Vec::new(),
    }
}

pub(crate) fn address_of(side: usize) -> SocketAddr {
    ([192, 0, 2, side as u8 + 1], 4_000).into()
}

impl World {
    pub(crate) fn new(base: Instant) -> Self {
        let mut world = Self {
            sides: Vec::new(),
            bag: Vec::new(),
            now: base,
            unix_ms: 1_800_000_000_000,
            next_id: 0,
            sent: HashSet::new(),
            delivered: HashSet::new(),
            opened: 0,
            ups: 0,
            early: 0,
            resets: 0,
            upgraded: 0,
        };
        for number in 0..NODES {
            let side = world.boot(number, 0);
            world.sides.push(side);
        }
        // So that early data is taken from the first.
        world.pass(Duration::from_secs(21));
        world
    }

    fn boot(&self, number: usize, life: u8) -> Side {
        let mut rng = ChaCha20Rng::from_seed([number as u8 ^ life << 2; 32]);
        let mut config = config(number as u8 + 1, limits());
        config.seq += u64::from(life);
        // Two of the three would like the upgrade.
        if number < 2 {
            config.post_quantum = PostQuantum::On;
        }
        let mut cx = Cx { now: self.now, unix_ms: self.unix_ms, rng: &mut rng };
        let node = Node::new(config, &mut cx);
        Side { node, peers: (0..NODES).map(|_| None).collect(), rng, lives: life }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.unix_ms += time.as_millis() as u64;
    }

    /// One step of an operation and three parameters.
    pub(crate) fn step(&mut self, op: u8, a: u8, b: u8, c: u8) {
        let (from, to) = (usize::from(a) % NODES, usize::from(b) % NODES);
        match op % 16 {
            0 | 1 => self.connect(from, to, c),
            2..=5 => self.send(from, to, c),
            6..=9 => self.deliver(usize::from(a), true),
            10 => self.deliver(usize::from(a), false),
            11 if !self.bag.is_empty() => {
                let at = usize::from(a) % self.bag.len();
                self.bag.swap_remove(at);
            }
            12 => self.corrupt(usize::from(a), b, c),
            13 => {
                self.pass(Duration::from_millis(u64::from(a) * u64::from(b % 64) + 1));
                self.timeouts();
            }
            14 if c < 16 => self.restart(from),
            14 => self.sides[from].node.strain(self.now),
            15 => self.index(from, to, c),
            _ => {}
        }
        self.check();
    }

    fn check(&self) {
        for side in &self.sides {
            assert!(side.node.indices() <= NODES * (2 + 4 * 9), "{} indices", side.node.indices());
            assert!(side.node.unconfirmed() <= NODES * 4);
        }
    }

    /// The association with a peer, made from what its record says today.
    fn with<R>(
        &mut self,
        from: usize,
        to: usize,
        f: impl FnOnce(&mut Association, &mut Node, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        if from == to {
            return None;
        }
        let known = self.sides[to].node.prekey();
        let side = &mut self.sides[from];
        let made = || Association::new(to as u32, known, Secret::new([7; 32]));
        let association = side.peers[to].get_or_insert_with(made);
        let mut cx = Cx { now: self.now, unix_ms: self.unix_ms, rng: &mut side.rng };
        Some(f(association, &mut side.node, &mut cx))
    }

    fn connect(&mut self, from: usize, to: usize, c: u8) {
        let id = self.id(from, to);
        let frames = datagram(&id);
        let early = (c & 1 == 1).then(|| EarlyData::idempotent(&frames).expect("a datagram may be early"));
        let begin = Begin { early, relayed: false, rtt: None };
        let sent = self.with(from, to, |a, node, cx| a.connect(node, begin, cx));
        if let Some(Ok(Some(pili))) = sent {
            self.sent.insert(id);
            self.put(from, to, pili);
        }
    }

    /// Names a message: sender, receiver, number.
    fn id(&mut self, from: usize, to: usize) -> [u8; 10] {
        self.next_id += 1;
        let mut id = [from as u8; 10];
        id[1] = to as u8;
        id[2..].copy_from_slice(&self.next_id.to_be_bytes());
        id
    }

    fn send(&mut self, from: usize, to: usize, c: u8) {
        let id = self.id(from, to);
        let frames = datagram(&id);
        let len = frames.len() + usize::from(c);
        let mut buf = vec![0; len + OVERHEAD];
        buf[HEADER_LEN..HEADER_LEN + frames.len()].copy_from_slice(&frames);
        let now = self.now;
        let sealed = self.with(from, to, |a, _, _| a.seal(&mut buf, len, now));
        match sealed {
            Some(Ok((len, _))) => {
                assert_eq!(len, buf.len());
                self.sent.insert(id);
                self.put(from, to, buf);
            }
            Some(Err(SealError::NoSession | SealError::Exhausted)) => self.connect(from, to, 0),
            _ => {}
        }
    }

    fn put(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if self.bag.len() < BAG_MAX {
            self.bag.push(Datagram { from, to, bytes });
        }
    }

    fn deliver(&mut self, at: usize, remove: bool) {
        if self.bag.is_empty() {
            return;
        }
        let at = at % self.bag.len();
        let Datagram { from, to, mut bytes } = if remove {
            self.bag.remove(at)
        } else {
            let d = &self.bag[at];
            Datagram { from: d.from, to: d.to, bytes: d.bytes.clone() }
        };
        self.handle(from, to, &mut bytes);
    }

    fn corrupt(&mut self, at: usize, place: u8, bits: u8) {
        if self.bag.is_empty() {
            return;
        }
        let at = at % self.bag.len();
        let Datagram { from, to, bytes } = &self.bag[at];
        let (from, to, mut bytes) = (*from, *to, bytes.clone());
        let place = usize::from(place) % bytes.len();
        bytes[place] ^= bits | 1;
        self.handle(from, to, &mut bytes);
    }

    fn handle(&mut self, from: usize, to: usize, bytes: &mut [u8]) {
        let slot = self.sides[to].node.route(bytes);
        match (Kind::of(bytes), slot) {
            (Some(Kind::Initiation), _) => self.handle_initiation(from, to, bytes),
            (Some(Kind::Reset), _) => {
                let genuine = self.with(to, from, |a, node, _| a.handle_reset(node, bytes));
                if genuine == Some(true) {
                    self.resets += 1;
                    self.connect(to, from, 0);
                }
            }
            (Some(Kind::Response), Some(peer)) => {
                let peer = peer as usize;
                let up = self.with(to, peer, |a, node, cx| a.handle_response(node, bytes, cx));
                if let Some(Ok(_)) = up {
                    self.ups += 1;
                    let now = self.now;
                    self.with(to, peer, |a, _, _| {
                        a.current_mut().expect("up").begin_upgrade(now, None);
                    });
                    self.send(to, peer, 0);
                    self.upgrade(to, peer, true);
                }
            }
            (Some(Kind::Cookie), Some(peer)) => {
                let again = self.with(to, peer as usize, |a, _, cx| a.handle_cookie(bytes, cx));
                if let Some(Ok(Some(pili))) = again {
                    self.put(to, peer as usize, pili);
                }
            }
            (Some(Kind::NewPrekey), Some(peer)) => {
                let again = self.with(to, peer as usize, |a, node, cx| a.handle_new_prekey(node, bytes, cx));
                if let Some(Ok(Some(pili))) = again {
                    self.put(to, peer as usize, pili);
                }
            }
            (Some(Kind::Data), Some(peer)) => self.open(to, peer as usize, bytes),
            (Some(Kind::Data), None) => {
                let source = Source { addr: address_of(from), relayed: None };
                let side = &mut self.sides[to];
                let mut cx = Cx { now: self.now, unix_ms: self.unix_ms, rng: &mut side.rng };
                if let Some(reset) = side.node.reset(bytes, &source, &mut cx) {
                    assert!(reset.len() < bytes.len());
                    self.put(to, from, reset);
                }
            }
            _ => {}
        }
    }

    fn handle_initiation(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let source = Source { addr: address_of(from), relayed: None };
        let side = &mut self.sides[to];
        let mut cx = Cx { now: self.now, unix_ms: self.unix_ms, rng: &mut side.rng };
        let incoming = match side.node.handle_initiation(bytes, &source, &mut cx) {
            Verdict::Refused(_) => return,
            Verdict::Answer(answer) => {
                assert!(answer.len() < bytes.len());
                return self.put(to, from, answer);
            }
            Verdict::Incoming(incoming) => incoming,
        };
        let peer = incoming.address().node.0 as usize - 1;
        assert_eq!(*incoming.identity(), Identity::from_seed([peer as u8 + 1; 32]).public_key());
        if !self.with(to, peer, |a, node, _| a.yields_to_peer(node)).expect("not itself") {
            return;
        }
        let side = &mut self.sides[to];
        let mut cx = Cx { now: self.now, unix_ms: self.unix_ms, rng: &mut side.rng };
        let psk = Secret::new([7; 32]);
        let Ok(accepted) = side.node.accept(*incoming, peer as u32, &psk, true, &mut cx) else { return };
        assert!(accepted.datagram.len() < bytes.len() && accepted.displaced.is_none());
        let now = self.now;
        self.with(to, peer, |a, node, _| a.adopt(node, accepted.session, accepted.early.is_some(), now));
        if let Some(early) = accepted.early {
            self.early += 1;
            self.arrived(peer, to, (&early, false));
        }
        self.put(to, from, accepted.datagram);
    }

    fn open(&mut self, to: usize, peer: usize, bytes: &mut [u8]) {
        let now = self.now;
        let opened = self.with(to, peer, |a, node, _| a.open(node, bytes, now));
        if let Some(Ok(opened)) = opened {
            self.opened += 1;
            let frames = bytes[opened.start..opened.end].to_vec();
            let current =
                self.with(to, peer, |a, _, _| a.current().is_some_and(|s| s.id() == opened.session));
            let upgraded = self.with(to, peer, |a, _, _| a.current().is_some_and(Session::is_post_quantum));
            self.upgraded += u64::from(upgraded == Some(true));
            self.arrived(peer, to, (&frames, current == Some(true)));
        }
    }

    /// Genuine, for us, and for the first time.
    fn arrived(&mut self, from: usize, to: usize, (frames, current): (&[u8], bool)) {
        for frame in Frames::new(frames) {
            match frame.expect("a genuine packet is well-formed") {
                Frame::Datagram { data, .. } => {
                    let id: [u8; 10] = data.try_into().expect("an id");
                    assert_eq!((usize::from(id[0]), usize::from(id[1])), (from, to), "misdelivered");
                    assert!(self.sent.contains(&id), "never sent");
                    assert!(self.delivered.insert(id), "delivered twice");
                }
                Frame::NewIndex { seq, index, token, .. } => {
                    let good = self.with(to, from, |a, _, _| {
                        a.current_mut().is_none_or(|s| {
                            s.on_new_index(seq, index, token);
                            true
                        })
                    });
                    assert_eq!(good, Some(true));
                }
                Frame::Upgrade(step) if current => {
                    let send =
                        self.with(to, from, |a, _, cx| a.on_upgrade_step(&step, cx)).expect("two nodes");
                    if send.expect("a genuine step is no error") {
                        self.upgrade(to, from, false);
                    }
                }
                Frame::RetireIndex(seq) => {
                    self.with(to, from, |a, node, _| a.retire_index(node, seq));
                }
                _ => {}
            }
        }
    }

    /// The steps of the upgrade, if they are due or wanted.
    fn upgrade(&mut self, from: usize, to: usize, due: bool) {
        let now = self.now;
        let sealed = self.with(from, to, |a, _, _| {
            let Some(session) = a.current_mut() else { return Vec::new() };
            if due && !session.upgrade_is_due(now) {
                return Vec::new();
            }
            let frames: Vec<_> = session
                .upgrade_steps()
                .into_iter()
                .map(|step| {
                    let mut buf = vec![0; 700];
                    let len = Frame::Upgrade(step).encode(&mut buf[HEADER_LEN..]).expect("room");
                    (buf, len)
                })
                .collect();
            let seal = |(mut buf, len): (Vec<u8>, usize)| {
                let (total, _) = a.seal(&mut buf, len, now).ok()?;
                buf.truncate(total);
                Some(buf)
            };
            frames.into_iter().filter_map(seal).collect()
        });
        for bytes in sealed.unwrap_or_default() {
            self.put(from, to, bytes);
        }
    }

    /// Tells one more index, or moves to one of the peer's.
    fn index(&mut self, from: usize, to: usize, c: u8) {
        let frame = self.with(from, to, |a, node, cx| {
            if c & 1 == 0 {
                let (seq, index, token) = a.new_index(node, cx)?;
                return Some(Frame::NewIndex { seq, retire: 0, index, token });
            }
            Some(Frame::RetireIndex(a.current_mut()?.use_spare()?))
        });
        let Some(Some(frame)) = frame else { return };
        let mut buf = [0; 100];
        let len = frame.encode(&mut buf[HEADER_LEN..]).expect("room");
        let now = self.now;
        if let Some(Ok((len, _))) = self.with(from, to, |a, _, _| a.seal(&mut buf, len, now)) {
            self.put(from, to, buf[..len].to_vec());
        }
    }

    fn timeouts(&mut self) {
        for from in 0..NODES {
            for to in 0..NODES {
                if self.sides[from].peers[to].is_none() {
                    continue;
                }
                let due = self.with(from, to, |a, node, cx| {
                    let due = a.deadline().is_some_and(|at| at <= cx.now);
                    due.then(|| a.handle_timeout(node, cx))
                });
                if let Some(Some(Timeout::Send(pili))) = due {
                    self.put(from, to, pili);
                }
                self.upgrade(from, to, true);
            }
        }
    }

    /// All is lost but the identity and the device's secret. Peers keep what they knew, and learn by PILX and PILN.
    fn restart(&mut self, number: usize) {
        let life = self.sides[number].lives;
        if life < 60 {
            self.sides[number] = self.boot(number, life + 1);
        }
    }

    /// Delivers all in order, until nothing is under way.
    #[cfg(test)]
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.bag.is_empty() {
                return;
            }
            self.deliver(0, true);
        }
        panic!("datagrams without end");
    }

    #[cfg(test)]
    pub(crate) fn is_up(&self, from: usize, to: usize) -> bool {
        self.sides[from].peers[to].as_ref().is_some_and(|a| a.current().is_some())
    }
}

fn datagram(id: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; 32];
    let frame = Frame::Datagram { source: 1, destination: 2, data: id, to_end: false };
    let len = frame.encode(&mut buf).expect("room");
    buf.truncate(len);
    buf
}

/// Runs a world on bytes, four per step.
#[cfg(feature = "fuzzing")]
pub(crate) fn run(base: Instant, data: &[u8]) {
    crate::audit::start();
    let mut world = World::new(base);
    for step in data.chunks_exact(4) {
        world.step(step[0], step[1], step[2], step[3]);
    }
    let mut sealed = Vec::new();
    crate::audit::take(&mut sealed);
    let all = sealed.len();
    sealed.sort_unstable();
    sealed.dedup();
    assert_eq!(sealed.len(), all, "a key and nonce sealed twice");
}
