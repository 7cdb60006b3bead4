//! The post-quantum upgrade of sessions, between endpoints (spec/secure.md §9.5).

use std::time::Duration;

use pilotage_proto::s1::{Limits, PostQuantum};
use pilotage_proto::{Config, ConnectionId, SecureMode};
use pilotage_sim::{Link, Modes, Pair, Side, pattern, seeds};
use pilotage_wire::SocketAddress;
use pilotage_wire::s1::Kind;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn pair_of(seed: u64, link: Link, modes: [PostQuantum; 2], legacy: bool, limits: Limits) -> Pair {
    let modes =
        Modes { post_quantum: modes, legacy: [legacy; 2], limits, told: true, ..Modes::both(SecureMode::S1) };
    Pair::with_modes(seed, link, Config::default(), modes)
}

/// Writes at one side, and what the other reads until it has it all or a minute is over.
fn say(pair: &mut Pair, ids: (ConnectionId, ConnectionId), text: &[u8]) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    pair.run_until(seconds(60), |p| {
        let now = p.now;
        sent += p.endpoint(Side::A).write(now, ids.0, &text[sent..]).unwrap_or(0);
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = p.endpoint(Side::B).read(now, ids.1, &mut buf) {
            got.extend_from_slice(&buf[..n]);
        }
        got.len() >= text.len()
    });
    got
}

fn upgraded(pair: &mut Pair) -> [bool; 2] {
    [Side::A, Side::B].map(|side| pair.endpoint(side).peers()[0].post_quantum)
}

#[test]
fn sessions_are_upgraded_with_streams_and_without() {
    for legacy in [false, true] {
        for modes in
            [[PostQuantum::On; 2], [PostQuantum::Require, PostQuantum::On], [PostQuantum::Require; 2]]
        {
            let mut pair = pair_of(1, Link::default(), modes, legacy, Limits::default());
            let ids = pair.connect(7).expect("connects");
            let text = pattern(100_000, 1);
            assert_eq!(say(&mut pair, ids, &text), text, "{modes:?} {legacy}");
            pair.run_for(seconds(1));
            assert_eq!(upgraded(&mut pair), [true; 2], "{modes:?} {legacy}");
        }
    }
    let mut pair = pair_of(1, Link::default(), [PostQuantum::On, PostQuantum::Off], false, Limits::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, ids, b"as ever"), b"as ever");
    pair.run_for(seconds(1));
    assert_eq!(upgraded(&mut pair), [false; 2]);
}

/// At any loss and order; each new session is upgraded again.
#[test]
fn at_any_loss_every_session_is_upgraded() {
    let limits = Limits { rekey_after: seconds(6), refuse_after: seconds(30), ..Limits::default() };
    for seed in seeds(20) {
        let link = Link { loss: 0.1, reorder: 0.1, duplicate: 0.05, ..Link::default() };
        let modes = if seed % 2 == 0 { [PostQuantum::On; 2] } else { [PostQuantum::Require; 2] };
        let mut pair = pair_of(seed, link, modes, seed % 3 == 0, limits);
        let ids = pair.connect(7).expect("connects");
        for round in 0..4 {
            let text = pattern(20_000 + round, 2);
            assert_eq!(say(&mut pair, ids, &text), text, "seed {seed}, round {round}");
            pair.run_for(seconds(4));
        }
        // A session may have begun just now.
        let done = pair.run_until(seconds(20), |p| upgraded(p) == [true; 2]);
        assert!(done, "seed {seed}");
    }
}

/// Who demands it sends nothing of an application without it, whatever an attacker keeps back, and says that it has no session with a
/// peer that cannot.
#[test]
fn who_demands_it_says_nothing_without_it() {
    // An attacker knows the steps by their length.
    let mut pair = pair_of(3, Link::default(), [PostQuantum::Require; 2], false, Limits::default());
    pair.record = true;
    pair.censor = Some(Box::new(|_, bytes: &[u8]| {
        Kind::of(bytes) == Some(Kind::Data) && (560..=640).contains(&bytes.len())
    }));
    let (now, address) = (pair.now, pair.host(Side::B).address);
    let to = SocketAddress { address, port: 80 };
    let id = pair.endpoint(Side::A).connect(now, to).expect("it begins");
    let secret = [0x5A; 400];
    let _ = pair.endpoint(Side::A).write(now, id, &secret);
    pair.run_for(seconds(10));
    assert_eq!(upgraded(&mut pair), [false; 2]);
    let longest = pair
        .recorded
        .iter()
        .filter(|(_, bytes)| Kind::of(bytes) == Some(Kind::Data) && !(560..=640).contains(&bytes.len()))
        .map(|(_, bytes)| bytes.len())
        .max();
    assert!(longest.is_some_and(|len| len < 100), "{longest:?}: only what keeps the session");

    let mut pair =
        pair_of(4, Link::default(), [PostQuantum::Require, PostQuantum::Off], false, Limits::default());
    let (now, address) = (pair.now, pair.host(Side::B).address);
    let to = SocketAddress { address, port: 80 };
    let id = pair.endpoint(Side::A).connect(now, to).expect("it begins");
    pair.run_for(seconds(20));
    assert!(pair.endpoint(Side::A).connect_error(id).is_some());
    assert!(pair.endpoint(Side::A).stats().drop_bad_key_exchange > 0);
}
