//! Replays: key exchange frames by the hundred thousand, and whole captured sessions in any order (spec/tunnel.md §3–§6).

mod attacks_common;

use std::time::Duration;

use attacks_common::{Dice, Duel, attacker, ms, of_kind, path_changes, stats};
use pilotage_proto::{Config, ReadError};
use pilotage_sim::{Link, Pair, Side, seeds};
use pilotage_wire::SocketAddress;

/// `PILOTAGE_SEEDS` instead of the ordinary number of seeds.
fn count(ordinary: u64) -> u64 {
    std::env::var("PILOTAGE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ordinary)
}

/// Three lives of each side: key exchange frames that were all valid once.
fn with_old_exchanges(seed: u64, cfg: Config) -> (Pair, [Vec<Vec<u8>>; 2]) {
    let mut pair = Pair::with_config(seed, Link::default(), cfg);
    pair.record = true;
    for life in 0..3 {
        Duel::new(&mut pair, 100 + life, 20_000).finish(&mut pair);
        pair.run_for(Duration::from_secs(1));
        pair.restart(if life % 2 == 0 { Side::A } else { Side::B });
    }
    Duel::new(&mut pair, 200, 20_000).finish(&mut pair);
    let pilas = [Side::A, Side::B].map(|side| of_kind(&pair.recorded, side, b"PILA"));
    assert!(pilas.iter().all(|p| p.len() >= 3), "exchanges of several lives");
    pair.record = false;
    pair.recorded.clear();
    (pair, pilas)
}

/// 10^5 replayed key exchange frames, own and the peer's, of this life and former ones, from real and foreign addresses,
/// while data flows both ways.
#[test]
fn a_hundred_thousand_replayed_key_exchanges_change_nothing() {
    let (mut pair, pilas) = with_old_exchanges(1, Config::default());
    let mut duel = Duel::new(&mut pair, 300, 30 << 20);
    let before = stats(&mut pair);
    let (paths, changes) = (duel.paths(&mut pair), path_changes(&mut pair));
    let addrs = [Side::A, Side::B].map(|side| pair.host(side).addr);
    let mut dice = Dice(1);
    let mut replayed = 0;
    while replayed < 100_000 {
        for _ in 0..50 {
            let all = &pilas[dice.below(2)];
            let frame = &all[dice.below(all.len())];
            let from = match dice.below(4) {
                0 => addrs[0],
                1 => addrs[1],
                2 => attacker(),
                _ => ([203, 0, 113, dice.next() as u8], 99).into(),
            };
            let to = if dice.below(2) == 0 { Side::A } else { Side::B };
            pair.inject(from, to, frame);
            replayed += 1;
        }
        pair.run_for(ms(3));
        duel.pump(&mut pair);
    }
    assert!(duel.progress() > 1 << 20, "data flowed meanwhile: {} bytes", duel.progress());
    assert_eq!(duel.paths(&mut pair), paths);
    assert_eq!(path_changes(&mut pair), changes, "no path moved");
    let after = stats(&mut pair);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.handshakes, after.handshakes, "no keys were replaced");
        assert_eq!(before.drop_unauthentic, after.drop_unauthentic, "both kept sealing under the same keys");
    }
    duel.finish(&mut pair);
}

/// Renewal of keys must get through while old exchanges are replayed to both sides without pause.
#[test]
fn keys_are_renewed_under_replayed_key_exchanges() {
    let cfg = Config { rekey_after_frames: 400, max_datagram_size: 1_452, ..Config::default() };
    for seed in seeds(5) {
        let (mut pair, pilas) = with_old_exchanges(seed, cfg.clone());
        let before = stats(&mut pair)[0].handshakes;
        let mut duel = Duel::new(&mut pair, 300, 8 << 20); // more frames than one key may seal
        let addrs = [Side::A, Side::B].map(|side| pair.host(side).addr);
        let mut dice = Dice(seed);
        let done = (0..60_000).any(|_| {
            // A's frames to B and B's to A: those that look valid there.
            let from = dice.below(2);
            let frame = &pilas[from][dice.below(pilas[from].len())];
            let to = [Side::B, Side::A][from];
            let source = if dice.below(2) == 0 { addrs[from] } else { attacker() };
            pair.inject(source, to, frame);
            let until = pair.now + ms(20);
            while pair.step(until) {
                duel.pump(&mut pair);
            }
            duel.is_over()
        });
        assert!(done, "seed {seed}: stuck after {} bytes", duel.progress());
        let renewed = stats(&mut pair)[0].handshakes - before;
        assert!(renewed >= 4, "seed {seed}: renewed {renewed} times");
    }
}

