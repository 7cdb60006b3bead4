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

// ---------------------------------------------------------------------- early data

const ASK_PORT: u16 = 9;

/// A link of 20 ms each way.
fn far() -> Link {
    Link { delay: Duration::from_millis(20), ..Link::default() }
}

/// Both know each other's prekeys, and are older than the 20 s before which nothing early is taken.
fn acquainted(seed: u64, link: Link, modes: [SecureMode; 2], legacy: bool) -> Pair {
    let modes = Modes { modes, told: true, legacy: [legacy; 2], ..Modes::default() };
    let mut pair = pair_of(seed, link, modes);
    pair.record = true;
    for (side, port) in [(Side::A, 5), (Side::B, ASK_PORT)] {
        pair.endpoint(side).bind_datagram(port).expect("free");
    }
    pair.run_for(seconds(21));
    pair
}

/// A asks B, idempotently or not.
fn ask_early(pair: &mut Pair, text: &[u8], idempotent: bool) {
    let (now, address) = (pair.now, pair.host(Side::B).address);
    let to = pilotage_wire::SocketAddress { address, port: ASK_PORT };
    let a = pair.endpoint(Side::A);
    match idempotent {
        true => a.send_datagram_idempotent(now, to, 5, text).expect("queued"),
        false => a.send_datagram(now, to, 5, text).expect("queued"),
    }
}

/// When, since one began to wait, and what.
type Arrival = (Duration, Vec<u8>);

/// What B gets within a while, with the time since now; it answers each with the same text.
fn serve_early(pair: &mut Pair, within: Duration) -> (Vec<Arrival>, Vec<Arrival>) {
    let start = pair.now;
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    pair.run_until(within, |p| {
        let now = p.now;
        while let Some(one) = p.endpoint(Side::B).recv_datagram(ASK_PORT) {
            asked.push((now - start, one.data.clone()));
            p.endpoint(Side::B).send_datagram(now, one.from, ASK_PORT, &one.data).expect("queued");
        }
        while let Some(one) = p.endpoint(Side::A).recv_datagram(5) {
            answered.push((now - start, one.data));
        }
        false
    });
    (asked, answered)
}

/// Half a round trip to the question, a whole one to the answer: nothing is waited for. Without the mark both take one more.
#[test]
fn an_idempotent_message_and_its_answer_cost_no_round_trip() {
    let (half, slack) = (Duration::from_millis(20), Duration::from_millis(1));
    for (mode, legacy) in [(SecureMode::S1, false), (SecureMode::S1, true), (SecureMode::Auto, false)] {
        for (text, idempotent, trips) in
            [(&b"what time is it?"[..], true, 1), (&[7; 889], true, 1), (b"plain", false, 3)]
        {
            let mut pair = acquainted(21, far(), [mode; 2], legacy);
            ask_early(&mut pair, text, idempotent);
            let (asked, answered) = serve_early(&mut pair, seconds(3));
            let due = half * trips;
            assert_eq!(asked.len(), 1, "once: {asked:?}");
            assert!(
                asked[0].1 == text && (due..due + slack).contains(&asked[0].0),
                "{mode:?} {:?}",
                asked[0].0
            );
            let due = due + half;
            assert_eq!(answered.len(), 1, "{mode:?} legacy {legacy}");
            assert!(
                answered[0].1 == text && (due..due + slack).contains(&answered[0].0),
                "{:?}",
                answered[0].0
            );
            assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
            let (a, b) = (pair.endpoint(Side::A).stats(), pair.endpoint(Side::B).stats());
            let early = u64::from(idempotent);
            assert_eq!((a.early_sent, a.early_accepted, a.early_repeated), (early, early, 0));
            assert_eq!((b.early_taken, b.early_sent), (early, 0));
            // One length for all questions, so that an observer learns none.
            let lengths: Vec<_> = sent(&pair, Side::A, Kind::Initiation).iter().map(Vec::len).collect();
            assert_eq!(lengths, [if idempotent { 1_200 } else { 304 }]);
            assert!(
                sent(&pair, Side::B, Kind::Initiation).is_empty(),
                "the answer needed no keys of B's own"
            );
            // The session goes on as any other.
            let data = pattern(200_000, 3);
            assert!(pair.transfer(&data).received == data);
        }
    }
}

