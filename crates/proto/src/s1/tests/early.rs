//! Early data (0-RTT): taken once, or not at all. Test 11 of the design's section 6.

use super::*;

fn early_at(b: &mut Side, pili: &[u8], last: u8) -> Option<Vec<u8>> {
    b.now += Duration::from_millis(1);
    b.answer(pili, source(last)).ok()?.early
}

#[test]
fn early_data_arrives_with_the_first_datagram() {
    let (mut a, mut b) = pair();
    let frames = datagram_frame(b"idempotent");
    let pili = a.connect_with(&frames);
    let accepted = b.answer(&pili, source(1)).unwrap();
    assert_eq!(accepted.early.as_deref(), Some(&frames[..]));
    let up = a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx)).unwrap();
    assert_eq!(up.early_accepted, Some(true));
}

#[test]
fn only_some_frames_may_be_early() {
    let long = datagram_frame(&[0; 900]);
    assert!(EarlyData::idempotent(&long).is_err());
    assert!(EarlyData::idempotent(&datagram_frame(&[0; 890])).is_ok());
    assert!(EarlyData::idempotent(&[0x08, 5]).is_err(), "MAX_DATA steers");
    assert!(EarlyData::idempotent(&[0x12, 0, 0]).is_err(), "CLOSE");
    assert!(EarlyData::idempotent(&[]).is_err());
    assert!(EarlyData::idempotent(&[0xFF]).is_err());
}

#[test]
fn a_replay_delivers_nothing() {
    let (mut a, mut b) = pair();
    let pili = a.connect_with(&datagram_frame(b"pay once"));
    assert!(early_at(&mut b, &pili, 1).is_some());
    for step in 0..600 {
        assert_eq!(early_at(&mut b, &pili, step as u8), None);
        b.now += Duration::from_millis(100);
    }
}

/// The same when the table of initiators has forgotten this one: the register alone must hold.
#[test]
fn a_replay_delivers_nothing_when_the_initiator_was_forgotten() {
    let (mut a, mut b) = pair();
    let pili = a.connect_with(&datagram_frame(b"pay once"));
    assert!(early_at(&mut b, &pili, 1).is_some());
    let mut answered = 0;
    for step in 0..600 {
        b.node.forget_initiators();
        match b.answer(&pili, source(step as u8)) {
            Ok(accepted) => {
                assert_eq!(accepted.early, None, "{} ms after", step * 100);
                answered += 1;
            }
            Err(refusal) => assert_eq!(refusal, Refusal::Rate),
        }
        b.now += Duration::from_millis(100);
    }
    assert!(answered > 500, "the handshake itself is harmless");
}

#[test]
fn clocks_that_differ_cost_a_round_trip_and_nothing_else() {
    for (skew, taken) in [
        (-3_600_000, false),
        (-10_001, false),
        (-9_000, true),
        (0, true),
        (9_000, true),
        (10_001, false),
        (3_600_000, false),
    ] {
        let (mut a, mut b) = pair();
        a.skew = skew;
        let pili = a.connect_with(&datagram_frame(b"x"));
        let accepted = b.answer(&pili, source(1)).unwrap();
        assert_eq!(accepted.early.is_some(), taken, "{skew} ms");
        let up = a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx)).unwrap();
        assert_eq!(up.early_accepted, Some(taken));
    }
}

/// The wall clock goes back while the process runs: our own clock does not.
#[test]
fn a_step_of_the_wall_clock_opens_no_hole() {
    let (mut a, mut b) = pair();
    let pili = a.connect_with(&datagram_frame(b"x"));
    assert!(early_at(&mut b, &pili, 1).is_some());
    b.now += Duration::from_secs(3_600);
    b.skew -= 3_600_000;
    b.node.forget_initiators();
    assert_eq!(early_at(&mut b, &pili, 1), None);
}

#[test]
fn a_restart_and_a_second_replica_deliver_nothing() {
    let (mut a, mut b) = pair();
    let pili = a.connect_with(&datagram_frame(b"x"));
    assert!(early_at(&mut b, &pili, 1).is_some());
    // The same identity and device secret, as after a restart or at a replica; a second later, and with clocks set back.
    for (seed, skew) in [(50, 0), (51, -3_600_000), (52, 3_600_000)] {
        let start = b.now;
        let mut other = Side::with(config(2, Limits::default()), seed, start, skew);
        assert!(
            matches!(other.judge(&pili, source(1)), Verdict::Answer(answer) if answer.starts_with(b"PILN"))
        );
        assert_eq!(other.node.indices(), 0);
    }
}

