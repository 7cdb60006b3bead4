//! Streams of S1's own frame layer under the endpoint: what they cost, what they survive (spec/secure.md §11, §12.6).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use pilotage_proto::s1::Limits;
use pilotage_proto::{
    Config, ConnectError, ConnectionId, Event, Mode, PathKind, ReadError, SecureMode, WriteError,
};
use pilotage_sim::{Link, Modes, Pair, Side, pattern, seeds};
use pilotage_wire::SocketAddress;
use pilotage_wire::s1::Kind;

const MS: Duration = Duration::from_millis(1);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A round trip of 40 ms.
fn far() -> Link {
    Link { delay: 20 * MS, ..Link::default() }
}

fn modes(mode: SecureMode) -> Modes {
    Modes { told: true, ..Modes::both(mode) }
}

fn pair_of(seed: u64, link: Link, modes: Modes) -> Pair {
    Pair::with_modes(seed, link, Config::default(), modes)
}

fn port_of(pair: &mut Pair, port: u16) -> SocketAddress {
    SocketAddress { address: pair.host(Side::B).address, port }
}

/// B answers on `port` with what came, and keeps what it accepted.
#[derive(Default)]
struct Echo {
    accepted: Vec<ConnectionId>,
}

impl Echo {
    fn serve(&mut self, pair: &mut Pair, port: u16) {
        let now = pair.now;
        let b = pair.endpoint(Side::B);
        while let Some((id, _)) = b.accept(port) {
            self.accepted.push(id);
        }
        for id in &self.accepted {
            let mut buf = [0; 4096];
            while let Ok(n) = b.read(now, *id, &mut buf) {
                if n == 0 {
                    let _ = b.shutdown(now, *id);
                    break;
                }
                let _ = b.write(now, *id, &buf[..n]);
            }
        }
    }
}

/// Opens a connection, writes, and waits for the answer: the time, and the datagrams that A sent meanwhile.
fn ask(pair: &mut Pair, echo: &mut Echo, port: u16, text: &[u8]) -> (Duration, u64) {
    let _ = pair.endpoint(Side::B).listen(port);
    let (now, sent, to) = (pair.now, pair.sent[0], port_of(pair, port));
    let id = pair.endpoint(Side::A).connect(now, to).expect("known");
    pair.endpoint(Side::A).write(now, id, text).expect("room");
    let mut got = Vec::new();
    let done = pair.run_until(seconds(60), |p| {
        echo.serve(p, port);
        let now = p.now;
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = p.endpoint(Side::A).read(now, id, &mut buf) {
            got.extend_from_slice(&buf[..n]);
        }
        got.len() >= text.len()
    });
    assert!(done && got == text, "{} bytes", got.len());
    let cost = (pair.now.duration_since(now), pair.sent[0] - sent);
    let now = pair.now;
    pair.endpoint(Side::A).close(now, id);
    cost
}

#[test]
fn connect_and_first_reply_take_one_round_trip_less_than_in_the_draft() {
    let times = [SecureMode::Draft, SecureMode::S1].map(|mode| {
        let mut pair = pair_of(1, far(), modes(mode));
        ask(&mut pair, &mut Echo::default(), 7, b"hello").0
    });
    let legacy = {
        let mut pair = pair_of(1, far(), Modes { legacy: [true; 2], ..modes(SecureMode::S1) });
        ask(&mut pair, &mut Echo::default(), 7, b"hello").0
    };
    assert!(times[0] >= 120 * MS, "{times:?}: keys, ports, data");
    assert!(times[1] < 82 * MS, "{times:?}: keys, data");
    assert!(legacy >= 120 * MS, "{legacy:?}: the draft's packets in S1 have their handshake of ports");
}