/// Old exchanges replayed while two peers that both restarted meet again.
#[test]
fn peers_find_each_other_while_old_key_exchanges_are_replayed() {
    for seed in seeds(50) {
        let (mut pair, pilas) = with_old_exchanges(seed, Config::default());
        pair.restart(Side::A);
        pair.restart(Side::B);
        let (from_a, b) = (pair.host(Side::A).addr, pair.host(Side::B).address);
        let from_b = pair.host(Side::B).addr;
        let mut dice = Dice(seed);
        let now = pair.now;
        let _ = pair.endpoint(Side::B).listen(300);
        let a = pair.endpoint(Side::A).connect(now, SocketAddress { address: b, port: 300 }).expect("known");
        let started = pair.now;
        let mut open = false;
        while !open && pair.now.duration_since(started) < Duration::from_secs(14) {
            let spoof = dice.below(2) == 0;
            for (from, to, side) in [(from_a, Side::B, 0), (from_b, Side::A, 1)] {
                let frame = &pilas[side][dice.below(pilas[side].len())];
                pair.inject(if spoof { from } else { attacker() }, to, frame);
            }
            pair.run_for(ms(10));
            open = pair.endpoint(Side::A).is_open(a) && pair.endpoint(Side::B).accept(300).is_some();
        }
        assert!(open, "seed {seed}: not connected under replay");
        Duel::new(&mut pair, 301, 50_000).finish(&mut pair);
    }
}

/// A whole session as an observer records it: exchanges, streams both ways, datagrams, renewals, closes.
fn captured(seed: u64) -> (Pair, Vec<(Side, Vec<u8>)>) {
    let cfg = Config { rekey_after_frames: 60, max_datagram_size: 1_452, ..Config::default() };
    let mut pair = Pair::with_config(seed, Link::default(), cfg);
    for side in [Side::A, Side::B] {
        pair.endpoint(side).bind_datagram(53).expect("free");
    }
    pair.record = true;
    Duel::new(&mut pair, 100, 60_000).finish(&mut pair);
    exchange_datagrams(&mut pair, 20);
    assert_eq!(drain_datagrams(&mut pair), 40);
    Duel::new(&mut pair, 101, 60_000).finish(&mut pair);
    assert!(stats(&mut pair)[0].handshakes >= 2, "renewed during the capture");
    let mut capture = std::mem::take(&mut pair.recorded);
    // The end of another connection that was reset.
    let (a, _) = pair.connect(102).expect("connects");
    let now = pair.now;
    pair.endpoint(Side::A).reset(now, a);
    pair.run_for(ms(100));
    capture.append(&mut pair.recorded);
    pair.record = false;
    (pair, capture)
}

fn exchange_datagrams(pair: &mut Pair, count: u8) {
    for i in 0..count {
        let now = pair.now;
        for (side, other) in [(Side::A, Side::B), (Side::B, Side::A)] {
            let to = SocketAddress { address: pair.host(other).address, port: 53 };
            pair.endpoint(side).send_datagram(now, to, 9, &[i; 40]).expect("queued");
        }
        pair.run_for(ms(1));
    }
    pair.run_for(ms(50));
}

fn drain_datagrams(pair: &mut Pair) -> usize {
    let mut count = 0;
    for side in [Side::A, Side::B] {
        while pair.endpoint(side).recv_datagram(53).is_some() {
            count += 1;
        }
    }
    count
}

