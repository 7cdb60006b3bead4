//! Attacks on the key exchange: foreign keys signed as one's own, replayed exchanges, plaintext (spec/tunnel.md §3, §6).

mod attacks_common;

use std::time::Duration;

use attacks_common::{ms, of_kind};
use pilotage_proto::{ConnectionId, PeerConfig, PeerPolicy};
use pilotage_sim::rogue::{Arena, Rogue};
use pilotage_sim::{Link, Pair, Side, seeds};
use pilotage_wire::SocketAddress;
use pilotage_wire::frame::{self, Frame};

/// Writes at `from` and returns what the other side reads until all has come or 20 s are over.
fn say(pair: &mut Pair, from: Side, ids: (ConnectionId, ConnectionId), text: &[u8]) -> Vec<u8> {
    let (writer, reader) = if from == Side::A { ids } else { (ids.1, ids.0) };
    let now = pair.now;
    let _ = pair.endpoint(from).write(now, writer, text);
    let mut got = Vec::new();
    pair.run_until(Duration::from_secs(20), |p| {
        let now = p.now;
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = p.endpoint(from.other()).read(now, reader, &mut buf) {
            got.extend_from_slice(&buf[..n]);
        }
        got.len() >= text.len()
    });
    got
}

fn x25519_of(pila: &[u8]) -> [u8; 32] {
    match frame::decode(pila) {
        Ok(Frame::Pila(pila)) => pila.x25519,
        other => panic!("not a key exchange frame: {other:?}"),
    }
}

/// C signs A's X25519 key as its own (E13). B and "C" then share a key with A, who is not told: B's frames for C are
/// shown to A as B's. A must neither deliver them nor let them replace the keys it shares with B, or move the path.
#[test]
fn a_foreign_key_signed_as_ones_own_gains_nothing() {
    let mut pair = Pair::new(31, Link::default());
    pair.record = true;
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"before"), b"before");
    let a_public = x25519_of(&of_kind(&pair.recorded, Side::A, b"PILA")[0]);
    let (a_addr, b_address) = (pair.host(Side::A).addr, pair.host(Side::B).address);
    let c = Rogue::new(9);
    let introduction = PeerConfig {
        address: c.address,
        key: Some(c.identity.public_key()),
        endpoint: Some(c.addr),
        policy: PeerPolicy::default(),
        prekey: None,
    };
    let now = pair.now;
    pair.endpoint(Side::B).add_peer(now, introduction).expect("room");

    // B agrees on keys with "C", in truth with A.
    pair.inject(c.addr, Side::B, &c.pila_for(a_public, 1));
    pair.recorded.clear();
    pair.run_for(ms(50));
    let answer = of_kind(&pair.recorded, Side::B, b"PILA").pop().expect("B answers C");
    assert!(pair.endpoint(Side::B).peers().iter().any(|p| p.peer == c.address && p.established));

    // C shows A what B signed, then everything that B seals for C: an echo, a SYN, a datagram.
    let a_port = pair.endpoint(Side::A).local_port(ids.0).expect("open");
    pair.endpoint(Side::A).bind_datagram(53).expect("free");
    let before = pair.endpoint(Side::A).stats();
    let handshakes = before.handshakes;
    pair.inject(c.addr, Side::A, &answer);
    pair.run_for(ms(50));
    pair.recorded.clear();
    let now = pair.now;
    let b = pair.endpoint(Side::B);
    b.ping(now, c.address).expect("known");
    let to = SocketAddress { address: c.address, port: a_port };
    let _ = b.connect(now, to);
    for port in [53, a_port] {
        let to = SocketAddress { address: c.address, port };
        b.send_datagram(now, to, 7, b"for C").expect("queued");
    }
    pair.run_for(ms(50));
    let for_c: Vec<_> = of_kind(&pair.recorded, Side::B, b"PILS");
    assert!(for_c.len() >= 4, "B sealed {} frames", for_c.len());
    for frame in &for_c {
        pair.inject(c.addr, Side::A, frame);
    }
    pair.run_for(ms(200));

    let stats = pair.endpoint(Side::A).stats();
    assert!(stats.drop_misaddressed >= before.drop_misaddressed + 4, "rule C4 counts them: {stats:?}");
    assert_eq!(stats.handshakes, handshakes, "B's frames for C brought no keys into use at A");
    assert_eq!(pair.endpoint(Side::A).recv_datagram(53), None);
    let path = pair.endpoint(Side::A).connection_path(ids.0).expect("path");
    assert_eq!(path.remote, pair.host(Side::B).addr, "the path did not move to C");
    assert_eq!(say(&mut pair, Side::A, ids, b"after A"), b"after A");
    assert_eq!(say(&mut pair, Side::B, ids, b"after B"), b"after B");
    // And C cannot speak to B: it does not hold the key; nor do A's frames open as C's.
    for frame in of_kind(&pair.recorded, Side::A, b"PILS") {
        let mut relabelled = frame.clone();
        relabelled[4..8].copy_from_slice(&c.node().0.to_be_bytes());
        pair.inject(c.addr, Side::B, &relabelled);
        pair.inject(a_addr, Side::B, &relabelled);
    }
    pair.run_for(ms(200));
    assert_eq!(say(&mut pair, Side::A, ids, b"still"), b"still");
    assert_eq!(pair.endpoint(Side::A).peers()[0].peer, b_address);
}