/// A process that was started again asks early. Its peer still has the session with the one before, and answers in the new one.
#[test]
fn a_restarted_process_asks_early_and_is_answered_at_once() {
    for (mode, legacy) in [(SecureMode::S1, false), (SecureMode::S1, true), (SecureMode::Auto, false)] {
        let mut pair = acquainted(30, far(), [mode; 2], legacy);
        for round in 0..3 {
            ask_early(&mut pair, b"here again", true);
            let (asked, answered) = serve_early(&mut pair, seconds(2));
            assert_eq!((asked.len(), answered.len()), (1, 1), "{mode:?} {legacy} {round}");
            assert!(answered[0].0 < Duration::from_millis(41), "{:?}", answered[0].0);
            let data = pattern(20_000, round);
            assert!(pair.transfer(&data).received == data);
            pair.restart(Side::A);
            pair.endpoint(Side::A).bind_datagram(5).expect("free");
        }
        assert_eq!(pair.endpoint(Side::B).stats().early_taken, 3);
    }
}

/// What an observer recorded is refused by the same process as often as it comes, from wherever it comes and after whatever
/// time; and by the next process, which has other prekeys.
#[test]
fn a_replayed_initiation_delivers_its_message_to_nobody_twice() {
    let mut pair = acquainted(22, far(), [SecureMode::S1; 2], false);
    ask_early(&mut pair, b"pay once", true);
    let (asked, _) = serve_early(&mut pair, seconds(1));
    assert_eq!(asked.len(), 1);
    let initiation = sent(&pair, Side::A, Kind::Initiation).remove(0);
    let places = [pair.host(Side::A).addr, "203.0.113.9:9".parse().expect("address")];
    for step in 0..400 {
        pair.inject(places[step % 2], Side::B, &initiation);
        let (asked, _) = serve_early(&mut pair, Duration::from_millis(150));
        assert!(asked.is_empty(), "replay {step}");
    }
    pair.restart(Side::B);
    pair.endpoint(Side::B).bind_datagram(ASK_PORT).expect("free");
    for step in 0..200 {
        pair.inject(places[step % 2], Side::B, &initiation);
        let (asked, _) = serve_early(&mut pair, Duration::from_millis(150));
        assert!(asked.is_empty(), "replay {step} to the next process");
    }
    assert_eq!(pair.endpoint(Side::B).stats().early_taken, 0);
}

/// A lost PILI: the message comes with the first packet of the session. A lost PILR: it comes twice, as its sender said that it may.
/// Lost answers do not matter to either.
#[test]
fn a_message_whose_initiation_or_answer_is_lost_is_sent_again() {
    for (kind, from, times) in [(Kind::Initiation, Side::A, 1), (Kind::Response, Side::B, 2)] {
        let mut pair = acquainted(23, far(), [SecureMode::S1; 2], false);
        let mut left = 1;
        pair.censor = Some(Box::new(move |side, bytes| {
            let drop = left > 0 && side == from && Kind::of(bytes) == Some(kind);
            left -= i32::from(drop);
            drop
        }));
        ask_early(&mut pair, b"again", true);
        let (asked, answered) = serve_early(&mut pair, seconds(5));
        assert_eq!(asked.len(), times, "{kind:?}: {asked:?}");
        assert!(asked.iter().all(|(at, text)| text == b"again" && *at < seconds(1)), "{asked:?}");
        assert!(!answered.is_empty(), "{kind:?}");
        let stats = pair.endpoint(Side::A).stats();
        assert_eq!((stats.early_sent, stats.early_accepted, stats.early_repeated), (1, 0, 1), "{kind:?}");
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
    }
}

#[test]
fn at_any_loss_an_idempotent_message_harms_nothing() {
    for seed in seeds(30) {
        let link = Link { loss: 0.25, duplicate: 0.2, reorder: 0.2, ..far() };
        let mut pair = acquainted(seed, link, [SecureMode::S1, SecureMode::Auto], seed % 2 == 0);
        ask_early(&mut pair, b"at last", true);
        let (asked, _) = serve_early(&mut pair, seconds(20));
        // Datagrams may be lost; but nothing but one retransmission repeats them.
        assert!(asked.len() <= 2, "seed {seed}: {asked:?}");
        let data = pattern(20_000, seed);
        assert!(pair.transfer(&data).received == data, "seed {seed}");
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2], "seed {seed}");
    }
}

