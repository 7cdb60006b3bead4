//! Floods from inside and outside: what they cost, and that others are not touched (spec/tunnel.md §8, spec/stream.md §9).

mod attacks_common;

use std::net::SocketAddr;
use std::time::Duration;

use attacks_common::{Dice, attacker, ms};
use pilotage_proto::{Config, Event, ReadError};
use pilotage_sim::pattern;
use pilotage_sim::rogue::{Arena, Rogue, RogueStream};
use pilotage_wire::frame;
use pilotage_wire::packet::{Flags, Protocol};

/// A rogue and an honest peer, both with keys.
fn two(seed: u64) -> (Arena, Rogue, Rogue) {
    let mut arena = Arena::new(seed);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    let mut honest = Rogue::introduced(&mut arena, 2);
    assert!(rogue.shake_hands(&mut arena) && honest.shake_hands(&mut arena));
    (arena, rogue, honest)
}

/// The honest peer sends `round`'s part of a stream and reads that it arrived.
fn assert_served(arena: &mut Arena, honest: &mut Rogue, stream: &RogueStream, round: u64) {
    let part = pattern(1_000, round);
    honest.say(arena, &stream.data(1_000 * round), &part);
    arena.run_for(ms(25));
    assert!(arena.read_all(stream.at_target()) == part, "the honest peer is served in round {round}");
}

/// A peer that opens connections and never completes them takes only its share of a listener's queue.
#[test]
fn a_syn_flood_of_one_peer_leaves_room_for_others() {
    let (mut arena, mut rogue, mut honest) = two(1);
    arena.target.listen(80).expect("free");
    let mut connected = 0;
    for round in 0..20u16 {
        for port in 0..500 {
            let mut syn = rogue.header(&arena, Protocol::Stream, 1_000 + round * 500 + port, 80);
            (syn.flags, syn.seq, syn.window) = (Flags::SYN, 1, 4096);
            rogue.hit(&mut arena, &syn, &[]);
        }
        arena.settle();
        connected += u32::from(honest.connect(&mut arena, 80).is_some());
        arena.run_for(ms(100));
    }
    assert_eq!(connected, 20, "every honest attempt succeeds at once");
    let info = arena.target.peers();
    let of_rogue = info.iter().find(|p| p.peer == rogue.address).expect("known");
    assert!(of_rogue.connections <= 64, "{}", of_rogue.connections);
    arena.run_for(Duration::from_secs(40));
    let info = arena.target.peers();
    let of_rogue = info.iter().find(|p| p.peer == rogue.address).expect("known");
    assert_eq!(of_rogue.connections, 0, "what never came to be is forgotten");
}

/// Several peers together fill the queue of a listener: an honest one still gets in within a few seconds.
#[test]
fn a_syn_flood_of_many_peers_is_pushed_back() {
    let (mut arena, rogue, mut honest) = two(2);
    let mut rogues = vec![rogue];
    for number in 10..20 {
        let mut rogue = Rogue::introduced(&mut arena, number);
        assert!(rogue.shake_hands(&mut arena));
        rogues.push(rogue);
    }
    arena.target.listen(80).expect("free");
    let mut connected = 0;
    for round in 0..10u16 {
        for port in 0..50 {
            for rogue in &mut rogues {
                let mut syn = rogue.header(&arena, Protocol::Stream, 1_000 + round * 50 + port, 80);
                (syn.flags, syn.seq, syn.window) = (Flags::SYN, 1, 4096);
                rogue.hit(&mut arena, &syn, &[]);
            }
        }
        arena.run_for(ms(1_100));
        connected += u32::from(honest.connect(&mut arena, 80).is_some());
    }
    assert!(connected >= 9, "{connected} of 10");
}