/// As above before the first contact of A and B: the wrong keys must not keep them apart.
#[test]
fn a_foreign_key_does_not_keep_two_peers_apart() {
    for seed in seeds(20) {
        let mut pair = Pair::new(seed, Link::default());
        pair.record = true;
        let c = Rogue::new(9);
        let introduction = PeerConfig {
            address: c.address,
            key: Some(c.identity.public_key()),
            endpoint: Some(c.addr),
            policy: PeerPolicy::default(),
            prekey: None,
        };
        let now = pair.now;
        pair.endpoint(Side::B).add_peer(now, introduction).expect("room");
        let b = pair.host(Side::B).address;
        pair.endpoint(Side::A).ping(now, b).expect("known");
        pair.run_for(ms(5 + seed % 20));
        let a_public = x25519_of(&of_kind(&pair.recorded, Side::A, b"PILA")[0]);
        pair.inject(c.addr, Side::B, &c.pila_for(a_public, 1));
        pair.run_for(ms(1));
        for _ in 0..200 {
            let all = of_kind(&pair.recorded, Side::B, b"PILA");
            for frame in all.iter().chain(&of_kind(&pair.recorded, Side::B, b"PILS")) {
                pair.inject(c.addr, Side::A, frame);
            }
            pair.run_for(ms(5));
            let now = pair.now;
            let _ = pair.endpoint(Side::B).ping(now, c.address);
        }
        let ids = pair.connect(7).expect("connects all the same");
        assert_eq!(say(&mut pair, Side::A, ids, b"hello"), b"hello", "seed {seed}");
    }
}

/// Frames that nothing opens, from where the peer is, after a silence: keys may differ, so we ask, but seldom, and what
/// forgers send to make us ask costs the peer next to nothing.
#[test]
fn frames_that_do_not_open_make_us_ask_seldom() {
    let mut arena = Arena::new(33);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    assert!(rogue.shake_hands(&mut arena));
    arena.run_for(Duration::from_secs(10));
    rogue.receive(&mut arena);
    rogue.polite = false;
    let before = arena.ledger[&rogue.addr];
    for _ in 0..5_000 {
        let mut bytes = vec![5; 100];
        frame::encode_pils_header(rogue.node(), &[9; 12], &mut bytes).expect("fits");
        arena.hit(rogue.addr, &mut bytes);
        arena.run_for(ms(2));
    }
    let after = arena.ledger[&rogue.addr];
    let asked = after.datagrams_out - before.datagrams_out;
    // Besides them up to eleven requests for the token that this rogue never returns.
    assert!((4..=6 + 11).contains(&asked), "{asked} requests in 10 s");
    // The peer that holds other keys is understood again at once.
    rogue.polite = true;
    rogue.renew_key();
    assert!(rogue.shake_hands(&mut arena), "new keys");
    let stream = rogue.connect(&mut arena, 80).expect("connects");
    rogue.say(&mut arena, &stream.data(0), b"heard");
    arena.run_for(ms(50));
    assert_eq!(arena.read_all(stream.at_target()), b"heard");
}