#[test]
fn a_new_stream_in_a_warm_tunnel_costs_no_round_trip() {
    let mut pair = pair_of(2, far(), modes(SecureMode::S1));
    let mut echo = Echo::default();
    ask(&mut pair, &mut echo, 7, b"first");
    pair.run_for(seconds(2));
    for n in 0..20u64 {
        let (time, packets) = ask(&mut pair, &mut echo, 7, b"next");
        assert!(time < 41 * MS, "{time:?} in round {n}");
        assert!(packets <= 2, "{packets} datagrams: the question, and perhaps an acknowledgement");
        pair.run_for(seconds(1));
    }
    let mut pair = pair_of(2, far(), modes(SecureMode::Draft));
    let mut echo = Echo::default();
    ask(&mut pair, &mut echo, 7, b"first");
    pair.run_for(seconds(2));
    assert!(ask(&mut pair, &mut echo, 7, b"next").0 >= 80 * MS, "what is saved");
}

#[test]
fn every_byte_arrives_at_any_loss_and_order() {
    for seed in seeds(12) {
        let loss = [0.01, 0.03, 0.1][seed as usize % 3];
        let link = Link { loss, duplicate: 0.02, reorder: 0.05, ..far() };
        let mut pair = pair_of(seed, link, modes(SecureMode::S1));
        let data = pattern(1 << 20, seed);
        assert!(pair.transfer(&data).received == data, "seed {seed}");
    }
}

