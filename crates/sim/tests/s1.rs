//! Tunnels in S1: who comes to speak it with whom, what survives, what attackers gain (spec/secure.md §12, §15).

use std::collections::HashSet;
use std::time::Duration;

use pilotage_proto::s1::Limits;
use pilotage_proto::{Config, ConnectionId, Event, Mode, ReadError, SecureMode};
use pilotage_sim::{Link, Modes, Pair, Side, pattern, seeds};
use pilotage_wire::s1::Kind;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn pair_of(seed: u64, link: Link, modes: Modes) -> Pair {
    Pair::with_modes(seed, link, Config::default(), modes)
}

/// Both sides speak only S1.
fn only(seed: u64, link: Link) -> Pair {
    pair_of(seed, link, Modes::both(SecureMode::S1))
}

/// Writes at one side, and what the other reads until it has it all or 20 s are over.
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

fn modes_of(pair: &mut Pair) -> [Mode; 2] {
    [Side::A, Side::B].map(|side| pair.endpoint(side).peers()[0].mode)
}

/// The kinds of all datagrams that a side sent: magic of the draft's, or the kind of S1.
fn kinds(pair: &Pair, side: Side) -> HashSet<String> {
    let of = |bytes: &Vec<u8>| match Kind::of(bytes) {
        Some(kind) => format!("{kind:?}"),
        None => String::from_utf8_lossy(&bytes[..4.min(bytes.len())]).into_owned(),
    };
    pair.recorded.iter().filter(|(s, _)| *s == side).map(|(_, bytes)| of(bytes)).collect()
}

fn sent(pair: &Pair, side: Side, kind: Kind) -> Vec<Vec<u8>> {
    let wanted = |(s, bytes): &&(Side, Vec<u8>)| *s == side && Kind::of(bytes) == Some(kind);
    pair.recorded.iter().filter(wanted).map(|(_, bytes)| bytes.clone()).collect()
}

#[test]
fn two_that_speak_only_s1_need_no_frame_of_the_draft() {
    for told in [false, true] {
        let mut pair = pair_of(1, Link::default(), Modes { told, ..Modes::both(SecureMode::S1) });
        pair.record = true;
        let ids = pair.connect(7).expect("connects");
        assert_eq!(say(&mut pair, Side::A, ids, b"there"), b"there");
        assert_eq!(say(&mut pair, Side::B, ids, b"back"), b"back");
        let data = pattern(2 << 20, 3);
        assert!(pair.transfer(&data).received == data);
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        let (a, b) = (kinds(&pair, Side::A), kinds(&pair, Side::B));
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<HashSet<_>>();
        assert_eq!(a, names(&["Initiation", "Data"]), "told: {told}");
        let answers =
            if told { names(&["Response", "Data"]) } else { names(&["NewPrekey", "Response", "Data"]) };
        assert_eq!(b, answers, "told: {told}");
        // One question more without the prekey, and nothing else.
        assert_eq!(sent(&pair, Side::A, Kind::Initiation).len(), if told { 1 } else { 2 });
        let info = pair.endpoint(Side::A).peers().remove(0);
        assert!(info.established && info.authenticated && info.pilotage && info.suite.is_some());
        assert!(info.least_mode == Mode::S1 && info.keys_since.is_some() && info.frames_sealed > 1_000);
    }
}

#[test]
fn datagrams_and_pings_pass() {
    let mut pair = only(2, Link::default());
    let (now, to) = (pair.now, pair.host(Side::B).address);
    pair.endpoint(Side::B).bind_datagram(9).expect("free");
    let to9 = pilotage_wire::SocketAddress { address: to, port: 9 };
    pair.endpoint(Side::A).send_datagram(now, to9, 5, b"one").expect("queued");
    let token = pair.endpoint(Side::A).ping(now, to).expect("known");
    pair.run_for(seconds(5));
    assert_eq!(pair.endpoint(Side::B).recv_datagram(9).map(|d| d.data), Some(b"one".to_vec()));
    let pong = |e: &Event| matches!(e, Event::Pong { token: t, .. } if *t == token);
    assert!(pair.host(Side::A).events.iter().any(pong));
    let prekey = pair.endpoint(Side::B).prekey().expect("S1 is on");
    let secured = |e: &Event| matches!(e, Event::PeerSecured { prekey: p, .. } if **p == prekey);
    assert_eq!(pair.host(Side::A).events.iter().filter(|e| secured(e)).count(), 1, "to be pinned");
}

