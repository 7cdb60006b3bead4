//! What attackers gain against tunnels in S1: nothing (spec/secure.md §15, tests 1, 2, 4, 6, 12).

use std::time::{Duration, Instant};

use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::{Association, Begin, Cx, Limits, Node, NodeConfig, PostQuantum, Secret, Suite};
use pilotage_proto::{Config, ConnectionId, Event, Mode, PeerConfig, PeerPolicy, ReadError, SecureMode};
use pilotage_sim::{Link, Modes, Pair, Side, pattern, seeds};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};
use pilotage_wire::s1::Kind;
use pilotage_wire::s1::data::HEADER_LEN as S1_HEADER;
use pilotage_wire::s1::frames::Frame;
use pilotage_wire::s1::handshake::Reset;
use pilotage_wire::s1::payload::TransportParameters;
use pilotage_wire::{Address, SocketAddress, frame};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

const UNIX_MS: u64 = 1_800_000_000_000;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn pair_of(seed: u64, modes: Modes) -> Pair {
    let mut pair = Pair::with_modes(seed, Link::default(), Config::default(), modes);
    pair.record = true;
    pair
}

fn say(pair: &mut Pair, from: Side, ids: (ConnectionId, ConnectionId), text: &[u8]) -> Vec<u8> {
    let (writer, reader) = if from == Side::A { ids } else { (ids.1, ids.0) };
    let now = pair.now;
    let _ = pair.endpoint(from).write(now, writer, text);
    let mut got = Vec::new();
    pair.run_until(seconds(20), |p| {
        let now = p.now;
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = p.endpoint(from.other()).read(now, reader, &mut buf) {
            got.extend_from_slice(&buf[..n]);
        }
        got.len() >= text.len()
    });
    got
}

fn segment(src: Address, dst: Address, ports: (u16, u16), flags: Flags, protocol: Protocol) -> Header {
    let (src_port, dst_port) = ports;
    Header { flags, protocol, src, dst, src_port, dst_port, seq: 1, ack: 1, window: 512 }
}

/// A node that C controls, which the two know as a peer like any other.
struct Rogue {
    node: Node,
    assoc: Association,
    rng: ChaCha8Rng,
    address: Address,
    key: [u8; 32],
    at: std::net::SocketAddr,
}

impl Rogue {
    fn new(pair: &mut Pair, victim: Side) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(77);
        let identity = Identity::from_seed([77; 32]);
        let (key, address) = (identity.public_key(), Address::new(0, 0x7777));
        let now = pair.now;
        let transport = TransportParameters {
            max_datagram: 1_500,
            idle: 0,
            ack_delay: 0,
            streams: 0,
            tunnel_window: 0,
            stream_window: 0,
        };
        let config = NodeConfig {
            identity,
            address,
            salt: 0,
            caps: 0,
            seq: 1,
            suites: Suite::offer(true),
            transport,
            device: Secret::new([7; 32]),
            limits: Limits::default(),
            post_quantum: PostQuantum::Off,
            psks: Vec::new(),
        };
        let node = Node::new(config, &mut Cx { now, unix_ms: UNIX_MS, rng: &mut rng });
        let prekey = pair.endpoint(victim).prekey().expect("S1 is on");
        let assoc = Association::new(0, prekey, Secret::new([0; 32]));
        Self { node, assoc, rng, address, key, at: "203.0.113.77:7777".parse().expect("address") }
    }

    fn introduce_to(&self, pair: &mut Pair, victim: Side) {
        let (now, policy) = (pair.now, PeerPolicy::default());
        let peer = PeerConfig {
            address: self.address,
            key: Some(self.key),
            endpoint: Some(self.at),
            policy,
            prekey: None,
        };
        pair.endpoint(victim).add_peer(now, peer).expect("room");
    }

    /// Comes to a session with the victim.
    fn call(&mut self, pair: &mut Pair, victim: Side) {
        let mut cx = Cx { now: pair.now, unix_ms: UNIX_MS, rng: &mut self.rng };
        let begun = self.assoc.connect(&mut self.node, Begin::default(), &mut cx);
        let pili = begun.expect("a good certificate").expect("none is under way");
        pair.recorded.clear();
        pair.inject(self.at, victim, &pili);
        pair.run_for(ms(50));
        let (_, pilr) = pair
            .recorded
            .iter()
            .find(|(side, bytes)| *side == victim && Kind::of(bytes) == Some(Kind::Response))
            .expect("an answer")
            .clone();
        let mut cx = Cx { now: pair.now, unix_ms: UNIX_MS, rng: &mut self.rng };
        self.assoc.handle_response(&mut self.node, &pilr, &mut cx).expect("keys");
    }

    fn send(&mut self, pair: &mut Pair, victim: Side, frames: &[u8]) {
        let mut bytes = vec![0; frames.len() + 25];
        bytes[S1_HEADER..S1_HEADER + frames.len()].copy_from_slice(frames);
        let (len, _) = self.assoc.seal(&mut bytes, frames.len(), pair.now).expect("keys");
        pair.inject(self.at, victim, &bytes[..len]);
    }

    fn send_packet(&mut self, pair: &mut Pair, victim: Side, hdr: &Header, payload: &[u8]) {
        let mut packet = vec![0; HEADER_LEN + payload.len()];
        packet[HEADER_LEN..].copy_from_slice(payload);
        hdr.encode(&mut packet, payload.len()).expect("fits");
        let mut frames = vec![0; packet.len() + 8];
        let len = Frame::Legacy { packet: &packet, to_end: true }.encode(&mut frames).expect("fits");
        self.send(pair, victim, &frames[..len]);
    }
}