#[test]
fn streams_go_on_over_new_keys_and_a_new_address() {
    let limits = Limits {
        update_packets: 60,
        update_after: 300 * MS,
        rekey_after: 700 * MS,
        refuse_after: seconds(4),
        ..Limits::default()
    };
    for seed in seeds(6) {
        let link = Link { loss: 0.02, rate: Some(2_000_000), ..Link::default() };
        let mut pair = pair_of(seed, link, Modes { limits, ..modes(SecureMode::S1) });
        let ids = pair.connect(7).expect("connects");
        let data = pattern(6 << 20, seed);
        let (mut at, mut got, mut moved) = (0, Vec::new(), false);
        let done = pair.run_until(seconds(120), |p| {
            let now = p.now;
            while at < data.len() {
                match p.endpoint(Side::A).write(now, ids.0, &data[at..]) {
                    Ok(n) => at += n,
                    Err(WriteError::Blocked) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            let mut buf = [0; 16_384];
            while let Ok(n @ 1..) = p.endpoint(Side::B).read(now, ids.1, &mut buf) {
                got.extend_from_slice(&buf[..n]);
            }
            if !moved && got.len() > data.len() / 2 {
                moved = true;
                p.host(Side::A).addr = "198.51.100.77:777".parse().expect("address");
            }
            got.len() >= data.len()
        });
        assert!(done && got == data, "seed {seed}: {} bytes", got.len());
        assert!(pair.endpoint(Side::A).stats().handshakes >= 3, "seed {seed}");
        let path = pair.endpoint(Side::B).connection_path(ids.1).expect("path");
        assert_eq!(path.remote, pair.host(Side::A).addr);
    }
}

/// The loss of what one stream sent holds that one up, and no other.
#[test]
fn of_two_thousand_streams_none_waits_for_another() {
    let cfg = Config { max_connections_per_peer: 3_000, accept_queue: 3_000, ..Config::default() };
    let mut pair = Pair::with_modes(4, far(), cfg, modes(SecureMode::S1));
    let mut echo = Echo::default();
    ask(&mut pair, &mut echo, 7, b"warm");
    pair.run_for(seconds(1));
    let (now, to) = (pair.now, port_of(&mut pair, 7));
    let mut waiting = HashMap::new();
    for n in 0..2_000u32 {
        let a = pair.endpoint(Side::A);
        let id = a.connect(now, to).expect("within the limit");
        let text = [&n.to_be_bytes()[..], &[7; 396]].concat();
        a.write(now, id, &text).expect("room");
        a.shutdown(now, id).expect("open");
        waiting.insert(id, text);
    }
    // One datagram of A's is lost, with what three streams or so had to say.
    let mut count = 0;
    pair.censor = Some(Box::new(move |side, bytes| {
        count += usize::from(side == Side::A && bytes.len() > 1_000);
        side == Side::A && bytes.len() > 1_000 && count == 3
    }));
    let mut times: Vec<Duration> = Vec::new();
    pair.run_until(seconds(60), |p| {
        echo.serve(p, 7);
        let at = p.now;
        waiting.retain(|id, text| {
            let mut buf = [0; 500];
            let Ok(n @ 1..) = p.endpoint(Side::A).read(at, *id, &mut buf) else { return true };
            assert!(buf[..n] == text[..n]);
            times.push(at.duration_since(now));
            false
        });
        waiting.is_empty()
    });
    assert_eq!(times.len(), 2_000, "all were answered");
    times.sort_unstable();
    let first_flight = times.iter().filter(|t| **t < 45 * MS).count();
    // Ten packets of 1,200 bytes with three streams each, less one.
    assert!(
        first_flight >= 20,
        "{first_flight} were answered after one round trip although a packet was lost"
    );
    let without: Duration = times[1_990];
    assert!(*times.last().expect("some") < seconds(2), "{without:?}");
    let per_stream = pair.sent[0] as f64 / 2_000.0;
    assert!(per_stream < 1.5, "{per_stream} datagrams per stream");
}

#[test]
fn nobody_listens_and_the_answer_says_so() {
    let mut pair = pair_of(5, far(), modes(SecureMode::S1));
    let (now, to) = (pair.now, port_of(&mut pair, 99));
    let id = pair.endpoint(Side::A).connect(now, to).expect("known");
    pair.endpoint(Side::A).write(now, id, b"anybody?").expect("room");
    let refused = pair.run_until(seconds(5), |p| {
        let now = p.now;
        p.endpoint(Side::A).read(now, id, &mut [0; 8]) == Err(ReadError::Connect(ConnectError::Refused))
    });
    assert!(refused);
    assert!(pair.now.duration_since(now) < 85 * MS, "with the first answer");
    assert_eq!(pair.endpoint(Side::A).connect_error(id), Some(ConnectError::Refused));
    assert!(pair.host(Side::A).events.contains(&Event::Closed(id)));
    let now = pair.now;
    pair.endpoint(Side::A).close(now, id);
    pair.run_for(seconds(2));
    for side in [Side::A, Side::B] {
        assert_eq!(pair.endpoint(side).memory().connections, 0, "{side:?}");
    }
}

/// Whoever wants to know before it writes is told after one round trip, and not only by an acknowledgement that can wait.
#[test]
fn a_stream_without_data_is_taken_or_refused_in_a_round_trip() {
    for (port, listens) in [(7, true), (99, false)] {
        let mut pair = pair_of(5, far(), modes(SecureMode::S1));
        let _ = pair.endpoint(Side::B).listen(7);
        let mut echo = Echo::default();
        ask(&mut pair, &mut echo, 7, b"first");
        pair.run_for(seconds(2));
        let (now, to) = (pair.now, port_of(&mut pair, port));
        let id = pair.endpoint(Side::A).connect(now, to).expect("known");
        pair.endpoint(Side::A).open_now(now, id);
        assert!(!pair.endpoint(Side::A).is_accepted(id), "nobody has heard of it");
        pair.run_for(10 * MS);
        pair.host(Side::A).events.clear();
        let known = pair.run_until(seconds(5), |p| {
            let a = p.endpoint(Side::A);
            a.is_accepted(id) || a.connect_error(id).is_some()
        });
        assert!(known && pair.now.duration_since(now) < 41 * MS, "{:?}", pair.now - now);
        assert_eq!(pair.endpoint(Side::A).is_accepted(id), listens);
        let told = if listens { Event::Writable(id) } else { Event::Closed(id) };
        assert!(pair.host(Side::A).events.contains(&told), "{:?}", pair.host(Side::A).events);
    }
}

/// Whoever waits for a stream to be taken by a process that dies hears that it was reset, and not of a time that nobody waited for.
#[test]
fn a_stream_that_was_reset_before_it_was_taken_says_so() {
    let mut pair = pair_of(5, far(), modes(SecureMode::S1));
    let _ = pair.endpoint(Side::B).listen(7);
    ask(&mut pair, &mut Echo::default(), 7, b"first");
    pair.run_for(seconds(2));
    let (now, to) = (pair.now, port_of(&mut pair, 7));
    let id = pair.endpoint(Side::A).connect(now, to).expect("known");
    pair.endpoint(Side::A).write(now, id, b"once").expect("room");
    pair.run_for(21 * MS);
    pair.restart(Side::B);
    let _ = pair.endpoint(Side::B).listen(7);
    let over = pair.run_until(seconds(10), |p| p.endpoint(Side::A).connect_error(id).is_some());
    assert!(over && !pair.endpoint(Side::A).is_accepted(id));
    assert_eq!(pair.endpoint(Side::A).connect_error(id), Some(ConnectError::Reset));
    assert!(pair.host(Side::A).events.contains(&Event::Closed(id)));
    assert!(pair.endpoint(Side::B).accept(7).is_none(), "what it asked may have been done already");
}

/// What came before the end is acknowledged with the end: a peer whose last words are not would repeat them to nobody.
#[test]
fn whoever_leaves_acknowledges_what_came() {
    // Whether the first datagram with it is lost, and whether the stream is over at both ends, so that nothing else is said of it.
    for (first_lost, over) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut pair = pair_of(5, far(), modes(SecureMode::S1));
        let (id, theirs) = pair.connect(7).expect("connects");
        let now = pair.now;
        if over {
            pair.endpoint(Side::B).shutdown(now, theirs).expect("open");
        }
        pair.run_for(seconds(2));
        let now = pair.now;
        pair.endpoint(Side::A).write(now, id, b"the last words").expect("room");
        pair.endpoint(Side::A).shutdown(now, id).expect("open");
        let came = pair.run_until(seconds(1), |p| p.endpoint(Side::B).readable(theirs) == 14);
        let now = pair.now;
        assert_eq!(pair.endpoint(Side::B).read(now, theirs, &mut [0; 20]), Ok(14));
        assert!(came && !pair.endpoint(Side::A).is_flushed(id));
        pair.links[1].down = first_lost;
        pair.endpoint(Side::B).close_all(now);
        pair.flush();
        if first_lost {
            pair.links[1].down = false;
            pair.endpoint(Side::B).acknowledge_again(now);
            pair.flush();
        }
        // Nothing leaves later: its process has ended.
        pair.links[1].down = true;
        pair.run_for(60 * MS);
        assert!(pair.endpoint(Side::A).is_flushed(id), "{first_lost} {over}");
    }
}

/// More calls than the queue holds wait behind it, with all that they carry.
#[test]
fn a_full_accept_queue_loses_nothing() {
    let cfg = Config { accept_queue: 4, ..Config::default() };
    let mut pair = Pair::with_modes(6, far(), cfg, modes(SecureMode::S1));
    let _ = pair.endpoint(Side::B).listen(7);
    let (now, to) = (pair.now, port_of(&mut pair, 7));
    for n in 0..30u8 {
        let a = pair.endpoint(Side::A);
        let id = a.connect(now, to).expect("known");
        a.write(now, id, &[n]).expect("room");
    }
    pair.run_for(seconds(1));
    let now = pair.now;
    let mut seen = Vec::new();
    while let Some((id, _)) = pair.endpoint(Side::B).accept(7) {
        let mut buf = [0; 4];
        assert_eq!(pair.endpoint(Side::B).read(now, id, &mut buf), Ok(1));
        seen.push(buf[0]);
    }
    assert_eq!(seen, (0..30).collect::<Vec<u8>>());
}

/// Behind a closed gate a stream waits for the verdict.
#[test]
fn the_gate_holds_streams() {
    for admitted in [true, false] {
        let mut pair = pair_of(7, far(), modes(SecureMode::S1));
        pair.endpoint(Side::B).set_gate(true);
        let _ = pair.endpoint(Side::B).listen(7);
        let (now, to) = (pair.now, port_of(&mut pair, 7));
        let id = pair.endpoint(Side::A).connect(now, to).expect("known");
        pair.endpoint(Side::A).write(now, id, b"please").expect("room");
        pair.run_for(seconds(1));
        assert!(pair.endpoint(Side::B).accept(7).is_none());
        let node = pair.host(Side::A).address.node;
        assert!(pair.host(Side::B).events.contains(&Event::Knock { peer: node }));
        let now = pair.now;
        pair.endpoint(Side::B).admit(now, node, admitted.then_some(now + seconds(60)));
        pair.run_for(seconds(1));
        let got = pair.endpoint(Side::B).accept(7);
        assert_eq!(got.is_some(), admitted);
        let now = pair.now;
        if let Some((far, _)) = got {
            let mut buf = [0; 8];
            assert_eq!(pair.endpoint(Side::B).read(now, far, &mut buf), Ok(6));
        } else {
            assert!(pair.endpoint(Side::A).read(now, id, &mut [0; 8]).is_err());
        }
    }
}

/// With one side that carries the draft's packets only, both do.
#[test]
fn a_peer_without_streams_is_spoken_to_as_before() {
    for legacy in [[true, false], [false, true]] {
        let mut pair = pair_of(8, far(), Modes { legacy, ..modes(SecureMode::S1) });
        pair.record = true;
        let time = ask(&mut pair, &mut Echo::default(), 7, b"hello").0;
        assert!(time >= 120 * MS, "{time:?}");
        let data = pattern(1 << 20, 3);
        assert!(pair.transfer(&data).received == data);
        assert!(pair.recorded.iter().any(|(_, bytes)| Kind::of(bytes) == Some(Kind::Data)));
    }
}

/// Connections that began under the draft's keys go on after the upgrade; new ones are streams.
#[test]
fn connections_of_the_draft_live_on_in_a_tunnel_with_streams() {
    let mut pair = pair_of(9, far(), Modes::both(SecureMode::Auto));
    pair.censor = Some(Box::new(|_, bytes| bytes.starts_with(b"PILI")));
    let old = pair.connect(7).expect("connects");
    pair.censor = None;
    pair.run_for(seconds(5));
    assert_eq!(pair.endpoint(Side::A).peers()[0].mode, Mode::S1);
    let mut echo = Echo::default();
    let (time, _) = ask(&mut pair, &mut echo, 8, b"new");
    assert!(time < 41 * MS, "{time:?}");
    let now = pair.now;
    pair.endpoint(Side::A).write(now, old.0, b"still").expect("room");
    let mut buf = [0; 8];
    let there = pair.run_until(seconds(2), |p| {
        let now = p.now;
        p.endpoint(Side::B).read(now, old.1, &mut buf) == Ok(5)
    });
    assert!(there, "in LEGACY");
}

/// What the first call of a peer takes of which only the identity is known, and the mode of its tunnel then; `lost`: what both sides' frames
/// of these kinds become nothing.
fn first_call(mode: [SecureMode; 2], lost: &'static [&'static [u8]]) -> (Duration, Mode) {
    let mut pair = pair_of(3, far(), Modes { modes: mode, ..Modes::default() });
    pair.censor = Some(Box::new(move |_, bytes| lost.iter().any(|kind| bytes.starts_with(kind))));
    let time = ask(&mut pair, &mut Echo::default(), 7, b"hello").0;
    (time, pair.endpoint(Side::A).peers()[0].mode)
}