/// Any permutation, subset and multiplication of a captured run, to both sides, also reflected to their senders, from
/// real and foreign addresses, while a transfer runs and after it.
#[test]
fn a_captured_run_in_any_order_is_without_effect() {
    for seed in seeds(count(150)) {
        let (mut pair, capture) = captured(seed);
        let mut dice = Dice(seed);
        let addrs = [Side::A, Side::B].map(|side| pair.host(side).addr);
        let mut order: Vec<usize> = (0..capture.len()).filter(|_| dice.below(10) < 9).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        let copies: Vec<_> = (0..order.len() / 3).map(|_| order[dice.below(order.len())]).collect();
        order.extend(copies);
        let mut duel = Duel::new(&mut pair, 103, 200_000);
        let (paths, changes) = (duel.paths(&mut pair), path_changes(&mut pair));
        let (during, after) = order.split_at(order.len() / 2);
        let inject = |pair: &mut Pair, dice: &mut Dice, index: usize| {
            let (side, frame) = &capture[index];
            let reflected = dice.below(8) == 0;
            let to = if reflected { *side } else { side.other() };
            let real = addrs[if to == Side::A { 1 } else { 0 }];
            pair.inject(if dice.below(2) == 0 { real } else { attacker() }, to, frame);
        };
        for &index in during {
            inject(&mut pair, &mut dice, index);
            pair.run_for(Duration::from_micros(dice.next() % 500));
            duel.pump(&mut pair);
        }
        assert_eq!(duel.paths(&mut pair), paths, "seed {seed}");
        duel.finish(&mut pair);
        for &index in after {
            inject(&mut pair, &mut dice, index);
            pair.run_for(Duration::from_micros(dice.next() % 500));
        }
        pair.run_for(Duration::from_secs(1));
        assert_eq!(drain_datagrams(&mut pair), 0, "seed {seed}: a datagram was delivered again");
        assert_eq!(path_changes(&mut pair), changes, "seed {seed}: a path moved");
        exchange_datagrams(&mut pair, 5);
        assert_eq!(drain_datagrams(&mut pair), 10, "seed {seed}: new datagrams arrive once");
        Duel::new(&mut pair, 104, 50_000).finish(&mut pair);
        for port in [100, 101, 102, 103] {
            assert_eq!(
                pair.endpoint(Side::B).accept(port),
                None,
                "seed {seed}: a connection came of a replay"
            );
        }
    }
}

/// The captured run replayed against the next life of either side: old frames mean nothing to a new process.
#[test]
fn a_captured_run_means_nothing_to_a_restarted_peer() {
    for seed in seeds(40) {
        let (mut pair, capture) = captured(seed);
        let mut dice = Dice(seed);
        let addrs = [Side::A, Side::B].map(|side| pair.host(side).addr);
        for side in [Side::A, Side::B].into_iter().filter(|_| seed % 3 != 2).take(1 + seed as usize % 2) {
            pair.restart(side);
        }
        for side in [Side::A, Side::B] {
            let _ = pair.endpoint(side).bind_datagram(53);
            for port in 100..103 {
                let _ = pair.endpoint(side).listen(port);
            }
        }
        for _ in 0..2 * capture.len() {
            let (side, frame) = &capture[dice.below(capture.len())];
            let real = addrs[if *side == Side::A { 0 } else { 1 }];
            pair.inject(if dice.below(2) == 0 { real } else { attacker() }, side.other(), frame);
            pair.run_for(Duration::from_micros(dice.next() % 2_000));
        }
        pair.run_for(ms(500));
        assert_eq!(drain_datagrams(&mut pair), 0, "seed {seed}");
        for port in 100..103 {
            assert_eq!(pair.endpoint(Side::B).accept(port), None, "seed {seed}");
        }
        Duel::new(&mut pair, 104, 50_000).finish(&mut pair);
        let (a, _) = pair.connect(105).expect("connects");
        let now = pair.now;
        assert_eq!(pair.endpoint(Side::A).read(now, a, &mut [0; 8]), Err(ReadError::Blocked));
    }
}