/// Test 4: whatever comes in clear, or under keys of the draft, from the peer's own address, has no effect.
#[test]
fn frames_of_the_draft_into_a_tunnel_in_s1_have_no_effect() {
    let mut pair = pair_of(1, Modes::both(SecureMode::Auto));
    pair.censor = Some(Box::new(|_, bytes| bytes.starts_with(b"PILI")));
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    pair.censor = None;
    pair.run_for(seconds(40));
    assert_eq!(say(&mut pair, Side::A, ids, b"s1"), b"s1");
    assert_eq!(pair.endpoint(Side::B).peers()[0].mode, Mode::S1);
    pair.endpoint(Side::B).bind_datagram(53).expect("free");
    let drafts: Vec<_> = pair
        .recorded
        .iter()
        .filter(|(side, bytes)| *side == Side::A && bytes.starts_with(b"PIL") && Kind::of(bytes).is_none())
        .map(|(_, bytes)| bytes.clone())
        .collect();
    assert!(drafts.iter().any(|b| b.starts_with(b"PILA")) && drafts.iter().any(|b| b.starts_with(b"PILS")));
    let (a, b, from) = (pair.host(Side::A).address, pair.host(Side::B).address, pair.host(Side::A).addr);
    let a_port = pair.endpoint(Side::A).local_port(ids.0).expect("open");
    let handshakes = pair.endpoint(Side::B).stats().handshakes;
    for flags in 0..16 {
        for protocol in [Protocol::Stream, Protocol::Datagram, Protocol::Control] {
            let hdr = segment(a, b, (a_port, 7), Flags::from_bits_truncate(flags), protocol);
            let to_53 = Header { dst_port: 53, ..hdr };
            for hdr in [hdr, to_53] {
                let mut bytes = vec![b'x'; 64];
                let head = frame::encode_pilt_header(&mut bytes).expect("fits");
                let len = hdr.encode(&mut bytes[head..], 4).expect("fits");
                pair.inject(from, Side::B, &bytes[..head + len]);
            }
        }
    }
    for draft in &drafts {
        pair.inject(from, Side::B, draft);
    }
    pair.recorded.clear();
    pair.run_for(ms(100));
    assert_eq!(pair.endpoint(Side::B).recv_datagram(53), None);
    assert_eq!(pair.endpoint(Side::B).stats().handshakes, handshakes);
    assert!(pair.endpoint(Side::B).stats().drop_not_allowed >= 96);
    assert_eq!(pair.endpoint(Side::B).peers()[0].mode, Mode::S1);
    assert!(
        !pair.recorded.iter().any(|(_, bytes)| bytes.starts_with(b"PILA")),
        "no answer in the draft's mode"
    );
    assert_eq!(say(&mut pair, Side::B, ids, b"after"), b"after");
    assert_eq!(say(&mut pair, Side::A, ids, b"after"), b"after");
}