#[test]
fn the_first_call_is_a_stream_of_s1_and_takes_no_longer_than_one_of_the_draft() {
    let auto = [SecureMode::Auto; 2];
    let draft = first_call([SecureMode::Draft; 2], &[]);
    assert!(draft.0 < 125 * MS && draft.1 == Mode::Draft, "{draft:?}");
    let both = first_call(auto, &[]);
    assert!(both.0 <= draft.0 + 2 * MS && both.1 == Mode::S1, "{both:?} {draft:?}");
    // A peer of ours that speaks the draft only does not answer for its prekey: a quarter of a round trip is lost.
    let old = first_call([SecureMode::Auto, SecureMode::Draft], &[]);
    assert!(old.0 <= draft.0 + 21 * MS && old.1 == Mode::Draft, "{old:?} {draft:?}");
    // Neither does whoever withholds PILN gain more; nor PILR, more than the round trip that it was given.
    let unasked = first_call(auto, &[b"PILN"]);
    assert!(unasked.0 <= draft.0 + 21 * MS, "{unasked:?}");
    let unanswered = first_call(auto, &[b"PILR"]);
    assert!(unanswered.0 <= draft.0 + 71 * MS, "{unanswered:?}");
    // Without the draft's answer, S1 is what comes.
    let alone = first_call(auto, &[b"PILA"]);
    assert!(alone.0 <= draft.0 + 2 * MS && alone.1 == Mode::S1, "{alone:?}");
}

