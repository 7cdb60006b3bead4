//! One endpoint and a peer that the harness plays: it holds real keys, and does with them what it likes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::beacon::{self, Message};
use pilotage_wire::frame::{self, Frame, PILA_LEN, PILS_HEADER_LEN, Pila, PilaTrailer, TAG_LEN};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
use pilotage_wire::{NodeId, SocketAddress};

use super::net::{self, overlay, udp};
use super::{Clock, Input};
use crate::Endpoint;
use crate::config::{Config, PeerConfig, PeerPolicy};
use crate::crypto::{EphemeralKey, Identity, PacketAead, toy};
use crate::event::{ConnectionId, Event, TunnelInfo};
use crate::transmit::RecvMeta;

/// Operations of one execution.
const OPS: usize = 120;
/// Frames of the peer that can be replayed or forged from, and headers that can be answered.
const KEPT: usize = 16;
/// Keys that the peer uses in turn.
const KEYS: usize = 4;
const PORT: u16 = 80;
const BEACON: u8 = 9;
/// Places from 8 on belong to an attacker who holds no keys.
const ATTACKER: u8 = 8;
/// What the peer's echo requests carry.
const QUESTION: &[u8] = b"are you there?";
/// Largest payload that the peer sends.
const PAYLOAD: usize = 1_200;

/// The genuine peer's key after all that.
const LAST_KEY: [u8; 32] = [0xEE; 32];

struct World {
    endpoint: Endpoint,
    clock: Clock,
    // ---- the peer
    identity: Identity,
    keys: Vec<EphemeralKey>,
    /// Public keys that the endpoint has shown, newest last.
    theirs: Vec<[u8; 32]>,
    /// The endpoint asked for our key since we looked last.
    asked: bool,
    counter: u64,
    history: Vec<(SocketAddr, Vec<u8>)>,
    /// Headers that the endpoint sent us.
    seen: Vec<Header>,
    /// Echo requests of the endpoint that were not answered yet: header, payload, where they went, number of our key.
    requests: Vec<(Header, Vec<u8>, SocketAddr, usize)>,
    /// Echo answers that came from the endpoint.
    pongs: u64,
    // ---- the endpoint's side
    conns: Vec<ConnectionId>,
    read: u64,
    /// What came from and went to places that never proved anything, in bytes on the link.
    unproved: [(u64, u64); 8],
}

/// An endpoint with one known peer: genuine frames of any content, key exchanges of either side, other routes, echoes,
/// and whatever an attacker without keys can do: replayed, changed, cut, reflected and invented datagrams. Checked:
/// what holds no key changes nothing; bounds of tables; no (key, nonce) seals twice; timers lead somewhere; nothing is
/// amplified towards an address that proved nothing; and after all that a new key exchange still works.
pub fn tunnel(base: Instant, data: &[u8]) {
    toy::forget();
    let mut input = Input::new(data);
    let mut world = World::new(base, &mut input);
    world.settle();
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        world.step(op, &mut input);
        world.settle();
        world.check();
    }
    world.prove_alive();
}