/// Test 6: a peer with keys of its own speaks as another, or to another.
#[test]
fn inner_addresses_of_others_are_refused() {
    let mut pair = pair_of(2, Modes::both(SecureMode::S1));
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    let mut c = Rogue::new(&mut pair, Side::B);
    c.introduce_to(&mut pair, Side::B);
    c.call(&mut pair, Side::B);
    let (a, b) = (pair.host(Side::A).address, pair.host(Side::B).address);
    let a_port = pair.endpoint(Side::A).local_port(ids.0).expect("open");
    pair.endpoint(Side::B).bind_datagram(53).expect("free");
    let before = pair.endpoint(Side::B).stats().drop_misaddressed;
    for (src, dst) in [(a, b), (b, b), (c.address, a), (a, c.address)] {
        let reset = segment(src, dst, (a_port, 7), Flags::RST, Protocol::Stream);
        c.send_packet(&mut pair, Side::B, &reset, &[]);
        let datagram = segment(src, dst, (5, 53), Flags::EMPTY, Protocol::Datagram);
        c.send_packet(&mut pair, Side::B, &datagram, b"from A, to B?");
    }
    pair.run_for(ms(100));
    assert_eq!(pair.endpoint(Side::B).stats().drop_misaddressed, before + 8);
    assert_eq!(pair.endpoint(Side::B).recv_datagram(53), None);
    // As itself it may speak.
    let own = segment(c.address, b, (5, 53), Flags::EMPTY, Protocol::Datagram);
    c.send_packet(&mut pair, Side::B, &own, b"me");
    let mut buf = [0; 32];
    let frame = Frame::Datagram { source: 6, destination: 53, data: b"me too", to_end: true };
    let len = frame.encode(&mut buf).expect("fits");
    c.send(&mut pair, Side::B, &buf[..len]);
    pair.run_for(ms(100));
    for text in [&b"me"[..], b"me too"] {
        let got = pair.endpoint(Side::B).recv_datagram(53).expect("delivered");
        assert_eq!((got.from.address, &got.data[..]), (c.address, text));
    }
    assert_eq!(say(&mut pair, Side::A, ids, b"after"), b"after");
    // It cannot have the node id of A either.
    let claims = pair.endpoint(Side::B).peers().iter().find(|p| p.peer == a).and_then(|p| p.key);
    assert_eq!(claims, Some(pair.host(Side::A).key));
}

/// An identity that claims the node id of another is refused, with a perfect handshake.
#[test]
fn a_foreign_node_id_cannot_be_taken() {
    let mut pair = pair_of(3, Modes::both(SecureMode::S1));
    let ids = pair.connect(7).expect("connects");
    let mut c = Rogue::new(&mut pair, Side::B);
    let a = pair.host(Side::A).address;
    c.node.set_address(a, 0);
    let before = pair.endpoint(Side::B).stats();
    let mut cx = Cx { now: pair.now, unix_ms: UNIX_MS, rng: &mut c.rng };
    let pili = c.assoc.connect(&mut c.node, Begin::default(), &mut cx).expect("good").expect("first");
    pair.recorded.clear();
    pair.inject(c.at, Side::B, &pili);
    pair.run_for(ms(100));
    let after = pair.endpoint(Side::B).stats();
    assert_eq!(after.drop_bad_key_exchange, before.drop_bad_key_exchange + 1);
    assert!(!pair.recorded.iter().any(|(_, bytes)| Kind::of(bytes) == Some(Kind::Response)));
    assert_eq!(say(&mut pair, Side::A, ids, b"still"), b"still");
}

/// Whom nobody knows is looked up first; the answer comes when the key is known, and only if it is the same.
#[test]
fn a_stranger_waits_for_its_look_up() {
    for right in [true, false] {
        let mut pair = pair_of(4, Modes::both(SecureMode::S1));
        let mut c = Rogue::new(&mut pair, Side::B);
        let mut cx = Cx { now: pair.now, unix_ms: UNIX_MS, rng: &mut c.rng };
        let pili = c.assoc.connect(&mut c.node, Begin::default(), &mut cx).expect("good").expect("first");
        pair.inject(c.at, Side::B, &pili);
        pair.run_for(ms(50));
        let asked = pair.host(Side::B).events.iter().any(|event| {
            matches!(event, Event::LookupPeer { node, presented_key, .. }
                if *node == c.address.node && *presented_key == c.key)
        });
        assert!(asked);
        let key = if right { c.key } else { [9; 32] };
        let peer = PeerConfig {
            address: c.address,
            key: Some(key),
            endpoint: None,
            policy: PeerPolicy::default(),
            prekey: None,
        };
        let now = pair.now;
        pair.recorded.clear();
        pair.endpoint(Side::B).resolve_peer(now, c.address.node, Some(peer));
        pair.run_for(ms(50));
        let answers: Vec<_> =
            pair.recorded.iter().filter(|(_, bytes)| Kind::of(bytes) == Some(Kind::Response)).collect();
        assert_eq!(answers.len(), usize::from(right));
    }
}