/// Who is asked for keys of the draft in the end, who has forgotten the prekey, who is too young, whose clock is wrong: the message
/// comes by the ordinary way.
#[test]
fn where_nothing_early_is_taken_the_message_comes_with_the_keys() {
    let told = [SecureMode::Auto; 2];
    let mut draft = acquainted(24, far(), told, false);
    draft.modes().modes[1] = SecureMode::Draft;
    let mut restarted = acquainted(25, far(), told, false);
    for pair in [&mut draft, &mut restarted] {
        pair.restart(Side::B);
        pair.endpoint(Side::B).bind_datagram(ASK_PORT).expect("free");
        pair.run_for(seconds(30));
    }
    let skew = Modes { told: true, skew: 60, ..Modes::both(SecureMode::S1) };
    let mut skewed = pair_of(26, far(), skew);
    let mut young = pair_of(27, far(), Modes { told: true, ..Modes::both(SecureMode::S1) });
    for pair in [&mut skewed, &mut young] {
        pair.endpoint(Side::B).bind_datagram(ASK_PORT).expect("free");
        pair.endpoint(Side::A).bind_datagram(5).expect("free");
    }
    skewed.run_for(seconds(30));
    let mut unknown = acquainted(28, far(), told, false);
    unknown.modes().told = false;
    unknown.restart(Side::A);
    unknown.endpoint(Side::A).bind_datagram(5).expect("free");
    for (name, mut pair, tried, mode) in [
        ("draft", draft, true, Mode::Draft),
        ("restarted", restarted, true, Mode::S1),
        ("skewed", skewed, true, Mode::S1),
        ("young", young, true, Mode::S1),
        ("unknown", unknown, false, Mode::S1),
    ] {
        ask_early(&mut pair, b"hello", true);
        let (asked, answered) = serve_early(&mut pair, seconds(10));
        assert_eq!((asked.len(), answered.len()), (1, 1), "{name}");
        assert!(asked[0].0 < Duration::from_millis(700), "{name}: {:?}", asked[0].0);
        let stats = pair.endpoint(Side::A).stats();
        let early = u64::from(tried);
        assert_eq!(
            (stats.early_sent, stats.early_accepted, stats.early_repeated),
            (early, 0, early),
            "{name}"
        );
        assert_eq!(modes_of(&mut pair), [mode; 2], "{name}");
    }
}

/// Answers before the initiator has shown that it is there go where PILI came from, and are at most as many bytes as came.
#[test]
fn answers_to_early_messages_amplify_nothing() {
    let mut pair = acquainted(29, far(), [SecureMode::S1; 2], false);
    // An address that B was never told, and nothing but one datagram from there: it may be a victim's.
    pair.host(Side::A).addr = "198.51.100.77:777".parse().expect("address");
    let mut first = true;
    pair.censor = Some(Box::new(move |side, _| side == Side::A && !std::mem::replace(&mut first, false)));
    pair.recorded.clear();
    ask_early(&mut pair, b"?", true);
    pair.run_until(seconds(4), |p| {
        let now = p.now;
        while let Some(one) = p.endpoint(Side::B).recv_datagram(ASK_PORT) {
            for _ in 0..50 {
                p.endpoint(Side::B).send_datagram(now, one.from, ASK_PORT, &[1; 300]).expect("queued");
            }
        }
        false
    });
    let headers = 28;
    let came = sent(&pair, Side::A, Kind::Initiation)[0].len() + headers;
    let left: usize =
        pair.recorded.iter().filter(|(s, _)| *s == Side::B).map(|(_, b)| b.len() + headers).sum();
    assert_eq!(came, 1_228);
    assert!((came - 400..=came).contains(&left), "{left} bytes of {came}");
    assert_eq!(sent(&pair, Side::B, Kind::Response).len(), 1);
    assert_eq!(sent(&pair, Side::B, Kind::Data).len(), 2, "two answers of 360 bytes");
    assert!(sent(&pair, Side::B, Kind::Initiation).is_empty(), "it waits for the session that it has");
}

/// A peer's record comes to be known in the midst of a transfer: nothing leaves under the draft's keys any more, and no byte is lost.
#[test]
fn what_a_record_demands_ends_the_drafts_mode() {
    for seed in seeds(10) {
        let mut pair = pair_of(seed, far(), Modes::both(SecureMode::Auto));
        pair.record = true;
        let (key, to) = (pair.host(Side::B).key, pair.host(Side::B).address);
        let stranger = pair.host(Side::A).key;
        let ids = pair.connect(8).expect("connects");
        let (now, before) = (pair.now, modes_of(&mut pair)[0]);
        assert!(!pair.endpoint(Side::A).demand_mode(now, to.node, &stranger, Mode::S1), "another key");
        assert!(pair.endpoint(Side::A).demand_mode(now, to.node, &key, Mode::S1));
        pair.recorded.clear();
        assert_eq!(say(&mut pair, Side::A, ids, b"in S1"), b"in S1", "seed {seed}, was {before:?}");
        assert_eq!(modes_of(&mut pair), [Mode::S1; 2]);
        let left = kinds(&pair, Side::A);
        assert!(!left.contains("PILS") && !left.contains("PILA"), "seed {seed}: {left:?}");
        assert_eq!(pair.endpoint(Side::A).peers()[0].least_mode, Mode::S1);
    }
}