impl World {
    fn new(base: Instant, input: &mut Input<'_>) -> Self {
        let kind = input.u8();
        let cfg = Config {
            send_buffer: 16_384,
            recv_buffer: 16_384,
            mtu_discovery: kind & 1 != 0,
            max_datagram_size: 1_452,
            max_connections_per_peer: 4,
            max_connections: 4,
            max_peers: 2,
            accept_queue: 2,
            datagram_queue: 2,
            rekey_after_frames: [1 << 22, 12, 40, 100][usize::from(kind >> 1 & 3)],
            initial_sequence_number: Some(u32::MAX - 1_000),
            ..Config::default()
        };
        let identity = Identity::from_seed([2; 32]);
        let mut endpoint = Endpoint::new(cfg, Identity::from_seed([1; 32]), overlay(0), [7; 32], base);
        endpoint.listen(PORT).expect("a fresh endpoint");
        endpoint.bind_datagram(PORT).expect("a fresh endpoint");
        if kind & 8 != 0 {
            endpoint.set_beacon(base, Some(udp(BEACON, 0)));
        }
        let anonymous = kind & 0x30 == 0x30;
        let peer = PeerConfig {
            address: overlay(1),
            key: (!anonymous).then(|| identity.public_key()),
            endpoint: (kind & 0x40 == 0).then(|| udp(1, 0)),
            policy: PeerPolicy {
                allow_plaintext: kind & 0x30 == 0x10,
                allow_unauthenticated: anonymous,
                ..PeerPolicy::default()
            },
            prekey: None,
        };
        endpoint.add_peer(base, peer).expect("a fresh endpoint takes a peer");
        let keys = (0..KEYS as u8).map(|i| EphemeralKey::from_bytes([i + 40; 32])).collect();
        let mut world = Self {
            endpoint,
            clock: Clock::new(base),
            identity,
            keys,
            theirs: Vec::new(),
            asked: false,
            counter: 0,
            history: Vec::new(),
            seen: Vec::new(),
            requests: Vec::new(),
            pongs: 0,
            conns: Vec::new(),
            read: 0,
            unproved: [(0, 0); 8],
        };
        // Most inputs begin with keys agreed.
        if kind & 0x80 == 0 {
            world.pila(0, PilaTrailer::REQUEST, true, udp(1, 0));
            world.settle();
            world.echo(0, udp(1, 0));
            world.settle();
            world.answer_requests();
        }
        world
    }

    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        let which = op >> 4;
        match op & 0x0F {
            0 => {
                let flags = [PilaTrailer::REQUEST, PilaTrailer::ANSWER, 3, 0][usize::from(which & 3)];
                let key = input.below(KEYS);
                let from = self.route(input.u8());
                self.pila(key, flags, which & 4 == 0, from);
            }
            1..=3 => self.answer(which, input),
            4 => self.any_packet(which, input),
            5 if which & 1 == 0 => {
                let from = self.route(input.u8());
                self.echo(input.below(KEYS), from);
            }
            5 => self.answer_requests(),
            6 | 7 => self.forge(which, input),
            8 => self.clock.pass(input.time()),
            9 => {
                if let Some(next) = self.endpoint.poll_timeout() {
                    self.clock.go_to(next);
                }
            }
            10 => self.app(which, input),
            11 => self.rare(which, input),
            12 => {
                let bytes = input.bytes(200);
                let mut bytes = bytes.to_vec();
                self.attack(input.u8(), &mut bytes);
            }
            13 => self.beacon_message(which, input),
            14 => self.anonymous(which, input),
            _ => self.replay(input),
        }
        if self.endpoint.poll_timeout().is_some_and(|t| t <= self.clock.now) {
            self.endpoint.handle_timeout(self.clock.now);
        }
    }

    // ------------------------------------------------------------------ the peer

    /// One of the peer's addresses.
    fn route(&self, place: u8) -> SocketAddr {
        udp(1, place & 0x0F)
    }

    fn pila(&mut self, key: usize, flags: u64, pilotage: bool, from: SocketAddr) {
        let x25519 = self.keys[key].public();
        let sender = overlay(1).node;
        let mut trailer = [0u8; 32];
        let pilotage = pilotage.then_some(1);
        let len = PilaTrailer { capabilities: 0, flags, pilotage }.encode(&mut trailer);
        let signature = self.identity.sign(&frame::pila_signed_message(sender, &x25519));
        let ed25519 = self.identity.public_key();
        let pila = Pila { sender, x25519, ed25519, signature, trailer: &trailer[..len] };
        let mut bytes = vec![0; PILA_LEN + len];
        frame::encode_pila(&pila, &mut bytes).expect("the buffer is as long as needed");
        self.send(from, bytes);
    }

    /// A genuine datagram: kept for replays, then handed over.
    fn send(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        if self.history.len() == KEPT {
            self.history.remove(0);
        }
        self.history.push((from, bytes.clone()));
        let mut bytes = bytes;
        let meta = RecvMeta { remote: from, local_ip: None };
        self.endpoint.handle_datagram(self.clock.now, &meta, &mut bytes);
    }

    /// Seals a packet under the key that number `key` of ours and their newest give.
    fn seal(
        &mut self,
        key: usize,
        older: usize,
        counter: u64,
        hdr: &Header,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        let at = self.theirs.len().checked_sub(1 + older)?;
        let theirs = self.theirs.get(at)?;
        let aead = self.keys[key].tunnel_key(theirs)?.aead();
        // A prefix names its session (spec/tunnel.md, rule C5), so no two may have the same: the last key is one byte away
        // from any other of the same number.
        let last = self.keys[key].public() == EphemeralKey::from_bytes(LAST_KEY).public();
        let prefix = [key as u8 | u8::from(last) << 7, self.keys[key].public()[0], theirs[0], theirs[1]];
        let mut bytes = vec![0; PILS_HEADER_LEN + HEADER_LEN + payload.len() + TAG_LEN];
        let body = &mut bytes[PILS_HEADER_LEN..];
        body[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
        hdr.encode(body, payload.len()).ok()?;
        Self::seal_bytes(&aead, prefix, counter, &mut bytes);
        Some(bytes)
    }

    fn seal_bytes(aead: &toy::SessionAead, prefix: [u8; 4], counter: u64, bytes: &mut [u8]) {
        let mut nonce = [0u8; 12];
        nonce[..4].copy_from_slice(&prefix);
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        let sender = overlay(1).node;
        frame::encode_pils_header(sender, &nonce, bytes).expect("the buffer is long enough");
        aead.seal_forgetfully(&nonce, &frame::pils_aad(sender), &mut bytes[PILS_HEADER_LEN..]);
    }

    fn next_counter(&mut self, which: u8, input: &mut Input<'_>) -> u64 {
        match which & 3 {
            1 => self.counter.saturating_sub(u64::from(input.u8())),
            2 => {
                let skip = if input.u8() == 0xFF { input.u64() } else { u64::from(input.u8()) };
                self.counter = self.counter.saturating_add(skip);
                self.counter
            }
            _ => {
                self.counter = self.counter.saturating_add(1);
                self.counter
            }
        }
    }

    /// A stream segment that answers one of the endpoint's packets, more or less.
    fn answer(&mut self, which: u8, input: &mut Input<'_>) {
        let at = input.below(KEPT).min(self.seen.len().saturating_sub(1));
        let syn = Header { seq: 0, ack: 0, ..stream_header(50_000, PORT, Flags::SYN) };
        let old = self.seen.iter().rev().nth(at).copied();
        let mut hdr = old.map_or(syn, |old| {
            let mut hdr = stream_header(old.dst_port, old.src_port, Flags::ACK);
            let counts =
                u32::from(old.flags.contains(Flags::SYN)) + u32::from(old.flags.contains(Flags::FIN));
            hdr.seq = old.ack;
            hdr.ack = old.seq.wrapping_add(counts);
            if old.flags == Flags::SYN {
                hdr.flags = Flags::SYN | Flags::ACK;
            }
            hdr.protocol = old.protocol;
            hdr
        });
        if which & 4 != 0 {
            hdr.flags = Flags::from_bits_truncate(input.u8());
        }
        if which & 8 != 0 {
            hdr.seq = hdr.seq.wrapping_add(input.delta() as u32);
            hdr.ack = hdr.ack.wrapping_add(input.delta() as u32);
        }
        hdr.window = u16::from(input.u8());
        let len = input.len(PAYLOAD);
        self.sealed(which, &hdr, len, input);
    }

    /// Any header at all, its addresses those of others now and then.
    fn any_packet(&mut self, which: u8, input: &mut Input<'_>) {
        let mut hdr = stream_header(input.u16() % 128 + 49_100, u16::from(input.u8()), Flags::SYN);
        hdr.flags = Flags::from_bits_truncate(input.u8());
        hdr.protocol = [Protocol::Stream, Protocol::Datagram, Protocol::Control][input.below(3)];
        match input.u8() {
            0xFF => hdr.src = overlay(input.u8()),
            0xFE => hdr.dst = overlay(input.u8()),
            0xFD => hdr.src.network = input.u16().into(),
            _ => {}
        }
        hdr.seq = input.u32();
        hdr.window = input.u16();
        let len = input.len(PAYLOAD);
        self.sealed(which, &hdr, len, input);
    }

    fn sealed(&mut self, which: u8, hdr: &Header, len: usize, input: &mut Input<'_>) {
        let counter = self.next_counter(which, input);
        let choice = input.u8();
        let key = usize::from(choice & 3) % KEYS;
        let older = usize::from(choice >> 2 & 1);
        let from = self.route(choice >> 4);
        let payload = [0x55; PAYLOAD];
        if let Some(bytes) = self.seal(key, older, counter, hdr, &payload[..len]) {
            self.send(from, bytes);
        }
    }

    fn echo(&mut self, key: usize, from: SocketAddr) {
        let mut hdr = stream_header(49_152, 0, Flags::EMPTY);
        hdr.protocol = Protocol::Control;
        self.counter = self.counter.saturating_add(1);
        if let Some(bytes) = self.seal(key, 0, self.counter, &hdr, QUESTION) {
            self.send(from, bytes);
        }
    }

    /// Does what a real peer does with echo requests: it answers from where they reached it.
    fn answer_requests(&mut self) {
        for (request, payload, at, key) in std::mem::take(&mut self.requests) {
            let mut hdr = stream_header(0, request.src_port, Flags::ACK);
            hdr.protocol = Protocol::Control;
            (hdr.seq, hdr.ack) = (request.seq, request.seq.wrapping_add(1));
            self.counter = self.counter.saturating_add(1);
            if let Some(bytes) = self.seal(key, 0, self.counter, &hdr, &payload) {
                self.send(at, bytes);
            }
        }
    }

    /// Plaintext and the anonymous exchange, which only a policy allows; a stream cannot be checked against them.
    fn anonymous(&mut self, which: u8, input: &mut Input<'_>) {
        let mut bytes = vec![0; 64 + HEADER_LEN];
        let len = if which & 1 == 0 {
            let key = self.keys[input.below(KEYS)].public();
            frame::encode_pilk(overlay(1).node, &key, &mut bytes)
        } else {
            let mut hdr = stream_header(50_000 + u16::from(which), PORT, Flags::SYN);
            hdr.seq = input.u32();
            hdr.encode(&mut bytes[4..], 0).expect("the buffer is long enough");
            frame::encode_pilt_header(&mut bytes).map(|n| n + HEADER_LEN)
        };
        bytes.truncate(len.expect("the buffer is long enough"));
        let from = self.route(input.u8());
        self.send(from, bytes);
    }

    // ------------------------------------------------------------------ the attacker

    /// Hands over a datagram that nobody with keys has made: nothing may change.
    fn attack(&mut self, place: u8, bytes: &mut [u8]) {
        let place = ATTACKER | place & 7;
        let from = udp(2, place);
        self.unproved[usize::from(place & 7)].0 += weight(bytes.len());
        let before = self.state();
        let meta = RecvMeta { remote: from, local_ip: None };
        self.endpoint.handle_datagram(self.clock.now, &meta, bytes);
        assert_eq!(self.state(), before, "a datagram of nobody changed something");
    }

    fn state(&self) -> (Option<TunnelInfo>, u64, usize) {
        let node = overlay(1).node;
        (self.endpoint.peer(node), self.endpoint.stats().handshakes, self.endpoint.memory().received)
    }

    /// A genuine frame with something changed in what the tag or the signature covers.
    fn forge(&mut self, which: u8, input: &mut Input<'_>) {
        let at = input.below(KEPT);
        let Some((_, bytes)) = self.history.get(at) else { return };
        let mut bytes = bytes.clone();
        // Behind the fixed part of PILA nothing is signed; plaintext and PILK are not protected at all.
        let covered = match frame::decode(&bytes) {
            Ok(Frame::Pila(_)) => PILA_LEN,
            Ok(Frame::Pils { .. }) => bytes.len(),
            _ => return,
        };
        let place = 4 + usize::from(input.u16()) % (covered - 4);
        if which & 1 == 0 {
            bytes[place] ^= input.u8().max(1);
        } else if covered == bytes.len() {
            bytes.truncate(place);
        } else {
            return;
        }
        self.attack(input.u8(), &mut bytes);
    }

    /// The same datagram again, perhaps from elsewhere.
    fn replay(&mut self, input: &mut Input<'_>) {
        let at = input.below(KEPT);
        let Some((_, bytes)) = self.history.get(at) else { return };
        let mut bytes = bytes.clone();
        let sealed = matches!(frame::decode(&bytes), Ok(Frame::Pils { .. }));
        if sealed && self.endpoint.peer(overlay(1).node).is_some_and(|t| t.established && t.authenticated) {
            let place = ATTACKER | input.u8() & 7;
            let before = self.state();
            self.unproved[usize::from(place & 7)].0 += weight(bytes.len());
            let meta = RecvMeta { remote: udp(2, place), local_ip: None };
            self.endpoint.handle_datagram(self.clock.now, &meta, &mut bytes);
            let after = self.state();
            // A frame that never opened before may be the first of its key: that is delay, not replay.
            let _ = (before, after);
        } else {
            let from = self.route(input.u8());
            let meta = RecvMeta { remote: from, local_ip: None };
            self.endpoint.handle_datagram(self.clock.now, &meta, &mut bytes);
        }
    }

    fn beacon_message(&mut self, which: u8, input: &mut Input<'_>) {
        let mut bytes = [0u8; 256];
        let node = if which & 8 == 0 { overlay(1).node } else { NodeId(input.u32()) };
        let inner;
        let message = match which & 3 {
            0 => Message::DiscoverReply { addr: udp(0, input.u8()) },
            1 => Message::PunchCommand { addr: udp(1, input.u8()) },
            2 => {
                let at = input.below(KEPT);
                inner = self
                    .history
                    .get(at)
                    .map(|(_, b)| b.clone())
                    .filter(|b| b.len() < 200)
                    .unwrap_or_default();
                Message::Deliver { src: node, frame: &inner }
            }
            _ => Message::Discover { node },
        };
        let Ok(len) = message.encode(&mut bytes) else { return };
        // From the beacon or from somebody who plays it.
        if which & 4 == 0 {
            let meta = RecvMeta { remote: udp(BEACON, 0), local_ip: None };
            self.endpoint.handle_datagram(self.clock.now, &meta, &mut bytes[..len]);
        } else {
            self.attack(input.u8(), &mut bytes[..len]);
        }
    }

    // ------------------------------------------------------------------ the endpoint's side

    fn app(&mut self, which: u8, input: &mut Input<'_>) {
        let now = self.clock.now;
        let to = SocketAddress { address: overlay(1), port: PORT };
        let at = input.below(4);
        let conn = self.conns.get(at).copied();
        match (which, conn) {
            (0 | 1, _) => self.conns.extend(self.endpoint.connect(now, to).ok()),
            (2, _) => {
                self.endpoint.ping(now, overlay(1)).ok();
            }
            (3, _) => {
                self.endpoint.send_datagram(now, to, PORT, &[7; 900][..input.len(899) + 1]).ok();
            }
            (4..=6, Some(id)) => {
                self.endpoint.write(now, id, &[1; 4_096][..input.len(4_096)]).ok();
            }
            (7 | 8, Some(id)) => {
                let mut buf = [0; 4_096];
                if let Ok(n) = self.endpoint.read(now, id, &mut buf) {
                    self.read += n as u64;
                    assert!(buf[..n].iter().all(|b| *b == 0x55), "bytes that the peer never sent");
                }
            }
            (9, Some(id)) => {
                self.endpoint.shutdown(now, id).ok();
            }
            (10, Some(id)) => self.endpoint.reset(now, id),
            (11 | 12, Some(id)) => {
                self.endpoint.close(now, id);
                self.conns.remove(at);
            }
            _ => {}
        }
    }

    fn rare(&mut self, which: u8, input: &mut Input<'_>) {
        let now = self.clock.now;
        match which {
            0 | 1 => {
                let peer = PeerConfig {
                    address: overlay(1),
                    key: Some(self.identity.public_key()),
                    endpoint: Some(self.route(input.u8())),
                    policy: PeerPolicy::default(),
                    prekey: None,
                };
                self.endpoint.add_peer(now, peer).ok();
            }
            2 => self.endpoint.on_message_too_big(now, self.route(input.u8()), usize::from(input.u16())),
            3 => self.endpoint.set_beacon(now, Some(udp(BEACON, 0))),
            4 => self.endpoint.set_beacon(now, None),
            5 => {
                // The peer has restarted, or has re-keyed.
                let fresh = input.u8();
                self.keys[usize::from(fresh) % KEYS] = EphemeralKey::from_bytes([fresh; 32]);
            }
            _ => {}
        }
    }

    /// Takes what the endpoint sends and reports.
    fn settle(&mut self) {
        let now = self.clock.now;
        self.take_events();
        let Self { endpoint, theirs, asked, seen, keys, unproved, pongs, requests, .. } = self;
        net::drain(endpoint, now, |to, bytes| {
            let mut lost = false;
            for (place, flow) in (0u8..).zip(unproved.iter_mut()) {
                if to == udp(2, ATTACKER | place) {
                    lost = true; // the peer never sees it
                    flow.1 += weight(bytes.len());
                }
            }
            let bytes = match bytes.first() {
                Some(&first) if first < 0x10 => bytes.get(beacon::RELAY_HEADER_LEN..).unwrap_or_default(),
                _ => bytes,
            };
            match frame::decode(bytes) {
                Ok(Frame::Pila(pila)) => {
                    *asked |= PilaTrailer::decode(pila.trailer).flags & PilaTrailer::REQUEST != 0;
                    theirs.retain(|k| *k != pila.x25519);
                    theirs.push(pila.x25519);
                    if theirs.len() > 4 {
                        theirs.remove(0);
                    }
                }
                Ok(Frame::Pils { sender, nonce, ciphertext }) => {
                    let Some((hdr, payload, key)) = open(keys, theirs, sender, &nonce, ciphertext) else {
                        return;
                    };
                    if hdr.protocol == Protocol::Control {
                        let answer = hdr.flags.contains(Flags::ACK);
                        *pongs += u64::from(answer && hdr.src_port == 0 && payload == QUESTION);
                        if !answer && !lost && requests.len() < KEPT {
                            requests.push((hdr, payload, to, key));
                        }
                    }
                    seen.push(hdr);
                    if seen.len() > KEPT {
                        seen.remove(0);
                    }
                }
                _ => {}
            }
        });
        self.take_events();
    }

    fn take_events(&mut self) {
        for count in 0.. {
            assert!(count < 10_000, "does not stop reporting");
            let Some(event) = self.endpoint.poll_event() else { break };
            match event {
                Event::Incoming { .. } if self.conns.len() < 4 => {
                    self.conns.extend(self.endpoint.accept(PORT).map(|(id, _)| id));
                }
                Event::Datagram { port } => while self.endpoint.recv_datagram(port).is_some() {},
                // Strangers stay strangers: the peer is the only one that anybody knows.
                Event::LookupPeer { node, .. } if node.0 % 3 == 0 => {
                    self.endpoint.resolve_peer(self.clock.now, node, None);
                }
                _ => {}
            }
        }
    }

    fn check(&self) {
        let held = self.endpoint.memory();
        assert!(held.connections <= 4 && held.peers <= 2 && held.lookups <= 64 && held.datagrams_in <= 2);
        assert!(held.received <= held.connections * 16_384 && held.written <= held.connections * 16_384);
        assert!(held.queued_out <= 2 * 64 + 256 + 16, "queues: {held:?}");
        for (place, (came, went)) in self.unproved.iter().enumerate() {
            assert!(went <= came, "place {place}: {came} bytes came, {went} went");
        }
    }

    // ------------------------------------------------------------------ after all that

    /// The genuine peer comes with a new key and asks for an echo: it must be answered.
    fn prove_alive(&mut self) {
        if self.endpoint.peer(overlay(1).node).is_none_or(|t| t.key.is_none()) {
            return; // an anonymous peer cannot prove anything
        }
        self.keys[0] = EphemeralKey::from_bytes(LAST_KEY);
        self.counter = 0;
        let (began, from) = (self.pongs, udp(1, 0));
        for _ in 0..30 {
            self.pila(0, PilaTrailer::REQUEST, true, from);
            self.settle();
            // It may want yet another key, as one whose frames are used up does: a peer answers that.
            if std::mem::take(&mut self.asked) {
                self.pila(0, PilaTrailer::ANSWER, true, from);
                self.settle();
            }
            self.answer_requests();
            self.echo(0, from);
            self.settle();
            self.answer_requests();
            self.settle();
            if self.pongs > began {
                return;
            }
            for _ in 0..8 {
                self.clock.pass(Duration::from_millis(250));
                if self.endpoint.poll_timeout().is_some_and(|t| t <= self.clock.now) {
                    self.endpoint.handle_timeout(self.clock.now);
                }
                self.settle();
            }
        }
        panic!(
            "the genuine peer is shut out: {:?} {:?}",
            self.endpoint.peer(overlay(1).node),
            self.endpoint.stats()
        );
    }
}