/// Ten bytes fewer than in the draft's frames, also where the path's size was found out.
#[test]
fn packets_are_as_long_as_the_path_takes() {
    let link = Link { mtu: 1_500, ..Link::default() };
    let mut pair = only(3, link);
    pair.record = true;
    let data = pattern(4 << 20, 5);
    assert!(pair.transfer(&data).received == data);
    pair.run_for(seconds(60));
    pair.recorded.clear();
    assert!(pair.transfer(&data).received == data);
    let size = pair.endpoint(Side::A).peers()[0].path.expect("a path").datagram_size;
    let full = sent(&pair, Side::A, Kind::Data).iter().filter(|bytes| bytes.len() == size).count();
    assert!(full > 1_000, "{full} of {size} bytes");
    assert!(size > 1_400, "{size}");
}

#[test]
fn loss_and_order_cost_time_only() {
    for seed in seeds(20) {
        let link = Link { loss: 0.1, duplicate: 0.05, reorder: 0.1, ..Link::default() };
        let mut pair = only(seed, link);
        let data = pattern(300_000, seed);
        assert!(pair.transfer(&data).received == data, "seed {seed}");
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
    }
}

/// Two that may speak both begin with the draft's keys if neither knows a prekey, and go over to S1 in the midst of a transfer.
#[test]
fn a_tunnel_of_the_draft_becomes_s1_without_a_lost_byte() {
    for seed in seeds(20) {
        let link = Link { loss: 0.02, rate: Some(1_500_000), ..Link::default() };
        let mut pair = pair_of(seed, link, Modes::both(SecureMode::Auto));
        pair.record = true;
        let data = pattern(3 << 20, seed);
        let outcome = pair.transfer(&data);
        assert!(outcome.received == data, "seed {seed}");
        pair.run_for(seconds(10));
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2], "seed {seed}");
        assert!(kinds(&pair, Side::A).contains("PILA"), "the draft came first");
        // Nothing of the draft leaves any more.
        pair.recorded.clear();
        assert!(pair.transfer(&data[..100_000]).received == data[..100_000]);
        for side in [Side::A, Side::B] {
            assert_eq!(kinds(&pair, side), HashSet::from(["Data".to_owned()]), "seed {seed}");
        }
    }
}

/// The stream may be over before anybody had time to try S1: it is tried all the same, so that the next one begins with it.
#[test]
fn a_tunnel_that_carried_one_short_stream_becomes_s1_too() {
    for seed in seeds(20) {
        let mut pair = pair_of(seed, Link::default(), Modes::both(SecureMode::Auto));
        let (a, b) = pair.connect(7).expect("connects");
        let now = pair.now;
        pair.endpoint(Side::A).close(now, a);
        pair.endpoint(Side::B).close(now, b);
        pair.run_for(seconds(10));
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2], "seed {seed}");
        let info = pair.endpoint(Side::A).peers().remove(0);
        assert_eq!((info.connections, info.least_mode), (0, Mode::S1));
    }
}

#[test]
fn with_a_prekey_the_draft_is_not_even_asked() {
    let mut pair = pair_of(5, Link::default(), Modes { told: true, ..Modes::both(SecureMode::Auto) });
    pair.record = true;
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"hello"), b"hello");
    assert!(!kinds(&pair, Side::A).contains("PILA"));
    assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
}

#[test]
fn a_peer_that_speaks_only_the_draft_is_spoken_to_as_ever() {
    for (a, b) in [(SecureMode::Auto, SecureMode::Draft), (SecureMode::Draft, SecureMode::Auto)] {
        let mut pair = pair_of(6, Link::default(), Modes { modes: [a, b], told: true, ..Modes::default() });
        pair.record = true;
        let ids = pair.connect(7).expect("connects");
        assert_eq!(say(&mut pair, Side::A, ids, b"hello"), b"hello");
        let data = pattern(1 << 20, 1);
        assert!(pair.transfer(&data).received == data);
        pair.run_for(seconds(120));
        assert_eq!(modes_of(&mut pair), [Mode::Draft; 2]);
        let asked = [Side::A, Side::B].map(|side| sent(&pair, side, Kind::Initiation).len());
        assert!(asked[0] + asked[1] <= 5, "{asked:?}: whoever does not answer is left in peace");
    }
}

