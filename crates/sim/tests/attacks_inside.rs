//! What an authenticated peer can try with the packets inside its tunnel: foreign inner addresses, holes, look-alikes.

mod attacks_common;

use std::time::Instant;

use attacks_common::{Dice, Duel, ms};
use pilotage_proto::{Config, ReadError};
use pilotage_sim::rogue::{Arena, Rogue};
use pilotage_sim::{Link, Pair, Side, pattern, seeds};
use pilotage_wire::packet::{Flags, Protocol};
use pilotage_wire::{Address, sack};

/// A peer with valid keys speaks in the name of another peer, of nobody, of ourselves, or to others through us.
#[test]
fn foreign_inner_addresses_reach_nobody() {
    let mut arena = Arena::new(1);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    let mut honest = Rogue::introduced(&mut arena, 2);
    assert!(rogue.shake_hands(&mut arena) && honest.shake_hands(&mut arena));
    let stream = honest.connect(&mut arena, 80).expect("connects");
    arena.target.bind_datagram(53).expect("free");
    let before = arena.target.stats();
    let (own, us) = (rogue.address, arena.address);
    let others = [honest.address, us, Address::new(0, 0), Address::new(0, u32::MAX), Address::new(7, 12)];
    let mut count = 0;
    for src in others.into_iter().chain([own]) {
        for dst in others.into_iter().chain([own]) {
            if (src.node, dst.node) == (own.node, us.node) {
                continue;
            }
            for protocol in [Protocol::Stream, Protocol::Datagram, Protocol::Control] {
                for flags in 0..16 {
                    let mut header = match protocol {
                        Protocol::Stream => stream.segment(Flags::from_bits_truncate(flags), 0),
                        Protocol::Datagram => rogue.header(&arena, protocol, 9, 53),
                        Protocol::Control => rogue.header(&arena, protocol, 49_152, 0),
                    };
                    header.flags = Flags::from_bits_truncate(flags);
                    (header.src, header.dst) = (src, dst);
                    rogue.hit(&mut arena, &header, b"in another's name");
                    count += 1;
                }
            }
        }
    }
    let sent = arena.target.stats().datagrams_sent;
    arena.run_for(ms(200));
    let after = arena.target.stats();
    assert_eq!(after.drop_misaddressed - before.drop_misaddressed, count);
    // At most a request for the token of the rogue's address is on its way.
    assert!(after.datagrams_sent <= sent + 2, "none was answered");
    assert_eq!(arena.target.recv_datagram(53), None);
    let now = arena.now;
    assert_eq!(arena.target.read(now, stream.at_target(), &mut [0; 8]), Err(ReadError::Blocked));
    honest.say(&mut arena, &stream.data(0), b"mine");
    arena.run_for(ms(50));
    assert_eq!(arena.read_all(stream.at_target()), b"mine");
    // The network part alone may differ (reference peers answer from network 0): it is still the same peer.
    let mut header = rogue.header(&arena, Protocol::Datagram, 9, 53);
    header.src = Address::new(9, own.node.0);
    rogue.say(&mut arena, &header, b"own");
    arena.run_for(ms(50));
    assert_eq!(arena.target.recv_datagram(53).expect("delivered").from.address.node, own.node);
}

/// 10^6 one-byte segments with a hole after each: memory stays below twice the window, each costs little more than a
/// segment in order, and what fits the bounds of reassembly is delivered exactly once the holes are filled.
#[test]
fn a_million_one_byte_holes_cost_at_most_twice_the_window() {
    let mut arena = Arena::new(2);
    arena.keep = false;
    let mut rogue = Rogue::introduced(&mut arena, 1);
    arena.keep = true;
    assert!(rogue.shake_hands(&mut arena));
    let stream = rogue.connect(&mut arena, 80).expect("connects");
    arena.keep = false;
    let window = Config::default().recv_buffer;
    let data = pattern(4 << 20, 2);
    let started = Instant::now();
    for i in 0..1_000_000usize {
        let at = (2 * i + 1) % data.len();
        rogue.hit(&mut arena, &stream.data(at as u64), &data[at..=at]);
        if i % 1_000 == 0 {
            arena.run_for(ms(1));
            let held = arena.target.memory().received;
            assert!(held <= 2 * window, "{held} bytes held");
        }
    }
    let holes = started.elapsed();
    assert_eq!(arena.target.readable(stream.at_target()), 0);
    // From the end, backwards: every segment opens a hole in front of all others.
    for i in (0..200_000usize).rev() {
        let at = 2 * i + 1;
        rogue.hit(&mut arena, &stream.data(at as u64), &data[at..=at]);
        if i % 1_000 == 0 {
            arena.run_for(ms(1));
        }
    }
    // The same bytes in order, in segments of the same size, as the measure.
    let mut calm = Arena::new(2);
    let mut peer = Rogue::introduced(&mut calm, 1);
    assert!(peer.shake_hands(&mut calm));
    let orderly = peer.connect(&mut calm, 80).expect("connects");
    calm.keep = false;
    let started = Instant::now();
    for (at, byte) in data.iter().enumerate().take(1_000_000) {
        peer.hit(&mut calm, &orderly.data(at as u64), &[*byte]);
        if at % 1_000 == 0 {
            calm.run_for(ms(1));
        }
    }
    let order = started.elapsed();
    println!("10^6 one-byte segments: with holes {holes:?}, in order {order:?}");
    assert!(holes < order * 8, "with holes {holes:?}, in order {order:?}");
    // All of it again, in order: exact.
    for (i, chunk) in data.chunks(1_000).enumerate() {
        rogue.hit(&mut arena, &stream.data(1_000 * i as u64), chunk);
    }
    arena.run_for(ms(10));
    assert!(arena.read_all(stream.at_target()) == data);
}