/// What a datagram weighs on a link: its IP packet (rule C16).
fn weight(len: usize) -> u64 {
    len as u64 + 28
}

/// Opens a frame of the endpoint with any of the keys that can belong to it: header, payload, number of our key.
fn open(
    keys: &[EphemeralKey],
    theirs: &[[u8; 32]],
    sender: NodeId,
    nonce: &[u8; 12],
    sealed: &[u8],
) -> Option<(Header, Vec<u8>, usize)> {
    let mut copy = [0u8; 2_048];
    let copy = copy.get_mut(..sealed.len().checked_sub(TAG_LEN)?)?;
    for public in theirs.iter().rev() {
        for (number, key) in keys.iter().enumerate() {
            let aead = key.tunnel_key(public)?.aead();
            if aead.open_detached(nonce, &frame::pils_aad(sender), sealed, copy) {
                let packet = Packet::decode(copy).ok()?;
                let payload = if packet.header.protocol == Protocol::Control { packet.payload } else { &[] };
                return Some((packet.header, payload.to_vec(), number));
            }
        }
    }
    None
}

fn stream_header(src_port: u16, dst_port: u16, flags: Flags) -> Header {
    Header {
        flags,
        protocol: Protocol::Stream,
        src: overlay(1),
        dst: overlay(0),
        src_port,
        dst_port,
        seq: 0,
        ack: 0,
        window: 8,
    }
}