/// A peer that completes its connections and lets them lie is bounded by the limits, and resets cost no state.
#[test]
fn connections_of_one_peer_are_bounded_and_reset_storms_leave_nothing() {
    let cfg = Config { max_connections_per_peer: 100, ..Config::default() };
    let mut arena = Arena::with_config(3, cfg);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    let mut honest = Rogue::introduced(&mut arena, 2);
    assert!(rogue.shake_hands(&mut arena) && honest.shake_hands(&mut arena));
    arena.delay = ms(1);
    let kept: Vec<_> = (0..150).filter_map(|_| rogue.connect(&mut arena, 80)).collect();
    assert_eq!(kept.len(), 100);
    assert!(arena.target.stats().refused >= 50);
    assert!(honest.connect(&mut arena, 80).is_some(), "others have limits of their own");
    // RST with every number but the right one, then the right one.
    let mut dice = Dice(3);
    for stream in &kept {
        for _ in 0..50 {
            let mut rst = stream.segment(Flags::RST | Flags::ACK, (1 << 30) + dice.next() % (1 << 30));
            rst.ack = dice.next() as u32;
            rogue.hit(&mut arena, &rst, &[]);
        }
    }
    arena.settle();
    assert!(
        kept.iter().all(|s| arena.target.is_open(s.at_target())),
        "a reset out of the window resets nothing"
    );
    for stream in &kept {
        for _ in 0..3 {
            rogue.hit(&mut arena, &stream.segment(Flags::RST | Flags::ACK, 0), &[]);
        }
        let now = arena.now;
        assert_eq!(arena.target.read(now, stream.at_target(), &mut [0; 8]), Err(ReadError::Reset));
        arena.target.close(now, stream.at_target());
    }
    arena.settle();
    assert_eq!(arena.target.memory().connections, 1, "only the honest one is left");
}

/// FIN over and over, early, late, beyond, with and without data: the stream ends once, where the first one said.
#[test]
fn fin_storms_end_the_stream_once_and_are_answered_within_bounds() {
    let (mut arena, mut rogue, mut honest) = two(4);
    let other = honest.connect(&mut arena, 81).expect("connects");
    for round in 0..30u64 {
        let stream = rogue.connect(&mut arena, 80).expect("connects");
        let mut dice = Dice(round);
        rogue.hit(&mut arena, &stream.segment(Flags::FIN | Flags::ACK, 500), &[]);
        for _ in 0..1_000 {
            let at = dice.next() % 2_000;
            let len = dice.below(3) * 10;
            let flags = if dice.below(2) == 0 { Flags::FIN } else { Flags::FIN | Flags::ACK };
            if at >= 500 || at + len as u64 > 500 || dice.below(4) > 0 {
                rogue.hit(&mut arena, &stream.segment(flags, at.max(500) + 1), &[9; 20][..len]);
            }
        }
        rogue.hit(&mut arena, &stream.data(0), &pattern(500, round));
        arena.settle();
        assert!(arena.read_all(stream.at_target()) == pattern(500, round), "round {round}");
        let now = arena.now;
        assert_eq!(arena.target.read(now, stream.at_target(), &mut [0; 8]), Ok(0), "ended in order");
        arena.target.close(now, stream.at_target());
        arena.run_for(ms(50));
        let fin =
            rogue.receive(&mut arena).iter().any(|(h, _)| stream.owns(h) && h.flags.contains(Flags::FIN));
        assert!(fin, "we end our direction as well");
        let mut last = stream.clone();
        let all = last.ack(501, 1);
        rogue.say(&mut arena, &all, &[]);
        arena.run_for(ms(50));
        rogue.receive(&mut arena);
        // After the end: a bounded number of answers to any number of FINs (rule C12).
        let sent = arena.target.stats().datagrams_sent;
        for _ in 0..200 {
            rogue.hit(&mut arena, &last.segment(Flags::FIN | Flags::ACK, 500), &[]);
        }
        arena.settle();
        assert!(arena.target.stats().datagrams_sent - sent <= 5, "round {round}");
        assert_served(&mut arena, &mut honest, &other, round);
    }
}