/// PILR is withheld, and PILN comes again and again: that puts off nothing beyond the wait for PILR, and makes no stream of initiations.
#[test]
fn copies_of_a_prekey_delay_the_first_call_no_longer_than_its_bound() {
    let auto = Modes::both(SecureMode::Auto);
    let mut pair = pair_of(3, far(), auto);
    pair.record = true;
    pair.censor = Some(Box::new(|side, bytes| side == Side::B && bytes.starts_with(b"PILR")));
    let from = pair.host(Side::B).addr;
    let _ = pair.endpoint(Side::B).listen(7);
    let (start, to) = (pair.now, port_of(&mut pair, 7));
    let id = pair.endpoint(Side::A).connect(start, to).expect("known");
    pair.endpoint(Side::A).write(start, id, b"hello").expect("room");
    let (mut copies, mut taken) = (0, None);
    while taken.is_none() && pair.now.duration_since(start) < seconds(3) {
        let of_b = pair.recorded.iter().rev().filter(|(by, _)| *by == Side::B);
        let told = of_b.map(|(_, bytes)| bytes).find(|bytes| bytes.starts_with(b"PILN")).cloned();
        if let Some(prekey) = told {
            copies += 1;
            pair.inject(from, Side::A, &prekey);
            if copies % 6 == 0 {
                pair.inject(SocketAddr::from(([203, 0, 113, 9], 1_000 + copies)), Side::A, &prekey);
            }
        }
        pair.run_for(5 * MS);
        taken = pair.endpoint(Side::B).accept(7);
    }
    // Keys, 40 ms; a quarter of a round trip at most for PILN, one and a half for PILR, 10 ms more for each; the ports' handshake, 60 ms.
    let took = pair.now.duration_since(start);
    assert!(taken.is_some() && took <= 40 * MS + 90 * MS + 60 * MS, "{took:?}");
    assert!(copies > 10, "{copies}");
    let initiations = pair.recorded.iter().filter(|(by, bytes)| *by == Side::A && bytes.starts_with(b"PILI"));
    // One for the prekey, one with it, and one for each other way, of which five count.
    assert!(initiations.count() <= 7);
}