#[test]
fn who_speaks_only_s1_speaks_with_nobody_else() {
    let modes = Modes { modes: [SecureMode::S1, SecureMode::Draft], ..Modes::default() };
    let mut pair = pair_of(7, Link::default(), modes);
    pair.record = true;
    assert!(pair.connect(7).is_err());
    assert!(!kinds(&pair, Side::A).contains("PILA"));
    pair.endpoint(Side::A).listen(8).expect("free");
    let (now, to) = (pair.now, pair.host(Side::A).address);
    let to = pilotage_wire::SocketAddress { address: to, port: 8 };
    pair.endpoint(Side::B).connect(now, to).expect("known");
    pair.run_for(seconds(20));
    assert!(pair.endpoint(Side::A).accept(8).is_none());
    assert!(pair.endpoint(Side::A).stats().drop_not_allowed > 0);
}

// ---------------------------------------------------------------------- life of keys

/// Short lives, so that a transfer sees key updates, new handshakes and their ends.
fn short() -> Limits {
    Limits {
        update_packets: 50,
        update_after: Duration::from_millis(300),
        phase_packets: 100_000,
        rekey_after: Duration::from_millis(900),
        refuse_after: seconds(4),
        ..Limits::default()
    }
}

#[test]
fn keys_are_renewed_under_load_and_never_repeat() {
    for seed in seeds(10) {
        let modes = Modes { limits: short(), ..Modes::both(SecureMode::S1) };
        let link = Link { loss: 0.03, rate: Some(2_000_000), ..Link::default() };
        let mut pair = pair_of(seed, link, modes);
        pilotage_proto::audit::start();
        let data = pattern(12 << 20, seed);
        assert!(pair.transfer(&data).received == data, "seed {seed}");
        let handshakes = pair.endpoint(Side::A).stats().handshakes;
        assert!(handshakes >= 3, "seed {seed}: {handshakes} handshakes");
        let mut sealed = Vec::new();
        pilotage_proto::audit::take(&mut sealed);
        let keys: HashSet<_> = sealed.iter().map(|s| s.key).collect();
        assert!(keys.len() > 20, "seed {seed}: {} keys", keys.len());
        let unique: HashSet<_> = sealed.iter().copied().collect();
        assert_eq!(unique.len(), sealed.len(), "seed {seed}: a key sealed a nonce twice");
    }
}

#[test]
fn an_idle_tunnel_comes_back() {
    let mut pair = only(9, Link::default());
    let ids = pair.connect(7).expect("connects");
    assert_eq!(say(&mut pair, Side::A, ids, b"one"), b"one");
    pair.run_for(seconds(3_600));
    assert_eq!(say(&mut pair, Side::A, ids, b"two"), b"two", "keepalives kept it");
    let now = pair.now;
    pair.endpoint(Side::A).close(now, ids.0);
    pair.endpoint(Side::B).close(now, ids.1);
    pair.run_for(seconds(3_600));
    assert!(!pair.endpoint(Side::A).peers()[0].established, "nobody needed keys");
    let ids = pair.connect(8).expect("connects");
    assert_eq!(say(&mut pair, Side::B, ids, b"three"), b"three");
}

#[test]
fn a_restarted_peer_says_so_and_is_called_again() {
    for mode in [SecureMode::S1, SecureMode::Auto] {
        for restarted in [Side::A, Side::B] {
            let mut pair = pair_of(10, Link::default(), Modes::both(mode));
            pair.record = true;
            let ids = pair.connect(7).expect("connects");
            assert_eq!(say(&mut pair, Side::A, ids, b"one"), b"one");
            pair.run_for(seconds(3));
            assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
            pair.recorded.clear();
            pair.restart(restarted);
            let other = restarted.other();
            let id = if other == Side::A { ids.0 } else { ids.1 };
            let now = pair.now;
            let _ = pair.endpoint(other).write(now, id, b"two");
            let failed = pair.run_until(seconds(30), |p| {
                let now = p.now;
                p.endpoint(other).read(now, id, &mut [0; 8]) == Err(ReadError::Reset)
            });
            assert!(failed, "{mode:?}: the stream of the dead process must end");
            let took = pair.now.duration_since(now);
            assert!(took < seconds(1), "{took:?}");
            let resets = sent(&pair, restarted, Kind::Reset).len();
            assert!((1..=3).contains(&resets), "{resets} {mode:?} {restarted:?}");
            assert_eq!(sent(&pair, restarted, Kind::NewPrekey).len(), 1);
            let again = pair.connect(8).expect("connects again");
            assert_eq!(say(&mut pair, Side::A, again, b"three"), b"three");
            assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        }
    }
}