/// Datagrams and echo requests as fast as they come: bounded queues, and a stream of another peer is served.
#[test]
fn datagram_and_echo_floods_fill_bounded_queues_only() {
    let (mut arena, mut rogue, mut honest) = two(5);
    let other = honest.connect(&mut arena, 81).expect("connects");
    arena.target.bind_datagram(53).expect("free");
    for round in 0..20 {
        let before = arena.ledger[&rogue.addr];
        for i in 0..3_000u32 {
            let header = rogue.header(&arena, Protocol::Datagram, 9, if i % 2 == 0 { 53 } else { 54 });
            rogue.hit(&mut arena, &header, &[1; 600]);
            let ping = rogue.echo_request(&arena, i);
            rogue.hit(&mut arena, &ping, &[2; 600]);
        }
        let memory = arena.target.memory();
        assert!(memory.datagrams_in <= 1_024 && memory.queued_out <= 64, "{memory:?}");
        arena.settle();
        let after = arena.ledger[&rogue.addr];
        assert!(
            after.datagrams_out - before.datagrams_out <= 64 + 2,
            "no more answers than places (and a token)"
        );
        assert_served(&mut arena, &mut honest, &other, round);
        rogue.receive(&mut arena);
    }
    let stats = arena.target.stats();
    assert!(stats.drop_datagram_queue > 0 && stats.drop_segment > 0, "all counted: {stats:?}");
}

/// Key exchange frames from thousands of spoofed sources and of the rogue itself: rate limits, no state, and a peer
/// with keys is served without loss; a known peer that comes back gets keys.
#[test]
fn key_exchange_floods_cost_no_state_and_disturb_nobody() {
    let (mut arena, mut rogue, mut honest) = two(6);
    let other = honest.connect(&mut arena, 81).expect("connects");
    let handshakes = arena.target.stats().handshakes;
    let mut back = Rogue::introduced(&mut arena, 3);
    let mut dice = Dice(6);
    let mut refused = 0;
    for round in 0..40 {
        for _ in 0..2_000 {
            let from = SocketAddr::from(([203, 0, dice.next() as u8, dice.next() as u8], 7));
            let mut bytes = match dice.below(4) {
                0 => {
                    rogue.renew_key();
                    rogue.pila(1)
                }
                1 => Rogue::new(200 + dice.below(50) as u8).pila(1),
                2 => {
                    let mut bytes = honest.pila(1);
                    bytes[100] ^= 1; // the signature
                    bytes
                }
                _ => {
                    let mut bytes = vec![3; frame::PILK_LEN];
                    frame::encode_pilk(honest.node(), &[dice.next() as u8; 32], &mut bytes).expect("fits");
                    bytes
                }
            };
            arena.hit(from, &mut bytes);
        }
        let stats = arena.target.stats();
        assert!(stats.drop_rate_limited >= refused + 1_500, "most cost no signature: {stats:?}");
        refused = stats.drop_rate_limited;
        assert!(arena.target.memory().lookups <= 64);
        assert_eq!(arena.target.memory().peers, 3);
        assert_served(&mut arena, &mut honest, &other, round);
    }
    let after = arena.target.stats().handshakes;
    assert_eq!(after, handshakes, "no keys in use were replaced");
    assert!(back.shake_hands(&mut arena), "a known peer gets keys");
    let lookups = arena.events.iter().filter(|e| matches!(e, Event::LookupPeer { .. })).count();
    assert!(lookups <= 64 + 64 * arena.elapsed().as_secs() as usize / 10, "{lookups}");
    assert!(!arena.events.iter().any(|e| matches!(e, Event::TunnelDown { .. })));
}

/// SYN, data, anything without keys from any number of addresses: nothing is answered, nothing is kept.
#[test]
fn packets_without_keys_leave_no_state() {
    let mut arena = Arena::new(7);
    let peer = Rogue::introduced(&mut arena, 1);
    arena.target.listen(80).expect("free");
    let mut dice = Dice(7);
    for _ in 0..50_000 {
        let mut syn = peer.header(&arena, Protocol::Stream, dice.next() as u16, 80);
        (syn.flags, syn.seq) = (Flags::from_bits_truncate(dice.next() as u8), dice.next() as u32);
        let mut bytes = vec![0; 64];
        let head = frame::encode_pilt_header(&mut bytes).expect("fits");
        let len = syn.encode(&mut bytes[head..], dice.below(20)).expect("fits");
        bytes.truncate(head + len);
        let from = if dice.below(2) == 0 { peer.addr } else { attacker() };
        arena.hit(from, &mut bytes);
    }
    arena.run_for(ms(500));
    assert_eq!(arena.target.stats().datagrams_sent, 0, "nothing was answered");
    assert_eq!(arena.target.stats().drop_not_allowed, 50_000);
    let memory = arena.target.memory();
    assert_eq!((memory.connections, memory.queued_out, memory.events, memory.lookups), (0, 0, 0, 0));
}
