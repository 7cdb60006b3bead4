//! Tunnels under attack, restart, loss of keys and change of address (spec/tunnel.md §6), in virtual time.

use std::collections::HashSet;
use std::time::Duration;

use pilotage_proto::{Config, Event, PathKind, ReadError};
use pilotage_sim::{Link, Pair, Side, pattern};
use pilotage_wire::SocketAddress;
use pilotage_wire::frame::{self, Frame};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Writes at A, and what B reads within `time`.
fn say(
    pair: &mut Pair,
    ids: (pilotage_proto::ConnectionId, pilotage_proto::ConnectionId),
    text: &[u8],
) -> Vec<u8> {
    let now = pair.now;
    let _ = pair.endpoint(Side::A).write(now, ids.0, text);
    let mut got = Vec::new();
    pair.run_until(seconds(20), |p| {
        let now = p.now;
        let mut buf = [0; 4096];
        while let Ok(n) = p.endpoint(Side::B).read(now, ids.1, &mut buf) {
            if n == 0 {
                break;
            }
            got.extend_from_slice(&buf[..n]);
        }
        got.len() >= text.len()
    });
    got
}

fn pils_of(recorded: &[(Side, Vec<u8>)], side: Side) -> Vec<Vec<u8>> {
    recorded.iter().filter(|(s, b)| *s == side && b.starts_with(b"PILS")).map(|(_, b)| b.clone()).collect()
}

#[test]
fn the_first_frame_to_a_peer_is_an_authenticated_key_exchange() {
    let mut pair = Pair::new(1, Link::default());
    pair.record = true;
    pair.connect(7).expect("connects");
    for side in [Side::A, Side::B] {
        let first =
            pair.recorded.iter().find(|(s, _)| *s == side).map(|(_, b)| b.clone()).expect("sent something");
        assert!(matches!(frame::decode(&first), Ok(Frame::Pila(_))), "{side:?} began with {:?}", &first[..4]);
    }
    let magics: HashSet<_> = pair.recorded.iter().map(|(_, b)| b[..4].to_vec()).collect();
    assert_eq!(magics, HashSet::from([b"PILA".to_vec(), b"PILS".to_vec()]), "nothing but PILA and PILS");
}

#[test]
fn a_repeated_key_exchange_keeps_counter_and_window() {
    let mut pair = Pair::new(2, Link::default());
    pair.record = true;
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"before"), b"before");
    let pilas: Vec<_> = pair
        .recorded
        .iter()
        .filter(|(s, b)| *s == Side::A && b.starts_with(b"PILA"))
        .map(|(_, b)| b.clone())
        .collect();
    let old_data = pils_of(&pair.recorded, Side::A);
    let sealed_before = pair.endpoint(Side::A).peers()[0].frames_sealed;
    let attacker = "203.0.113.9:6666".parse().expect("address");
    let real = pair.host(Side::A).addr;
    for round in 0..200 {
        for pila in &pilas {
            pair.inject(if round % 2 == 0 { attacker } else { real }, Side::B, pila);
        }
        for data in &old_data {
            pair.inject(real, Side::B, data);
        }
        pair.run_for(Duration::from_millis(20));
    }
    // Nothing old was delivered, the path did not move, and new data still flows under ever higher counters.
    let now = pair.now;
    assert_eq!(pair.endpoint(Side::B).read(now, ids.1, &mut [0; 64]), Err(ReadError::Blocked));
    let path = pair.endpoint(Side::B).connection_path(ids.1).expect("path");
    assert_eq!(path.remote, real);
    assert_eq!(say(&mut pair, ids, b"after"), b"after");
    assert!(pair.endpoint(Side::A).peers()[0].frames_sealed > sealed_before);
    assert!(pair.endpoint(Side::B).stats().drop_replay >= 200);
}