#[test]
fn a_young_process_takes_none() {
    let start = Instant::now();
    let (mut a, mut b) = (Side::new(1, start), Side::new(2, start));
    a.knows(&b);
    wait(&mut a, &mut b, 20_000);
    let pili = a.connect_with(&datagram_frame(b"x"));
    assert_eq!(early_at(&mut b, &pili, 1), None);
    a.run(|peer, node, _| peer.close(node));
    wait(&mut a, &mut b, 1);
    let pili = a.connect_with(&datagram_frame(b"x"));
    assert!(early_at(&mut b, &pili, 1).is_some());
}

#[test]
fn only_the_first_try_carries_it() {
    let (mut a, _) = pair();
    let first = a.connect_with(&datagram_frame(b"x"));
    assert!(first.len() > 304);
    a.now = a.run(|peer, _, _| peer.deadline()).unwrap();
    let Timeout::Send(second) = a.run(|peer, node, cx| peer.handle_timeout(node, cx)) else {
        panic!("a try")
    };
    assert_eq!(second.len(), 304);
}

#[test]
fn a_caller_may_refuse_it() {
    let (mut a, mut b) = pair();
    let pili = a.connect_with(&datagram_frame(b"x"));
    let Verdict::Incoming(incoming) = b.judge(&pili, source(1)) else { panic!("a good PILI") };
    assert!(incoming.has_early());
    let psk = Secret::new([9; 32]);
    let accepted = b.node(|node, cx| node.accept(*incoming, 1, &psk, false, cx)).unwrap();
    let up = a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx)).unwrap();
    assert_eq!((accepted.early, up.early_accepted), (None, Some(false)));
}

/// A look-up may take longer than the register remembers: it is judged by the clock once more when it is answered.
#[test]
fn what_waited_too_long_is_not_taken() {
    for (waited, taken) in [(9_000, true), (11_000, false)] {
        let (mut a, mut b) = pair();
        let pili = a.connect_with(&datagram_frame(b"x"));
        let Verdict::Incoming(incoming) = b.judge(&pili, source(1)) else { panic!("a good PILI") };
        assert!(incoming.early().is_some());
        b.now += Duration::from_millis(waited);
        let psk = Secret::new([9; 32]);
        let accepted = b.node(|node, cx| node.accept(*incoming, 1, &psk, true, cx)).unwrap();
        assert_eq!(accepted.early.is_some(), taken, "{waited} ms");
    }
}

/// The answer to early data may leave before the session is confirmed, and nothing else may; nor answers where none was taken.
#[test]
fn only_answers_to_early_data_leave_before_the_session_is_confirmed() {
    for early in [true, false] {
        let (mut a, mut b) = pair();
        let pili = a.connect_with(&datagram_frame(b"?"));
        let accepted = b.answer(&pili, source(1)).unwrap();
        let now = b.now;
        b.run(|peer, node, _| peer.adopt(node, accepted.session, early, now));
        let answer = datagram_frame(b"!");
        let mut buf = [0; 200];
        buf[9..9 + answer.len()].copy_from_slice(&answer);
        assert!(matches!(
            b.run(|peer, _, _| peer.seal(&mut buf, answer.len(), now)),
            Err(SealError::NoSession)
        ));
        assert_eq!(b.run(|peer, _, _| peer.may_answer_early(now)), early);
        let sealed = b.run(|peer, _, _| peer.seal_answer(&mut buf, answer.len(), now));
        let Ok((len, number)) = sealed else {
            assert!(!early);
            continue;
        };
        assert!(early && number == 0);
        a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx)).unwrap();
        let now = a.now;
        let opened = a.run(|peer, node, _| peer.open(node, &mut buf[..len], now)).unwrap();
        assert_eq!(buf[opened.start..opened.end], answer);
        // Not for ever: the unconfirmed session is given up.
        let later = b.now + Duration::from_secs(5);
        assert!(!b.run(|peer, _, _| peer.may_answer_early(later)));
    }
}