/// A question that goes directly and over the relay has two answers, and one session comes of them, on the direct way. (It had been one
/// initiation for each answer, and the relayed one displaced the direct one.)
#[test]
fn the_first_call_begins_one_session_and_goes_directly() {
    for seed in seeds(8) {
        let jitter = if seed == 0 { Duration::ZERO } else { 15 * MS };
        let mut pair = Pair::with_modes(
            seed,
            Link { jitter, ..far() },
            Config::default(),
            Modes::both(SecureMode::Auto),
        );
        pair.add_beacon();
        pair.run_for(seconds(1));
        pair.record = true;
        let _ = pair.endpoint(Side::B).listen(7);
        let (now, to) = (pair.now, port_of(&mut pair, 7));
        let id = pair.endpoint(Side::A).connect(now, to).expect("known");
        pair.endpoint(Side::A).write(now, id, b"hello").expect("room");
        let came = pair.run_until(seconds(2), |p| p.endpoint(Side::B).accept(7).is_some());
        assert!(came, "seed {seed}");
        let of = |side: Side, name: &[u8; 4]| {
            let sent = pair.recorded.iter().filter(|(by, _)| *by == side);
            let at = |bytes: &[u8]| bytes.windows(4).position(|w| w == name).map(|at| bytes[at..].to_vec());
            sent.filter_map(|(_, bytes)| at(bytes)).collect::<std::collections::HashSet<_>>().len()
        };
        assert_eq!((of(Side::A, b"PILI"), of(Side::B, b"PILR")), (2, 1), "seed {seed}");
        pair.run_for(100 * MS);
        let path = pair.endpoint(Side::A).connection_path(id).expect("there");
        assert_eq!(path.kind, PathKind::Direct, "seed {seed}");
    }
}