#[test]
fn one_forged_frame_with_the_highest_counter_does_no_harm() {
    let mut pair = Pair::new(3, Link::default());
    let ids = pair.connect(7).expect("connects");
    let sender = pair.host(Side::A).address.node;
    let from = pair.host(Side::A).addr;
    for i in 0..10_000u64 {
        let mut forged = vec![0x5a; 60];
        let mut nonce = [0u8; 12];
        nonce[4..].copy_from_slice(&(u64::MAX - i).to_be_bytes());
        frame::encode_pils_header(sender, &nonce, &mut forged).expect("fits");
        pair.inject(from, Side::B, &forged);
    }
    pair.run_for(Duration::from_millis(50));
    assert_eq!(say(&mut pair, ids, b"still here"), b"still here");
    assert_eq!(pair.endpoint(Side::B).stats().drop_unauthentic, 10_000);
}

#[test]
fn plaintext_is_refused_unless_allowed_for_that_peer() {
    let mut pair = Pair::new(4, Link::default());
    pair.connect(7).expect("connects");
    let (a, b) = (pair.host(Side::A).address, pair.host(Side::B).address);
    let from = pair.host(Side::A).addr;
    for flags in [1u8, 2, 4, 8] {
        let hdr = pilotage_wire::packet::Header {
            flags: pilotage_wire::packet::Flags::from_bits_truncate(flags),
            protocol: pilotage_wire::packet::Protocol::Stream,
            src: a,
            dst: b,
            src_port: 50_000,
            dst_port: 7,
            seq: 1,
            ack: 1,
            window: 512,
        };
        let mut bytes = vec![0; 64];
        let head = frame::encode_pilt_header(&mut bytes).expect("fits");
        let len = hdr.encode(&mut bytes[head..], 0).expect("fits");
        pair.inject(from, Side::B, &bytes[..head + len]);
    }
    pair.run_for(seconds(1));
    assert_eq!(pair.endpoint(Side::B).stats().drop_not_allowed, 4);
    assert_eq!(pair.endpoint(Side::B).peers()[0].connections, 1, "no connection came of it");
}

#[test]
fn anonymous_key_exchange_is_refused_unless_allowed_for_that_peer() {
    let mut pair = Pair::new(5, Link::default());
    let mut bytes = vec![0; 40];
    let node = pair.host(Side::A).address.node;
    frame::encode_pilk(node, &[9; 32], &mut bytes).expect("fits");
    let from = pair.host(Side::A).addr;
    pair.inject(from, Side::B, &bytes);
    pair.run_for(seconds(1));
    let info = &pair.endpoint(Side::B).peers()[0];
    assert!(!info.established && !info.authenticated);
    assert_eq!(pair.endpoint(Side::B).stats().drop_not_allowed, 1);
}

#[test]
fn a_key_exchange_under_another_identity_is_refused() {
    let mut pair = Pair::new(6, Link::default());
    let stranger = pilotage_proto::crypto::Identity::from_seed([7; 32]);
    let node = pair.host(Side::A).address.node;
    let x25519 = [9; 32];
    let signature = stranger.sign(&frame::pila_signed_message(node, &x25519));
    let pila = frame::Pila { sender: node, x25519, ed25519: stranger.public_key(), signature, trailer: &[] };
    let mut bytes = vec![0; 136];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    let from = pair.host(Side::A).addr;
    pair.inject(from, Side::B, &bytes);
    pair.run_for(seconds(1));
    assert_eq!(pair.endpoint(Side::B).stats().drop_bad_key_exchange, 1);
    pair.connect(7).expect("the real one still connects");
}