/// Tests 1 and 2: forged frames, and everything that ever left, again and from elsewhere.
#[test]
fn forged_and_replayed_frames_change_nothing() {
    let mut pair = pair_of(5, Modes::both(SecureMode::S1));
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    let recorded = pair.recorded.clone();
    let (attacker, real) = ("203.0.113.9:6666".parse().expect("address"), pair.host(Side::A).addr);
    let sealed = pair.endpoint(Side::A).peers()[0].frames_sealed;
    let before = pair.endpoint(Side::B).stats();
    for round in 0..100 {
        for (_, bytes) in recorded.iter().filter(|(side, _)| *side == Side::A) {
            pair.inject(if round % 2 == 0 { attacker } else { real }, Side::B, bytes);
        }
        pair.run_for(ms(20));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let data = recorded.iter().rev().find(|(s, b)| *s == Side::A && Kind::of(b) == Some(Kind::Data));
    let (_, data) = data.expect("A sent data");
    for _ in 0..10_000 {
        let mut forged = data.clone();
        let at = 5 + rng.next_u32() as usize % (forged.len() - 5);
        forged[at] ^= 1 << (rng.next_u32() % 8);
        pair.inject(real, Side::B, &forged);
    }
    pair.run_for(ms(50));
    let after = pair.endpoint(Side::B).stats();
    assert_eq!(after.handshakes, before.handshakes);
    assert!(after.drop_replay - before.drop_replay >= 100);
    assert!(
        after.drop_unauthentic + after.drop_replay - before.drop_unauthentic - before.drop_replay >= 10_000
    );
    let now = pair.now;
    assert_eq!(pair.endpoint(Side::B).read(now, ids.1, &mut [0; 64]), Err(ReadError::Blocked));
    assert_eq!(pair.endpoint(Side::B).connection_path(ids.1).expect("path").remote, real);
    assert_eq!(say(&mut pair, Side::A, ids, b"after"), b"after");
    assert!(pair.endpoint(Side::A).peers()[0].frames_sealed > sealed);
    assert_eq!(pair.endpoint(Side::B).peers()[0].mode, Mode::S1);
}

/// A copy that arrives first from elsewhere moves no path: its address has not shown a token (rule C16).
#[test]
fn a_copy_from_elsewhere_moves_no_path() {
    let mut pair = pair_of(6, Modes::both(SecureMode::S1));
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    pair.recorded.clear();
    pair.links[0].down = true;
    let now = pair.now;
    pair.endpoint(Side::A).write(now, ids.0, b"copied").expect("room");
    pair.run_for(ms(10));
    let attacker = "203.0.113.9:6666".parse().expect("address");
    let copies: Vec<_> = pair.recorded.iter().filter(|(s, _)| *s == Side::A).cloned().collect();
    pair.links[0].down = false;
    for (_, bytes) in &copies {
        pair.inject(attacker, Side::B, bytes);
    }
    pair.run_for(seconds(2));
    let real = pair.host(Side::A).addr;
    assert_eq!(pair.endpoint(Side::B).connection_path(ids.1).expect("path").remote, real);
    let mut buf = [0; 16];
    let now = pair.now;
    assert_eq!(pair.endpoint(Side::B).read(now, ids.1, &mut buf), Ok(6), "what it carries counts once");
    assert_eq!(say(&mut pair, Side::B, ids, b"after"), b"after");
}

#[test]
fn resets_need_the_token() {
    let mut pair = pair_of(7, Modes::both(SecureMode::S1));
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    let from = pair.host(Side::A).addr;
    let data = pair.recorded.iter().find(|(s, b)| *s == Side::B && Kind::of(b) == Some(Kind::Data));
    let index = u32::from_be_bytes(data.expect("B sent data").1[1..5].try_into().expect("four"));
    for n in 0..=255 {
        let forged = Reset { index, token: [n; 16] }.encode();
        pair.inject(from, Side::B, &forged);
    }
    let before = pair.endpoint(Side::B).stats().drop_unauthentic;
    pair.run_for(ms(50));
    assert_eq!(pair.endpoint(Side::B).stats().drop_unauthentic, before + 256);
    assert_eq!(say(&mut pair, Side::B, ids, b"after"), b"after");
    assert_eq!(pair.endpoint(Side::B).stats().handshakes, 1);
}

/// Resets, cookies and other answers without state wait in a bounded queue.
#[test]
fn answers_without_state_are_bounded() {
    let mut pair = pair_of(8, Modes::both(SecureMode::S1));
    pair.connect(7).expect("connects");
    pair.recorded.clear();
    let now = pair.now;
    let mut bytes = [0xB0; 60];
    for n in 0..10_000u32 {
        bytes[1..5].copy_from_slice(&(n + 1).to_be_bytes());
        let remote = std::net::SocketAddr::from(([203, 0, (n >> 8) as u8, n as u8], 9));
        let meta = pilotage_proto::RecvMeta { remote, local_ip: None };
        pair.endpoint(Side::B).handle_datagram(now, &meta, &mut bytes.clone());
    }
    pair.flush();
    let resets = pair.recorded.iter().filter(|(_, b)| Kind::of(b) == Some(Kind::Reset)).count();
    assert_eq!(resets, 64);
}

/// Test 12: an attacker drops any of S1's frames; whoever may only be spoken to in S1 is never spoken to otherwise, and
/// with others the draft's mode is the hardened one.
#[test]
fn no_frame_that_is_dropped_brings_a_lesser_mode() {
    for seed in seeds(40) {
        let modes = Modes { least: Mode::S1, told: seed % 2 == 0, ..Modes::both(SecureMode::Auto) };
        let mut pair = pair_of(seed, modes);
        let mask = seed;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        pair.censor = Some(Box::new(move |_, bytes| {
            let Some(kind) = Kind::of(bytes) else { return false };
            let always = mask >> (kind as u64) & 1 == 1;
            always || rng.next_u32() % 4 == 0
        }));
        let connected = pair.connect(7).is_ok();
        pair.run_for(seconds(5));
        let from_a = pair.recorded.iter().filter(|(side, _)| *side == Side::A);
        assert!(from_a.clone().all(|(_, bytes)| Kind::of(bytes).is_some()), "seed {seed}: A spoke the draft");
        if mask & 0b10_1011 == 0 {
            assert!(connected, "seed {seed}: nothing that is needed was dropped for good");
        }
    }
}

#[test]
fn without_memory_a_censor_gains_the_hardened_draft_and_no_more() {
    for seed in seeds(10) {
        let mut pair = pair_of(seed, Modes { told: true, ..Modes::both(SecureMode::Auto) });
        pair.censor = Some(Box::new(|_, bytes| Kind::of(bytes).is_some()));
        let data = pattern(100_000, seed);
        assert!(pair.transfer(&data).received == data);
        for (_, bytes) in &pair.recorded {
            let draft = bytes.starts_with(b"PILA") || bytes.starts_with(b"PILS");
            assert!(draft || Kind::of(bytes).is_some(), "never PILK or PILT");
        }
        // Once the censor is gone, S1 comes with the next tunnel; and from then on there is no way back.
        pair.censor = None;
        pair.run_for(seconds(1_000));
        assert!(pair.transfer(&data).received == data);
        let mode = |pair: &mut Pair| pair.endpoint(Side::A).peers()[0].mode;
        if mode(&mut pair) == Mode::S1 {
            pair.recorded.clear();
            pair.censor = Some(Box::new(|_, bytes| Kind::of(bytes).is_some()));
            let start: Instant = pair.now;
            let _ = pair.try_transfer(&data, seconds(60));
            assert!(pair.now > start);
            assert!(pair.recorded.iter().all(|(_, b)| Kind::of(b).is_some()), "no way back");
        }
    }
}

/// A packet with a malformed frame, with a stream that we do not allow, or with too many indices ends the session of who sent it, and nothing else.
#[test]
fn what_is_against_the_protocol_ends_the_session() {
    for bad in [&[0x7f][..], &[0x20, 0x00][..], &[0x20, 0x40], &[0x28, 0, 0, 1, 0, 2, b'x']] {
        let mut pair = pair_of(9, Modes::both(SecureMode::S1));
        let ids = pair.connect(7).expect("connects");
        let mut c = Rogue::new(&mut pair, Side::B);
        c.introduce_to(&mut pair, Side::B);
        c.call(&mut pair, Side::B);
        c.send(&mut pair, Side::B, &[1]);
        pair.run_for(ms(20));
        let up = |pair: &mut Pair, c: &Rogue| {
            pair.endpoint(Side::B).peers().iter().any(|p| p.peer == c.address && p.established)
        };
        assert!(up(&mut pair, &c));
        c.send(&mut pair, Side::B, bad);
        pair.run_for(ms(20));
        assert!(!up(&mut pair, &c), "{bad:?}");
        assert_eq!(say(&mut pair, Side::A, ids, b"others"), b"others");
    }
    let _ = SocketAddress { address: Address::new(0, 1), port: 1 };
}