/// Whoever is called has to look the caller up first. Both frames of a first call may come meanwhile, in any order: neither pushes the other
/// one out, so nothing has to be sent twice but by the draft, which has to find out which way works.
#[test]
fn a_first_call_waits_for_the_look_up_and_no_longer() {
    for relayed in [false, true] {
        for wait in (0..400).step_by(10) {
            let stranger = Some(wait * MS);
            let mut pair =
                pair_of(u64::from(wait), far(), Modes { stranger, ..Modes::both(SecureMode::Auto) });
            pair.add_beacon();
            pair.run_for(seconds(1));
            (pair.record, pair.direct_blocked) = (true, relayed);
            let time = ask(&mut pair, &mut Echo::default(), 7, b"hello").0;
            let rtt = if relayed { 80 } else { 40 } * MS;
            let case = format!("relayed {relayed}, look-up {wait} ms");
            assert!(time <= 3 * rtt + wait * MS + 5 * MS, "{case}: {time:?}");
            assert_eq!(pair.endpoint(Side::A).peers()[0].mode, Mode::S1, "{case}");
            let asked = |bytes: &[u8]| bytes.windows(4).any(|w| w == b"PILI");
            let ways = if relayed { 3 } else { 4 };
            let count = pair.recorded.iter().filter(|(by, bytes)| *by == Side::A && asked(bytes)).count();
            assert!(count <= ways, "{case}: {count} initiations");
        }
    }
}

/// What waits for a sample waits a second: the handshake is one, at both sides, also when it took several questions.
#[test]
fn a_first_call_knows_the_round_trip_from_its_handshake() {
    for stranger in [None, Some(30 * MS)] {
        for lost in [&[][..], &[b"PILA"]] {
            let mut pair = pair_of(5, far(), Modes { stranger, ..Modes::both(SecureMode::Auto) });
            pair.censor = Some(Box::new(move |_, bytes| lost.iter().any(|kind| bytes.starts_with(*kind))));
            let now = pair.now;
            let to = port_of(&mut pair, 7);
            pair.endpoint(Side::A).connect(now, to).expect("known");
            let up = |e: &Event| matches!(e, Event::TunnelUp { .. });
            let both = |p: &mut Pair| {
                [Side::A, Side::B]
                    .iter()
                    .all(|side| p.endpoint(*side).peers().iter().any(|t| t.mode == Mode::S1))
            };
            assert!(pair.run_until(seconds(2), both), "{stranger:?} {lost:?}");
            for side in [Side::A, Side::B] {
                assert!(pair.host(side).events.iter().any(up));
                let path = pair.endpoint(side).peers()[0].path.expect("a path");
                let rtt = path.rtt;
                assert!((40 * MS..=75 * MS).contains(&rtt), "{side:?} {stranger:?} {lost:?}: {rtt:?}");
            }
        }
    }
}

#[test]
fn two_that_call_each_other_at_once_have_streams_too() {
    let mut pair = pair_of(4, far(), Modes::both(SecureMode::Auto));
    for side in [Side::A, Side::B] {
        pair.endpoint(side).listen(7).expect("free");
    }
    let now = pair.now;
    let ids = [Side::A, Side::B].map(|side| {
        let to = SocketAddress { address: pair.host(side.other()).address, port: 7 };
        let id = pair.endpoint(side).connect(now, to).expect("known");
        pair.endpoint(side).write(now, id, b"hello").expect("room");
        id
    });
    let mut got = [false; 2];
    let done = pair.run_until(seconds(2), |p| {
        let now = p.now;
        for (i, side) in [Side::A, Side::B].into_iter().enumerate() {
            if let Some((id, _)) = p.endpoint(side).accept(7) {
                got[i] |= p.endpoint(side).read(now, id, &mut [0; 8]) == Ok(5);
            }
        }
        got == [true; 2]
    });
    assert!(done && pair.now.duration_since(now) < 125 * MS, "{got:?} {:?}", pair.now.duration_since(now));
    for (side, id) in [Side::A, Side::B].into_iter().zip(ids) {
        let peer = &pair.endpoint(side).peers()[0];
        assert_eq!(peer.mode, Mode::S1, "{side:?} {id:?}");
    }
}