#[test]
fn keys_are_renewed_before_the_frame_limit() {
    let cfg = Config { rekey_after_frames: 200, max_datagram_size: 1_452, ..Config::default() };
    let mut pair = Pair::with_config(7, Link::default(), cfg);
    pair.record = true;
    let data = pattern(3 << 20, 7);
    let outcome = pair.transfer(&data);
    assert!(outcome.received == data);
    let handshakes = pair.endpoint(Side::A).stats().handshakes;
    assert!(handshakes > 2, "re-keyed {handshakes} times");
    // And no sealed frame left twice.
    let mut seen = HashSet::new();
    for (side, bytes) in &pair.recorded {
        if let Ok(Frame::Pils { nonce, ciphertext, .. }) = frame::decode(bytes) {
            assert!(seen.insert((*side, nonce, ciphertext.to_vec())), "a sealed frame was repeated");
        }
    }
}

#[test]
fn no_key_and_nonce_pair_is_ever_used_twice() {
    // Prefix and counter name the nonce; the prefix is drawn per session, so equal nonces of one side would
    // mean a reset counter. Restarts, re-keying and replayed key exchanges are all in the run.
    let cfg = Config { rekey_after_frames: 300, max_datagram_size: 1_452, ..Config::default() };
    for seed in 0..10 {
        let mut pair = Pair::with_config(seed, Link { loss: 0.05, ..Link::default() }, cfg.clone());
        pair.record = true;
        pair.transfer(&pattern(300_000, seed));
        pair.restart(Side::B);
        let _ = pair.try_transfer(&pattern(300_000, seed), seconds(60));
        pair.restart(Side::A);
        pair.transfer(&pattern(300_000, seed));
        let mut seen = HashSet::new();
        for (side, bytes) in &pair.recorded {
            if let Ok(Frame::Pils { nonce, .. }) = frame::decode(bytes) {
                assert!(seen.insert((*side, nonce)), "nonce {nonce:?} of {side:?} used twice, seed {seed}");
            }
        }
        assert!(seen.len() > 500);
    }
}

#[test]
fn a_restarted_peer_is_reachable_again_within_seconds() {
    let mut pair = Pair::new(8, Link::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"one"), b"one");
    pair.restart(Side::B);
    let started = pair.now;
    // The old stream must fail with a clear error, and a new one must work.
    let now = pair.now;
    let _ = pair.endpoint(Side::A).write(now, ids.0, b"two");
    let failed = pair.run_until(seconds(30), |p| {
        let now = p.now;
        p.endpoint(Side::A).read(now, ids.0, &mut [0; 8]) == Err(ReadError::Reset)
    });
    assert!(failed, "the stream of the dead process must end");
    let took = pair.now.duration_since(started);
    assert!(took < seconds(5), "{took:?}");
    let again = pair.connect(8).expect("connects again");
    assert_eq!(say(&mut pair, again, b"three"), b"three");
}

#[test]
fn a_restarted_peer_that_speaks_first_is_heard() {
    let mut pair = Pair::new(9, Link::default());
    pair.connect(7).expect("connects");
    pair.restart(Side::A);
    let ids = pair.connect(8).expect("connects after its own restart");
    assert_eq!(say(&mut pair, ids, b"hello"), b"hello");
}

#[test]
fn a_peer_that_vanished_is_given_up_in_bounded_time() {
    let mut pair = Pair::new(10, Link::default());
    let ids = pair.connect(7).expect("connects");
    pair.links[0].down = true;
    pair.links[1].down = true;
    let now = pair.now;
    let _ = pair.endpoint(Side::A).write(now, ids.0, b"anybody?");
    let failed = pair.run_until(seconds(60), |p| {
        let now = p.now;
        p.endpoint(Side::A).read(now, ids.0, &mut [0; 8]) == Err(ReadError::TimedOut)
    });
    assert!(failed);
    assert!(pair.now.duration_since(now) < seconds(40));
}

#[test]
fn a_moved_peer_is_followed_only_by_authentic_frames() {
    let mut pair = Pair::new(11, Link::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"one"), b"one");
    pair.host(Side::A).addr = "198.51.100.7:5555".parse().expect("address");
    assert_eq!(say(&mut pair, ids, b"two"), b"two");
    pair.run_for(Duration::from_secs(1)); // the new address has to return a token first (rule C16)
    let path = pair.endpoint(Side::B).connection_path(ids.1).expect("path");
    assert_eq!(path.remote, "198.51.100.7:5555".parse().expect("address"));
    assert_eq!(path.kind, PathKind::Direct);
    let moved = pair.host(Side::B).events.iter().any(|e| matches!(e, Event::PathChanged { .. }));
    assert!(moved, "the application is told");
}