/// Overlapping and contradicting segments: the first copy of a byte stays, whatever comes later.
#[test]
fn contradicting_segments_do_not_change_what_was_received() {
    for seed in 0..20 {
        let mut arena = Arena::new(seed);
        let mut rogue = Rogue::introduced(&mut arena, 1);
        assert!(rogue.shake_hands(&mut arena));
        let stream = rogue.connect(&mut arena, 80).expect("connects");
        let truth = pattern(20_000, seed);
        let lie = vec![0xee; 3_000];
        let mut dice = Dice(seed);
        let mut have = vec![false; truth.len()];
        for _ in 0..300 {
            let at = dice.below(truth.len() - 1_500);
            let len = 1 + dice.below(1_400);
            rogue.hit(&mut arena, &stream.data(at as u64), &truth[at..at + len]);
            have[at..at + len].fill(true);
            // A lie exactly over what is there already.
            let there = dice.below(truth.len());
            let run = have[there..].iter().take(1_400).take_while(|h| **h).count();
            if run > 0 {
                rogue.hit(&mut arena, &stream.data(there as u64), &lie[..run]);
            }
        }
        for (i, chunk) in truth.chunks(1_000).enumerate() {
            rogue.hit(&mut arena, &stream.data(1_000 * i as u64), chunk);
        }
        arena.run_for(ms(10));
        assert!(arena.read_all(stream.at_target()) == truth, "seed {seed}");
    }
}

/// User data made of SACK look-alikes, at every position of a segment, small and large, both ways, with loss.
#[test]
fn user_data_that_looks_like_sack_arrives_unharmed() {
    for seed in seeds(30) {
        let loss = [0.0, 0.03, 0.1][seed as usize % 3];
        let mut pair = Pair::new(seed, Link { loss, ..Link::default() });
        let mut dice = Dice(seed);
        let mut data = Vec::new();
        let mut writes = Vec::new();
        for n in 0..400 {
            let start = data.len();
            data.extend(std::iter::repeat_n(b'.', dice.below(3) * dice.below(40)));
            let count = 1 + n % 5; // 5 is no valid count
            data.extend_from_slice(&sack::MAGIC);
            data.push(count as u8);
            for _ in 0..8 * count {
                data.push(dice.next() as u8);
            }
            data.extend_from_slice(&sack::MAGIC[..dice.below(5)]);
            writes.push(start..data.len());
        }
        let (a, b) = pair.connect(9).expect("connects");
        let now = pair.now;
        for side in [(Side::A, a), (Side::B, b)] {
            pair.endpoint(side.0).set_nodelay(now, side.1, dice.below(2) == 0);
        }
        let mut got = [Vec::new(), Vec::new()];
        let mut next = 0;
        let done = pair.run_until(std::time::Duration::from_secs(60), |p| {
            let now = p.now;
            if let Some(range) = writes.get(next) {
                for (side, id) in [(Side::A, a), (Side::B, b)] {
                    let n = p.endpoint(side).write(now, id, &data[range.clone()]).expect("room");
                    assert_eq!(n, range.len());
                }
                next += 1;
            }
            for (i, (side, id)) in [(Side::A, a), (Side::B, b)].into_iter().enumerate() {
                let mut chunk = [0; 4096];
                while let Ok(n @ 1..) = p.endpoint(side).read(now, id, &mut chunk) {
                    got[i].extend_from_slice(&chunk[..n]);
                }
            }
            got.iter().all(|g| g.len() >= data.len())
        });
        assert!(
            done && got.iter().all(|g| *g == data),
            "seed {seed}: {:?} of {}",
            got.map(|g| g.len()),
            data.len()
        );
    }
}

/// The same as a single write of nothing else, of every length around a SACK payload, in either direction.
#[test]
fn a_lone_sack_look_alike_of_any_length_is_data() {
    let mut pair = Pair::new(5, Link::default());
    let (a, b) = pair.connect(9).expect("connects");
    for count in 0..=6u8 {
        for len in 0..=60usize {
            let mut text = [b"SACK".as_slice(), &[count], &[0; 60]].concat();
            text.truncate(4 + len);
            for (from, to) in [((Side::A, a), (Side::B, b)), ((Side::B, b), (Side::A, a))] {
                let now = pair.now;
                pair.endpoint(from.0).write(now, from.1, &text).expect("room");
                pair.run_for(ms(100));
                let (mut chunk, now) = ([0; 128], pair.now);
                let mut got = Vec::new();
                while let Ok(n @ 1..) = pair.endpoint(to.0).read(now, to.1, &mut chunk) {
                    got.extend_from_slice(&chunk[..n]);
                }
                assert_eq!(got, text, "count {count}, length {len}");
            }
        }
    }
    Duel::new(&mut pair, 10, 1_000).finish(&mut pair);
}