/// A restarted process that may speak both has forgotten that it spoke S1, and asks for the draft's keys. It is not answered in
/// the draft's mode, but called in S1.
#[test]
fn who_forgot_s1_is_reminded() {
    for restarted in [Side::A, Side::B] {
        let mut pair = pair_of(11, Link::default(), Modes::both(SecureMode::Auto));
        let ids = pair.connect(7).expect("connects");
        assert_eq!(say(&mut pair, Side::A, ids, b"one"), b"one");
        pair.run_for(seconds(5));
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        pair.restart(restarted);
        pair.record = true;
        let other = restarted.other();
        pair.endpoint(other).listen(99).expect("free");
        let (now, to) = (pair.now, pair.host(other).address);
        let to = pilotage_wire::SocketAddress { address: to, port: 99 };
        let id = pair.endpoint(restarted).connect(now, to).expect("known");
        let up = pair
            .run_until(seconds(10), |p| p.host(restarted).events.iter().any(|e| *e == Event::Connected(id)));
        assert!(up, "{restarted:?}");
        assert!(pair.now.duration_since(now) < seconds(4));
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        assert!(!kinds(&pair, other).contains("PILA"), "no way down");
    }
}

#[test]
fn a_peer_that_moves_is_followed() {
    for seed in seeds(5) {
        let mut pair = only(seed, Link::default());
        let ids = pair.connect(7).expect("connects");
        assert_eq!(say(&mut pair, Side::A, ids, b"one"), b"one");
        pair.host(Side::A).addr = "198.51.100.77:777".parse().expect("address");
        assert_eq!(say(&mut pair, Side::A, ids, b"two"), b"two");
        assert_eq!(say(&mut pair, Side::B, ids, b"three"), b"three");
        let path = pair.endpoint(Side::B).connection_path(ids.1).expect("path");
        assert_eq!(path.remote, pair.host(Side::A).addr);
    }
}

#[test]
fn through_a_relay() {
    for blocked in [false, true] {
        let mut pair = only(12, Link::default());
        pair.add_beacon();
        pair.direct_blocked = blocked;
        pair.run_for(seconds(1));
        let ids = pair.connect(7).expect("connects");
        assert_eq!(say(&mut pair, Side::A, ids, b"there"), b"there");
        assert_eq!(say(&mut pair, Side::B, ids, b"back"), b"back");
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        pair.restart(Side::B);
        let beacon = "192.0.2.200:9001".parse().expect("address");
        let now = pair.now;
        pair.endpoint(Side::B).set_beacon(now, Some(beacon));
        pair.run_for(seconds(1));
        let ids = pair.connect(8).expect("connects again");
        assert_eq!(say(&mut pair, Side::A, ids, b"again"), b"again");
    }
}

#[test]
fn both_begin_at_once() {
    for seed in seeds(20) {
        let mut pair = pair_of(
            seed,
            Link { loss: 0.1, ..Link::default() },
            Modes {
                told: seed % 2 == 0,
                ..Modes::both(if seed % 3 == 0 { SecureMode::Auto } else { SecureMode::S1 })
            },
        );
        let (now, a, b) = (pair.now, pair.host(Side::A).address, pair.host(Side::B).address);
        pair.endpoint(Side::A).ping(now, b).expect("known");
        pair.endpoint(Side::B).ping(now, a).expect("known");
        let pong = |e: &Event| matches!(e, Event::Pong { .. });
        let data = pattern(200_000, seed);
        assert!(pair.transfer(&data).received == data, "seed {seed}");
        pair.run_for(seconds(10));
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2], "seed {seed}");
        let pongs = [Side::A, Side::B].map(|s| pair.host(s).events.iter().filter(|e| pong(e)).count());
        assert!(pongs[0] <= 1 && pongs[1] <= 1);
    }
}