#[test]
fn nothing_is_sent_after_a_ping() {
    let mut pair = Pair::new(12, Link::default());
    let peer = pair.host(Side::B).address;
    let now = pair.now;
    let token = pair.endpoint(Side::A).ping(now, peer).expect("peer is known");
    let ponged = pair.run_until(seconds(5), |p| {
        p.host(Side::A).events.iter().any(|e| matches!(e, Event::Pong { token: t, .. } if *t == token))
    });
    assert!(ponged);
    pair.run_for(seconds(1));
    let before = pair.sent;
    pair.run_for(seconds(20));
    assert_eq!(pair.sent, before, "silence");
}

#[test]
fn nothing_is_sent_after_both_sides_closed() {
    let mut pair = Pair::new(13, Link::default());
    pair.transfer(&pattern(100_000, 1));
    pair.run_for(seconds(2));
    let before = pair.sent;
    pair.run_for(seconds(60));
    assert_eq!(pair.sent, before, "silence");
}

#[test]
fn a_port_without_listener_refuses() {
    let mut pair = Pair::new(14, Link::default());
    pair.connect(7).expect("connects");
    let to = SocketAddress { address: pair.host(Side::B).address, port: 9 };
    let now = pair.now;
    let refused = pair.endpoint(Side::A).connect(now, to).expect("begins");
    pair.run_for(seconds(2));
    assert_eq!(
        pair.endpoint(Side::A).connect_error(refused),
        Some(pilotage_proto::ConnectError::Refused),
        "nothing listens on port 9"
    );
}

#[test]
fn datagrams_arrive_once_and_a_full_queue_counts() {
    let mut pair = Pair::new(15, Link { duplicate: 0.5, ..Link::default() });
    let to = SocketAddress { address: pair.host(Side::B).address, port: 500 };
    pair.endpoint(Side::B).bind_datagram(500).expect("free");
    let mut accepted = 0u64;
    for i in 0..2_000u32 {
        let now = pair.now;
        if pair.endpoint(Side::A).send_datagram(now, to, 501, &i.to_be_bytes()).is_ok() {
            accepted += 1;
        }
        if i % 50 == 0 {
            pair.run_for(Duration::from_millis(30));
        }
    }
    pair.run_for(seconds(1));
    let mut got = HashSet::new();
    while let Some(d) = pair.endpoint(Side::B).recv_datagram(500) {
        assert!(got.insert(d.data), "delivered twice");
    }
    let dropped = pair.endpoint(Side::B).stats().drop_datagram_queue;
    assert_eq!(got.len() as u64 + dropped, accepted);
    assert!(
        dropped > 0 && got.len() == 1_024,
        "the bound was reached: {} kept, {dropped} dropped",
        got.len()
    );
}

#[test]
fn a_peer_restarted_elsewhere_is_found_once_the_caller_is_told() {
    let mut pair = Pair::new(16, Link::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"one"), b"one");
    pair.restart(Side::B);
    pair.host(Side::B).addr = "198.51.100.9:7777".parse().expect("address");
    let (address, key, endpoint) = {
        let b = pair.host(Side::B);
        (b.address, Some(b.key), Some(b.addr))
    };
    let now = pair.now;
    let told =
        pilotage_proto::PeerConfig { address, key, endpoint, policy: Default::default(), prekey: None };
    pair.endpoint(Side::A).add_peer(now, told).expect("same key");
    let again = pair.connect(8).expect("connects at the new place");
    assert_eq!(say(&mut pair, again, b"two"), b"two");
}

#[test]
fn streams_of_a_peers_former_life_end_when_it_comes_back() {
    let mut pair = Pair::new(17, Link::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"one"), b"one");
    pair.restart(Side::A);
    // B only reads: it learns of the restart when the new process connects.
    pair.connect(8).expect("connects again");
    let now = pair.now;
    let reset = pair.run_until(seconds(2), |p| {
        let now = p.now;
        p.endpoint(Side::B).read(now, ids.1, &mut [0; 8]) == Err(ReadError::Reset)
    });
    assert!(reset, "after {:?}", pair.now.duration_since(now));
}

#[test]
fn a_replaced_key_of_the_peer_cannot_be_brought_back() {
    // Only A seals enough to renew its key. B keeps its own, so A's first key would give the first session again.
    let mut pair =
        Pair::with_config(16, Link::default(), Config { rekey_after_frames: 100, ..Config::default() });
    pair.record = true;
    let to = SocketAddress { address: pair.host(Side::B).address, port: 500 };
    pair.endpoint(Side::B).bind_datagram(500).expect("free");
    for i in 0..150u32 {
        let now = pair.now;
        pair.endpoint(Side::A).send_datagram(now, to, 501, &i.to_be_bytes()).expect("room");
        pair.run_for(Duration::from_millis(20));
    }
    pair.run_for(seconds(60)); // the replaced session is gone
    while pair.endpoint(Side::B).recv_datagram(500).is_some() {}
    assert!(pair.endpoint(Side::B).stats().handshakes >= 2);
    let (old, from) = (pair.recorded.clone(), pair.host(Side::A).addr);
    for magic in [b"PILA", b"PILS"] {
        for (_, frame) in old.iter().filter(|(side, frame)| *side == Side::A && frame.starts_with(magic)) {
            pair.inject(from, Side::B, frame);
        }
        pair.run_for(Duration::from_millis(50));
    }
    assert_eq!(pair.endpoint(Side::B).recv_datagram(500), None, "delivered a second time");
    let now = pair.now;
    pair.endpoint(Side::A).send_datagram(now, to, 501, b"new").expect("room");
    pair.run_for(seconds(1));
    assert_eq!(pair.endpoint(Side::B).recv_datagram(500).map(|d| d.data), Some(b"new".to_vec()));
}

/// The peer's IP address changes in the middle of a download: the pause is some round trips, not a timeout.
#[test]
fn a_peer_that_moves_while_it_is_sent_to_waits_no_timeout() {
    let mut pair =
        Pair::new(31, Link { delay: Duration::from_millis(15), rate: Some(1_250_000), ..Link::default() });
    let (a, b) = pair.connect(7).expect("connects");
    let data = pattern(4 << 20, 3);
    let (mut written, mut got) = (0, Vec::new());
    let mut longest = Duration::ZERO;
    let mut last = pair.now;
    let mut moved = 0;
    let done = pair.run_until(seconds(60), |p| {
        let now = p.now;
        if written < data.len() {
            written += p.endpoint(Side::B).write(now, b, &data[written..]).unwrap_or(0);
        }
        let mut buf = [0; 4096];
        while let Ok(n) = p.endpoint(Side::A).read(now, a, &mut buf) {
            if n == 0 {
                break;
            }
            if got.len() > 500_000 {
                longest = longest.max(now.duration_since(last));
            }
            last = now;
            got.extend_from_slice(&buf[..n]);
        }
        // The moving side has something to say, which is how the other hears of it.
        if got.len() > (moved + 1) << 20 {
            moved += 1;
            p.host(Side::A).addr = format!("198.51.100.{moved}:5555").parse().expect("address");
            let _ = p.endpoint(Side::A).write(now, a, b"here I am");
        }
        got.len() == data.len()
    });
    assert!(done && got == data && moved == 3, "{} bytes, moved {moved}", got.len());
    assert!(longest < Duration::from_millis(400), "{longest:?}");
}
